"""Labelled datasets for four tasks: the course's own, the Hub's, or files of your own. A bad line is named, not skipped."""

import csv
import json
import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from . import data_path
from .files import download

TYPES = ("PER", "ORG", "LOC", "MISC")
LABELS = {
    "sentiment": ["negative", "positive"],
    "paraphrase": ["different", "paraphrase"],
    "entities": ["O", *(f"{place}-{name}" for name in TYPES for place in "BI")],
}
TEXTS = {"sentiment": ("text",), "paraphrase": ("text", "text_pair")}
EMBEDDED = {"sentiment": "reviews", "paraphrase": "paraphrases", "entities": "entities", "passages": "passages"}  # in data/
SUFFIXES = {"sentiment": "csv", "paraphrase": "csv", "entities": "conll", "passages": "json"}
SPLITS = ("train", "validation", "test", "challenge")  # data/reviews has all of them, the others no challenge
HUB = {  # repository, revision, files, columns to be renamed, splits that have labels
    "sentiment": (
        "stanfordnlp/sst2", "8d51e7e4887a4caaa95b3fbebbf53c0490b58bbb", "data/{}-00000-of-00001.parquet",
        {"sentence": "text"}, ("train", "validation"),
    ),
    "paraphrase": (
        "nyu-mll/glue", "bcdcba79d07bc864c1c254ccfcedcce55bcc9a8c", "mrpc/{}-00000-of-00001.parquet",
        {"sentence1": "text", "sentence2": "text_pair"}, ("train", "validation", "test"),
    ),
    "entities": (
        "lhoestq/conll2003", "19edcb426bfd625c275c17b9a99b2239243f4377", "data/{}-00000-of-00001.parquet",
        {}, ("train", "validation", "test"),
    ),
    "passages": (
        "rajpurkar/squad_v2", "3ffb306f725f7d2ce8394bc1873b24868140c412", "squad_v2/{}-00000-of-00001.parquet",
        {}, ("train", "validation"),
    ),
}
SHIFTED = ("software", "books", "courses")  # domains of data/reviews that only the splits test and challenge have
TWINS = ("negation", "contrast", "mixed")  # cases in which the two reviews of a pair are twins, in similar words


def load(task: str, source: str = "embedded"):
    """The data of a task as a `datasets.DatasetDict`, with the same columns and label names from either source.

    sentiment: text, label; paraphrase: text, text_pair, label; entities: tokens, ner_tags (IOB2);
    passages: id, title, context, question, answers (two lists, text and answer_start; empty: the passage has no answer).

    Args:
        source: "embedded", what was written for this course (data/), or "hub": SST-2, MRPC, CoNLL-2003 and SQuAD 2.0, at fixed
            revisions, downloaded once; SST-2 and SQuAD without their test splits, whose labels are secret.
    Raises:
        ValueError: if there is no such task or source.
        FileNotFoundError: if the Hub does not give the files.
    """
    from datasets import Dataset, DatasetDict

    features = columns(task)
    if source == "embedded":
        folder = data_path(EMBEDDED[task])
        files = {split: folder / f"{split}.{SUFFIXES[task]}" for split in SPLITS}
        rows = {split: read(task, path) for split, path in files.items() if path.exists()}
        chosen = {split: [{name: row[name] for name in features} for row in rows[split]] for split in rows}
        return DatasetDict({split: Dataset.from_list(chosen[split], features=features) for split in chosen})
    if source != "hub":
        raise ValueError(f"no source '{source}'; choose embedded or hub.")
    repository, revision, name, renamed, splits = HUB[task]
    files = {split: name.format(split) for split in splits}
    try:
        folder = download(repository, list(files.values()), revision, "dataset")
    except Exception as error:
        raise FileNotFoundError(
            f"{repository} could not be fetched from the Hub ({type(error).__name__}: {error}). Check the network and try again, "
            "or set BERT_COURSE_SOURCE=embedded to use the course's own data."
        ) from error
    tables = {split: Dataset.from_parquet(str(folder / file)).rename_columns(renamed) for split, file in files.items()}
    return DatasetDict({split: table.select_columns(list(features)).cast(features) for split, table in tables.items()})


def columns(task: str):
    """The columns of a task as `datasets.Features`."""
    from datasets import ClassLabel, Features, List, Value

    if task not in EMBEDDED:
        raise ValueError(f"no task '{task}'; the course has: {', '.join(EMBEDDED)}.")
    text = Value("string")
    if task == "passages":
        answers = {"text": List(text), "answer_start": List(Value("int32"))}
        return Features({"id": text, "title": text, "context": text, "question": text, "answers": answers})
    label = ClassLabel(names=LABELS[task])
    if task == "entities":
        return Features({"tokens": List(text), "ner_tags": List(label)})
    return Features({name: text for name in TEXTS[task]} | {"label": label})


def read(task: str, path: str | Path, labels: Sequence[str] | None = None, labelled: bool = True) -> list[dict]:
    """Rows of one file, with the columns of `load` and any others of the file; label names become ids.

    sentiment, paraphrase: CSV with a header, or JSON lines. entities: CoNLL, a token, a space and its IOB2 tag in each line
    (columns between the two are passed over) and an empty line between sentences. passages: the JSON of SQuAD.

    Args:
        labels: names of the labels, if they are not those of the course (`LABELS`).
        labelled: False if the file need not have labels or answers.
    Raises:
        ValueError: names file and line of what is missing or wrong, what was expected and what to do.
    """
    path = Path(path)
    if task not in EMBEDDED:
        raise ValueError(f"no task '{task}'; the course has: {', '.join(EMBEDDED)}.")
    labels = labels or LABELS.get(task)
    try:
        if task == "passages":
            rows = list(read_squad(path, labelled))
        elif task == "entities":
            rows = list(read_conll(path, labels, labelled))
        else:
            rows = list(read_texts(path, TEXTS[task], labels, labelled))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error.reason}). Save it as UTF-8.") from None
    if not rows:
        raise ValueError(f"{path} has no rows{' below its header' if path.suffix == '.csv' else ''}.")
    return rows


def read_texts(path: Path, texts: Sequence[str], labels: Sequence[str], labelled: bool) -> Iterator[dict]:
    ids = {name: i for i, name in enumerate(labels)}
    needed = {*texts, "label"} if labelled else {*texts}
    for where, row in csv_rows(path, needed) if path.suffix == ".csv" else json_rows(path, needed):
        if labelled and row["label"] not in labels:
            raise ValueError(f"{where}: label '{row['label']}' is not one of {', '.join(ids)}. Fix the line.")
        for name in texts:
            if not isinstance(row[name], str) or not row[name].strip():
                raise ValueError(f"{where}: the {name} is empty. Fix or delete the line.")
        yield row | ({"label": ids[row["label"]]} if labelled else {})


def csv_rows(path: Path, needed: set[str]) -> Iterator[tuple[str, dict]]:
    """(file and line, row) of a CSV file with a header."""
    with open(path, encoding="utf-8-sig", newline="") as file:  # Excel writes a byte order mark
        reader = csv.DictReader(file, strict=True)
        try:
            if missing := needed - set(reader.fieldnames or []):
                found = ", ".join(reader.fieldnames or []) or "nothing: the file is empty"
                raise ValueError(f"{path} lacks the column {' and '.join(sorted(missing))}; its first line has {found}.")
            for row in reader:
                where = f"{path} line {reader.line_num}"
                if None in row or None in row.values():
                    fields = len(reader.fieldnames)
                    raise ValueError(f"{where} does not have {fields} fields. A comma in a text needs quotes.")
                yield where, row
        except csv.Error as error:
            raise ValueError(f"{path} line {reader.line_num + 1}: {error}. Is a quote missing?") from None


def json_rows(path: Path, needed: set[str]) -> Iterator[tuple[str, dict]]:
    """(file and line, row) of a file with a JSON object in each line."""
    if path.suffix not in (".json", ".jsonl"):
        raise ValueError(f"{path}: expected a .csv file, or JSON lines in a .json or .jsonl file. Rename or convert it.")
    with open(path, encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            where = f"{path} line {number}"
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{where} is not JSON ({error}). Every line must be one whole JSON object.") from None
            if not isinstance(row, dict):
                raise ValueError(f"{where} is not a JSON object. Every line must be one, such as {{\"text\": …}}.")
            if missing := needed - row.keys():
                found = ", ".join(row) or "nothing"
                raise ValueError(f"{where} lacks {' and '.join(sorted(missing))}; it has {found}.")
            yield where, row


def read_conll(path: Path, labels: Sequence[str], labelled: bool) -> Iterator[dict]:
    ids = {name: i for i, name in enumerate(labels)}
    tokens, tags = [], []
    with open(path, encoding="utf-8-sig") as file:
        for number, line in enumerate([*file, ""], start=1):
            where = f"{path} line {number}"
            fields = re.split(r"[ \t]+", line.strip(" \t\n"))
            if fields[0] in ("", "-DOCSTART-"):
                if tokens:
                    yield {"tokens": tokens} | ({"ner_tags": [ids[tag] for tag in tags]} if labelled else {})
                tokens, tags = [], []
                continue
            tokens.append(fields[0])
            if not labelled:
                continue
            if len(fields) == 1:
                raise ValueError(f"{where}: '{line.strip()}' has no tag. Expected a token, a space and its tag.")
            tag, before = fields[-1], tags[-1] if tags else "O"
            if tag not in ids:
                raise ValueError(f"{where}: tag '{tag}' is not one of {', '.join(ids)}. Fix the line, or name your own labels.")
            if tag.startswith("I-") and before[2:] != tag[2:]:
                raise ValueError(f"{where}: {tag} follows {before}. In IOB2 a name begins with B-{tag[2:]}. Fix the line.")
            tags.append(tag)


def read_squad(path: Path, labelled: bool) -> Iterator[dict]:
    text = path.read_text(encoding="utf-8-sig")
    try:
        articles = json.loads(text)["data"]
        paragraphs = [(a.get("title", ""), p["context"], qa) for a in articles for p in a["paragraphs"] for qa in p["qas"]]
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} line {error.lineno} is not JSON: {error}.") from None
    except (KeyError, TypeError) as error:
        expected = '{"data": [{"title", "paragraphs": [{"context", "qas": […]}]}]}'
        raise ValueError(f"{path} is not in the form of SQuAD, {expected}: {type(error).__name__} {error}.") from None
    for title, context, qa in paragraphs:
        if problem := squad_problem(qa, context, labelled):
            name = qa.get("id") if isinstance(qa, dict) else qa
            line = text.count("\n", 0, max(0, text.find(json.dumps(name)))) + 1
            raise ValueError(f"{path} line {line}, question '{name}': {problem}")
        answers = {name: [answer[name] for answer in qa.get("answers", [])] for name in ("text", "answer_start")}
        yield {"id": qa["id"], "title": title, "context": context, "question": qa["question"], "answers": answers}


def squad_problem(qa: dict, context: str, labelled: bool) -> str | None:
    """What is wrong with a question of SQuAD's JSON."""
    if not isinstance(qa, dict):
        return 'it is not a JSON object. Expected {"id", "question", "answers"}.'
    if missing := {"id", "question", *(["answers"] if labelled else [])} - qa.keys():
        return f"it lacks {' and '.join(sorted(missing))}."
    for name, value in (("question", qa["question"]), ("context", context)):
        if not isinstance(value, str):
            return f"its {name} is {json.dumps(value)}, expected a text."
    answers = qa.get("answers", [])
    if not isinstance(answers, list) or not all(isinstance(answer, dict) for answer in answers):
        return f'answers is {json.dumps(answers)}, expected a list of {{"text", "answer_start"}}.'
    if labelled and bool(answers) == qa.get("is_impossible", not answers):
        return f"is_impossible is {json.dumps(bool(answers))}, but it has {len(answers)} answers. Fix one of the two."
    for answer in answers:
        text, start = answer.get("text", ""), answer.get("answer_start", -1)
        if not isinstance(text, str) or not isinstance(start, int):
            return f"an answer is {json.dumps(answer)}, expected a text and, as answer_start, a whole number."
        if not text.strip():
            return "an answer is empty. Delete it, or set is_impossible to true."
        if start < 0 or context[start:][: len(text)] != text:
            return f"at character {start} stands '{context[max(0, start):][:len(text)]}', not '{text}'. Fix answer_start."
    return None


def hold_out(rows: Sequence[dict], seed: int, share: float = 0.1) -> tuple[list[dict], list[dict]]:
    """Rows to train on and, at random, rows to validate with. Questions about one passage stay together.

    Raises:
        ValueError: if there is only one row or passage.
    """
    group_of = [row.get("context", i) for i, row in enumerate(rows)]
    groups = list(dict.fromkeys(group_of))
    if len(groups) < 2:
        what = "passage" if "context" in rows[0] else "row"
        raise ValueError(
            f"there is only one {what}, and it cannot be trained on and held out at once. "
            "Give rows to validate with: --validation FILE."
        )
    chosen = set(random.Random(seed).sample(groups, max(1, round(share * len(groups)))))
    train, held = ([row for row, group in zip(rows, group_of) if (group in chosen) == out] for out in (False, True))
    return train, held


def words(text: str) -> list[str]:
    """Words and punctuation marks, cut as in data/entities: the possessive 's is apart, "didn't" and "U.S." are whole.

    >>> words("Didn't Anna's well-kept shop in the U.S. make $3.50?")
    ["Didn't", 'Anna', "'s", 'well-kept', 'shop', 'in', 'the', 'U.S.', 'make', '$', '3.50', '?']
    """
    return re.findall(r"(?:[^\W\d_]\.){2,}|\d+(?:[.,:]\d+)+|\w+(?:[-'’](?!s\b)\w+)*|['’]s\b|\S", text)


def read_senses(path: str | Path) -> list[dict]:
    """Rows of data/senses: text, word, pos, sense, and start, the character of the text where the word begins.

    Raises:
        ValueError: names file and line where the word does not stand at that place.
    """
    with open(path, encoding="utf-8", newline="") as file:
        rows = [row | {"start": int(row["start"])} for row in csv.DictReader(file)]
    for line, row in enumerate(rows, start=2):
        if row["text"][row["start"] :][: len(row["word"])].lower() != row["word"]:
            raise ValueError(f"{path} line {line}: '{row['word']}' does not begin at character {row['start']}. Fix the line.")
    return rows


def read_cloze(path: str | Path) -> list[dict]:
    """Rows of data/cloze: text, word, other, side, and start (a character of the text), distance (words) and pair as numbers.

    Raises:
        ValueError: names file and line where the word does not stand at that place.
    """
    rows = read_senses(path)
    return [row | {name: int(row[name]) for name in ("distance", "pair")} for row in rows]
