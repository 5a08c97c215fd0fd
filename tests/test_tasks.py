"""data/reviews keeps what its card promises; files of all four tasks are read, and a broken one is refused with its line."""

import itertools
import json
import re
from collections import Counter

import pytest

from bert_course import data_path, finetuning, tasks

SPLITS = tasks.SPLITS
CASES = {"plain", "implicit", "negation", "contrast", "mixed", "irony"}
MISSING = {"validation": {"irony"}, "challenge": {"plain"}}  # cases a split does not have
CEILING = {"test": 0.76, "challenge": 0.66}  # a bag of words stays under it; it reached 0.72 and 0.61
NEAR_DUPLICATE = 0.6  # share of common words; in train and validation two had 0.57, with test or challenge none over 0.43
ALIKE = 0.2  # twins share at least a fifth of their words; half of them share more than 0.6


@pytest.fixture(scope="module")
def reviews():
    return {split: tasks.read("sentiment", data_path("reviews") / f"{split}.csv") for split in SPLITS}


@pytest.fixture(scope="module")
def rows(reviews):
    return [row for split in SPLITS for row in reviews[split]]


def words(text):
    return frozenset(re.findall(r"[\w']+", text.lower()))


def card_table():
    """{case or "all": {split: count}} of the table in the card."""
    lines = (data_path("reviews") / "README.md").read_text(encoding="utf-8").splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    names = {*CASES, "all"}
    return {row[0]: dict(zip(SPLITS, (int(n.replace(",", "")) for n in row[2:]))) for row in cells if row[0] in names}


def test_there_are_at_least_1200_and_the_splits_have_the_sizes_of_the_card(reviews, rows):
    assert len(rows) >= 1200
    counts = {split: Counter(row["case"] for row in reviews[split]) for split in SPLITS}
    sizes = {"all": {split: len(reviews[split]) for split in SPLITS}}
    assert card_table() == {case: {split: counts[split][case] for split in SPLITS} for case in CASES} | sizes


def test_every_row_has_the_same_columns_filled(rows):
    assert {tuple(row) for row in rows} == {("text", "label", "case", "domain", "pair")}
    assert all(str(value).strip() for row in rows for value in row.values())
    assert {row["case"] for row in rows} == CASES


@pytest.mark.parametrize("split", SPLITS)
def test_labels_are_balanced_and_every_case_occurs_that_should(reviews, split):
    assert len(set(Counter(row["label"] for row in reviews[split]).values())) == 1
    assert {row["case"] for row in reviews[split]} == CASES - MISSING.get(split, set())


def test_a_pair_is_two_opposite_reviews_of_one_case_domain_and_split(reviews):
    twins = {}
    for split in SPLITS:
        for row in reviews[split]:
            twins.setdefault(row["pair"], []).append((row["label"], row["case"], row["domain"], split))
    assert [pair for pair, two in twins.items() if sorted(label for label, *_ in two) != [0, 1]] == []
    assert [pair for pair, (a, b) in twins.items() if a[1:] != b[1:]] == []


def test_twins_have_words_in_common(rows):
    twins = {}
    for row in rows:
        if row["case"] in tasks.TWINS:
            twins.setdefault(row["pair"], []).append(words(row["text"]))
    shares = sorted(len(a & b) / len(a | b) for a, b in twins.values())
    assert shares[0] >= ALIKE and shares[len(shares) // 2] > 0.6


def test_no_text_occurs_twice(rows):
    texts = Counter(" ".join(row["text"].lower().split()) for row in rows)
    assert [text for text, count in texts.items() if count > 1] == []


@pytest.mark.parametrize("a, b", list(itertools.combinations(SPLITS, 2)))
def test_no_text_has_a_near_duplicate_in_another_split(reviews, a, b):
    left, right = ([(words(row["text"]), row["text"]) for row in reviews[split]] for split in (a, b))
    near = [(x, y) for p, x in left for q, y in right if len(p & q) >= NEAR_DUPLICATE * len(p | q)]
    assert near == []


def test_the_shifted_domains_are_in_test_and_challenge_only(reviews):
    domains = {split: {row["domain"] for row in reviews[split]} for split in SPLITS}
    assert domains["test"] - domains["train"] == domains["challenge"] - domains["train"] == set(tasks.SHIFTED)
    assert domains["validation"] <= domains["train"]


@pytest.mark.parametrize("split", CEILING)
@pytest.mark.parametrize("longest", [1, 2])
def test_a_bag_of_words_stays_under_its_ceiling(reviews, longest, split):
    train, test = reviews["train"], reviews[split]
    baseline = finetuning.bag_of_words(longest).fit([row["text"] for row in train], [row["label"] for row in train])
    accuracy = baseline.score([row["text"] for row in test], [row["label"] for row in test])
    assert 0.5 < accuracy < CEILING[split]


def test_load_gives_the_texts_and_labels_as_a_dataset_dict(reviews):
    loaded = tasks.load("sentiment")
    assert {split: loaded[split].to_list() for split in loaded} == {
        split: [{"text": row["text"], "label": row["label"]} for row in rows] for split, rows in reviews.items()
    }
    assert loaded["train"].features["label"].names == ["negative", "positive"]


COLUMNS = {
    "sentiment": ["text", "label"],
    "paraphrase": ["text", "text_pair", "label"],
    "entities": ["tokens", "ner_tags"],
    "passages": ["id", "title", "context", "question", "answers"],
}


@pytest.mark.parametrize("task", COLUMNS)
def test_every_task_loads_with_its_columns_and_the_rows_of_its_files(task):
    loaded = tasks.load(task)
    assert {"train", "validation", "test"} <= set(loaded)
    assert all(loaded[split].column_names == COLUMNS[task] and len(loaded[split]) > 10 for split in loaded)
    [file] = data_path(tasks.EMBEDDED[task]).glob("test.*")
    rows = tasks.read(task, file)
    assert loaded["test"].to_list() == [{name: row[name] for name in COLUMNS[task]} for row in rows]


def test_tags_have_their_names_in_the_order_of_conll_2003():
    names = tasks.load("entities")["train"].features["ner_tags"].feature.names
    assert names == ["O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC", "B-MISC", "I-MISC"]
    assert tasks.load("paraphrase")["train"].features["label"].names == ["different", "paraphrase"]


def test_load_names_what_there_is():
    with pytest.raises(ValueError, match="no task 'spam'; the course has: sentiment, paraphrase, entities, passages"):
        tasks.load("spam")
    with pytest.raises(ValueError, match="no source 'internet'; choose embedded or hub"):
        tasks.load("sentiment", "internet")


def written(folder, text, name="r.csv"):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_a_file_with_a_byte_order_mark_is_read(tmp_path):
    assert tasks.read("sentiment", written(tmp_path, "\ufefftext,label\nGood,positive\n")) == [{"text": "Good", "label": 1}]


@pytest.mark.parametrize("good_rows", [0, 2000])  # in the header's block of the file, and beyond it
def test_a_file_that_is_not_utf8_is_named(tmp_path, good_rows):
    (tmp_path / "r.csv").write_bytes(b"text,label\n" + b"Good,positive\n" * good_rows + b"Sch\xf6n,positive\n")
    with pytest.raises(ValueError, match=r"r\.csv is not UTF-8 \(invalid start byte\)\. Save it as UTF-8"):
        tasks.read("sentiment", tmp_path / "r.csv")


def test_labels_become_ids_and_other_columns_stay(tmp_path):
    path = written(tmp_path, 'text,label,stars\n"Good, really.",positive,5\n"Two\nlines.",negative,1\n')
    assert tasks.read("sentiment", path) == [
        {"text": "Good, really.", "label": 1, "stars": "5"}, {"text": "Two\nlines.", "label": 0, "stars": "1"}
    ]


@pytest.mark.parametrize("text, complaint", [
    ("", "r.csv lacks the column label and text; its first line has nothing: the file is empty."),
    ("review,label\nGood,positive\n", "r.csv lacks the column text; its first line has review, label."),
    ("text,label\n", "r.csv has no rows below its header."),
    ("text,label\nGood,positive\nBad,negatve\n", "r.csv line 3: label 'negatve' is not one of negative, positive. Fix the line."),
    ("text,label\nGood,positive\n ,negative\n", "r.csv line 3: the text is empty. Fix or delete the line."),
    ("text,label\nGood, really,positive\n", "r.csv line 2 does not have 2 fields. A comma in a text needs quotes."),
    ("text,label\nGood\n", "r.csv line 2 does not have 2 fields. A comma in a text needs quotes."),
    ('"text,label\nGood,positive\n', "r.csv line 1: unexpected end of data. Is a quote missing?"),
    ('text,label\nGood,positive\n"Bad,negative\n', "r.csv line 3: unexpected end of data. Is a quote missing?"),
])
def test_a_broken_file_is_refused_with_its_name_and_line(tmp_path, text, complaint):
    with pytest.raises(ValueError) as error:
        tasks.read("sentiment", written(tmp_path, text))
    assert str(error.value).endswith(complaint) and str(tmp_path) in str(error.value)


def test_a_pair_needs_both_texts(tmp_path):
    path = written(tmp_path, "text,text_pair,label,group\nOne,Two,paraphrase,7\n")
    assert tasks.read("paraphrase", path) == [{"text": "One", "text_pair": "Two", "label": 1, "group": "7"}]
    with pytest.raises(ValueError, match="r.csv line 2: the text_pair is empty. Fix or delete the line."):
        tasks.read("paraphrase", written(tmp_path, "text,text_pair,label\nOne,,paraphrase\n"))


def test_labels_of_your_own_get_ids_in_the_order_given(tmp_path):
    path = written(tmp_path, "text,label\nA,mixed\nB,good\n")
    assert [row["label"] for row in tasks.read("sentiment", path, labels=["bad", "mixed", "good"])] == [1, 2]


def test_labels_are_not_needed_to_predict(tmp_path):
    assert tasks.read("sentiment", written(tmp_path, "text\nGood\n"), labelled=False) == [{"text": "Good"}]
    assert tasks.read("entities", written(tmp_path, "Rome\nis\n\nOslo\n", "a.conll"), labelled=False) == [
        {"tokens": ["Rome", "is"]}, {"tokens": ["Oslo"]}
    ]
    file = '{"data": [{"paragraphs": [{"context": "C", "qas": [{"id": "1", "question": "Q"}]}]}]}'
    [row] = tasks.read("passages", written(tmp_path, file, "a.json"), labelled=False)
    assert row == {"id": "1", "title": "", "context": "C", "question": "Q", "answers": {"text": [], "answer_start": []}}


def test_json_lines_are_read_like_csv(tmp_path):
    lines = '{"text": "Good, \\u00a31.", "label": "positive", "stars": 5}\n\n{"text": "Bad", "label": "negative"}\n'
    assert tasks.read("sentiment", written(tmp_path, lines, "r.jsonl")) == [
        {"text": "Good, £1.", "label": 1, "stars": 5}, {"text": "Bad", "label": 0}
    ]


@pytest.mark.parametrize("text, complaint", [
    ("", "r.jsonl has no rows."),
    ('{"text": "A", "label": "positive"}\n{"text": "B",\n',
     "r.jsonl line 2 is not JSON (Expecting property name enclosed in double quotes: line 2 column 1 (char 14)). "
     "Every line must be one whole JSON object."),
    ('[\n{"text": "A", "label": "positive"}\n]', "r.jsonl line 1 is not JSON (Expecting value: line 2 column 1 (char 2)). "
     "Every line must be one whole JSON object."),
    ('["A", "positive"]\n', 'r.jsonl line 1 is not a JSON object. Every line must be one, such as {"text": …}.'),
    ('{"text": "A"}\n', "r.jsonl line 1 lacks label; it has text."),
    ('{"text": 5, "label": "positive"}\n', "r.jsonl line 1: the text is empty. Fix or delete the line."),
    ('{"text": "A", "label": ["positive"]}\n',
     "r.jsonl line 1: label '['positive']' is not one of negative, positive. Fix the line."),
    ('{"text": "A", "label": "so-so"}\n', "r.jsonl line 1: label 'so-so' is not one of negative, positive. Fix the line."),
])
def test_broken_json_lines_are_refused_with_their_line(tmp_path, text, complaint):
    with pytest.raises(ValueError) as error:
        tasks.read("sentiment", written(tmp_path, text, "r.jsonl"))
    assert str(error.value) == str(tmp_path / "r.jsonl") + complaint.removeprefix("r.jsonl")


def test_a_file_of_another_kind_is_refused(tmp_path):
    with pytest.raises(ValueError, match="r.xlsx: expected a .csv file, or JSON lines in a .json or .jsonl file"):
        tasks.read("sentiment", written(tmp_path, "x", "r.xlsx"))


def test_conll_is_read_with_two_columns_and_with_the_four_of_2003(tmp_path):
    two = "Rome B-LOC\nrose O\n\n\nNew\tB-LOC\nYork I-LOC\n"
    four = "-DOCSTART- -X- O O\n\nRome NNP B-NP B-LOC\nrose VBD B-VP O\n\nNew NNP B-NP B-LOC\nYork NNP I-NP I-LOC"
    rows = [{"tokens": ["Rome", "rose"], "ner_tags": [5, 0]}, {"tokens": ["New", "York"], "ner_tags": [5, 6]}]
    for text in (two, four, two.replace("\n", "\r\n")):
        assert tasks.read("entities", written(tmp_path, text, "a.conll")) == rows


@pytest.mark.parametrize("text, complaint", [
    ("\n\n", "a.conll has no rows."),
    ("Rome B-LOC\nrose\n", "a.conll line 2: 'rose' has no tag. Expected a token, a space and its tag."),
    ("Rome B-CITY\n", "a.conll line 1: tag 'B-CITY' is not one of O, B-PER, I-PER, B-ORG, I-ORG, B-LOC, I-LOC, B-MISC, I-MISC. "
     "Fix the line, or name your own labels."),
    ("Rome B-LOC\n\nOslo I-LOC\n",
     "a.conll line 3: I-LOC follows O. In IOB2 a name begins with B-LOC. Fix the line."),
    ("Rome B-LOC\nInc I-ORG\n", "a.conll line 2: I-ORG follows B-LOC. In IOB2 a name begins with B-ORG. Fix the line."),
])
def test_broken_conll_is_refused_with_its_line(tmp_path, text, complaint):
    with pytest.raises(ValueError) as error:
        tasks.read("entities", written(tmp_path, text, "a.conll"))
    assert str(error.value) == str(tmp_path / "a.conll") + complaint.removeprefix("a.conll")


def squad(**changes):
    qa = {"id": "q1", "question": "Who?", "answers": [{"text": "Ada", "answer_start": 4}], "is_impossible": False} | changes
    qa = {name: value for name, value in qa.items() if value is not None}
    return json.dumps({"data": [{"title": "T", "paragraphs": [{"context": "Now Ada came.", "qas": [qa]}]}]}, indent=1)


def test_squad_is_read_as_the_hub_has_it(tmp_path):
    [row] = tasks.read("passages", written(tmp_path, squad(), "s.json"))
    assert row["answers"] == {"text": ["Ada"], "answer_start": [4]} and row["context"] == "Now Ada came." and row["title"] == "T"
    [row] = tasks.read("passages", written(tmp_path, squad(answers=[], is_impossible=True), "s.json"))
    assert row["answers"] == {"text": [], "answer_start": []}
    assert tasks.read("passages", written(tmp_path, squad(is_impossible=None), "s.json"))  # SQuAD 1.1 has none of these


@pytest.mark.parametrize("changes, complaint", [
    ({"answers": [{"text": "Ada", "answer_start": 5}]}, "at character 5 stands 'da ', not 'Ada'. Fix answer_start."),
    ({"answers": [{"text": "Ada", "answer_start": -9}]}, "at character -9 stands 'Now', not 'Ada'. Fix answer_start."),
    ({"answers": [{"text": " ", "answer_start": 3}]}, "an answer is empty. Delete it, or set is_impossible to true."),
    ({"answers": []}, "is_impossible is false, but it has 0 answers. Fix one of the two."),
    ({"is_impossible": True}, "is_impossible is true, but it has 1 answers. Fix one of the two."),
    ({"answers": None}, "it lacks answers."),
    ({"question": None}, "it lacks question."),
    ({"question": 5}, "its question is 5, expected a text."),
    ({"answers": "Ada"}, 'answers is "Ada", expected a list of {"text", "answer_start"}.'),
    ({"answers": ["Ada"]}, 'answers is ["Ada"], expected a list of {"text", "answer_start"}.'),
    ({"answers": [{"text": "Ada", "answer_start": "4"}]}, 'an answer is {"text": "Ada", "answer_start": "4"}, '
     "expected a text and, as answer_start, a whole number."),
    ({"answers": [{"text": None, "answer_start": 4}]}, 'an answer is {"text": null, "answer_start": 4}, '
     "expected a text and, as answer_start, a whole number."),
])
def test_a_broken_question_is_refused_with_its_line_and_id(tmp_path, changes, complaint):
    with pytest.raises(ValueError) as error:
        tasks.read("passages", written(tmp_path, squad(**changes), "s.json"))
    assert str(error.value) == f"{tmp_path / 's.json'} line 10, question 'q1': {complaint}"


@pytest.mark.parametrize("questions, context, complaint", [
    ('["q1"]', '"C"', """question 'q1': it is not a JSON object. Expected {"id", "question", "answers"}."""),
    ('[{"id": "q1", "question": "Who?", "answers": null}]', '"C"',
     """question 'q1': answers is null, expected a list of {"text", "answer_start"}."""),
    ('[{"id": "q1", "question": "Who?", "answers": []}]', "5", "question 'q1': its context is 5, expected a text."),
])
def test_a_question_of_the_wrong_type_is_refused_with_its_line(tmp_path, questions, context, complaint):
    text = f'{{"data": [{{"paragraphs": [\n{{"context": {context},\n"qas": {questions}}}]}}]}}'
    with pytest.raises(ValueError) as error:
        tasks.read("passages", written(tmp_path, text, "s.json"))
    assert str(error.value) == f"{tmp_path / 's.json'} line 3, {complaint}"


@pytest.mark.parametrize("text, complaint", [
    ('{"data": [', r"s.json line 1 is not JSON: Expecting value"),
    ('[{"context": "C"}]', r"s.json is not in the form of SQuAD, {\"data\": .*}: TypeError list indices"),
    ('{"data": [{"paragraphs": [{"qas": [{}]}]}]}', "s.json is not in the form of SQuAD, .*: KeyError 'context'"),
    ('{"data": []}', r"s.json has no rows\."),
])
def test_what_is_not_squad_is_refused(tmp_path, text, complaint):
    with pytest.raises(ValueError, match=complaint):
        tasks.read("passages", written(tmp_path, text, "s.json"))


def test_questions_about_one_passage_are_held_out_together():
    rows = [{"context": f"passage {i // 5}", "question": str(i)} for i in range(100)]
    train, held = tasks.hold_out(rows, seed=0)
    assert len(held) == 10 and len(train) == 90
    assert not {row["context"] for row in train} & {row["context"] for row in held}
    assert tasks.hold_out(rows, seed=0) == (train, held) != tasks.hold_out(rows, seed=1)
    assert [len(part) for part in tasks.hold_out([{"text": "a"}, {"text": "b"}], seed=0)] == [1, 1]


@pytest.mark.parametrize("rows, what", [([{"text": "a"}], "row"), ([{"context": "a", "question": q} for q in "bc"], "passage")])
def test_of_a_single_row_or_passage_nothing_is_held_out(rows, what):
    with pytest.raises(ValueError, match=f"only one {what}, .* Give rows to validate with: --validation FILE"):
        tasks.hold_out(rows, seed=0)
