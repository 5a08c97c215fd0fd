"""The study of public benchmarks, on made-up files in their formats."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from bert_course import cli, data_path, finetuning
from bert_course.checkpoint import save_pretrained
from bert_course.config import BertConfig
from bert_course.inputs import batch, encode
from bert_course.model import BertForPreTraining
from bert_course.studies import benchmarks
from bert_course.studies.benchmarks import BENCHMARKS
from bert_course.wordpiece import WordPieceTokenizer

SST_2, MRPC, STS_B, WIC, WNUT17 = (BENCHMARKS[name] for name in ("SST-2", "MRPC", "STS-B", "WiC", "WNUT17"))
KINDS = ["pretrained", "transformers", "random", "bag of words", "bag of differences", "rule"]


def lines(*rows):
    return "".join("\t".join(row) + "\n" for row in rows)


def squad(context, question, answer):
    qa = {"id": question, "question": question, "answers": [{"text": answer, "answer_start": context.index(answer)}]}
    return json.dumps({"data": [{"title": "", "paragraphs": [{"context": context, "qas": [qa] * 4}]}]})


@pytest.fixture
def folder(tmp_path):
    """Every benchmark, four rows in each split."""
    names = "Old\tO\nTom\tB-{0}\nCat\tI-{0}\n\nlamp\tO\n\n" * 2
    pair = ("2-1", "a good old lamp", "an old tent")
    files = {
        "sst2": lines(("sentence", "label"), *[("a good lamp", "1"), ("a bad tent", "0")] * 2),
        "cola": lines(("sentence", "label", "source"), *[("a good lamp", "1", "x"), ("lamp a bad", "0", "x")] * 2),
        "mrpc": lines(("Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"),
                      *[("1", "5", "6", 'a "good" lamp', '"a good lamp'), ("0", "7", "8", "a tent", "bad lamp")] * 2),
        "stsb": lines(("sentence1", "sentence2", "score"),
                      ("a tent", "a tent", "5.000"), ("a lamp", "bad tent", "1.250"), ("a", "b", "0.000"), ("c", "c d", "3.500")),
        "wic": lines(("word", "pos", "idx", "sentence1", "sentence2", "label"),
                     *[("old", "A", *pair, "T"), ("old", "A", *pair, "F")] * 2),
    }
    for name, text in files.items():
        (tmp_path / name).mkdir()
        for split in ("train", "dev", "test"):
            (tmp_path / name / f"{split}.tsv").write_text(text, encoding="utf-8")
    for benchmark, type_ in ((WNUT17, "person"), (BENCHMARKS["WikiANN, 2,000 sentences"], "PER")):
        for file in (benchmark.train, benchmark.test):
            (tmp_path / file).parent.mkdir(exist_ok=True)
            (tmp_path / file).write_text(names.format(type_), encoding="utf-8")
    passages = BENCHMARKS["XQuAD, 2,000 questions"]
    for file in (passages.train, passages.test):
        (tmp_path / file).parent.mkdir()
        (tmp_path / file).write_text(squad("A lamp is old. A tent is good.", "What is a tent?", "good"), encoding="utf-8")
    return tmp_path


@pytest.fixture(scope="module")
def tokenizer():
    letters = "abcdefghijklmnopqrstuvwxyz?.\""
    return WordPieceTokenizer(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *("##" + letter for letter in letters)])


@pytest.fixture(scope="module")
def checkpoint(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    save_pretrained(BertForPreTraining(BertConfig(vocab_size=tokenizer.vocab_size, **shape)), folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def quick(monkeypatch):
    """All benchmarks with one epoch, and samples of three rows."""
    for name, benchmark in BENCHMARKS.items():
        monkeypatch.setitem(BENCHMARKS, name, replace(benchmark, epochs=1, size=benchmark.size and 3))


# ---- reading


def test_quotes_are_characters_and_open_nothing(folder):
    rows = MRPC.read(folder / MRPC.train, MRPC.labels)
    assert rows[:2] == [{"text": 'a "good" lamp', "text_pair": '"a good lamp', "label": 1},
                        {"text": "a tent", "text_pair": "bad lamp", "label": 0}]
    assert len(rows) == 4


def test_a_single_label_is_a_number(folder):
    assert [row["label"] for row in STS_B.read(folder / STS_B.train, STS_B.labels)] == [5.0, 1.25, 0.0, 3.5]


@pytest.mark.parametrize("text, problem", [
    ("sentence\tscore\na lamp\t1\n", "lacks the column label; its first line has sentence, score"),
    ("sentence\tlabel\na lamp\t1\na\ttent\t0\n", "line 3 has 3 columns, not 2"),
    ("sentence\tlabel\na lamp\t2\n", "line 2: label '2' is not one of 0, 1"),
])
def test_a_bad_table_is_named_with_its_line(tmp_path, text, problem):
    (tmp_path / "train.tsv").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=f"train.tsv {problem}"):
        SST_2.read(tmp_path / "train.tsv", SST_2.labels)


def test_the_word_in_question_is_quoted_where_it_stands(folder):
    rows = WIC.read(folder / WIC.train, WIC.labels)
    assert rows[0] == {"text": 'a good " old " lamp', "text_pair": 'an " old " tent', "label": 1}
    assert rows[1]["label"] == 0


def test_names_lose_their_language_and_lists_are_left_out(tmp_path):
    (tmp_path / "train").write_text("en:Tom\tB-PER\nen:,\tO\n\n" + "en:a\tO\n" * 251, encoding="utf-8")
    [row] = benchmarks.read_names(tmp_path / "train", ["O", "B-PER", "I-PER"])
    assert row == {"tokens": ["Tom", ","], "ner_tags": [1, 0]}


# ---- what needs no network


def test_differences_keep_shared_words_apart():
    assert benchmarks.differences({"text": "The old lamp", "text_pair": "LAMP isn't"}) == "one_isn't both_lamp one_old one_the"


def test_counting_sees_which_words_both_texts_have():
    pairs = [("old bad", "old bad", 1), ("old old", "bad bad", 0)]
    train = [{"text": a, "text_pair": b, "label": label} for a, b, label in pairs] * 5
    bags = benchmarks.baselines(MRPC)
    assert list(bags["bag of differences"](train, train)) == [row["label"] for row in train]
    assert len(set(bags["bag of words"](train, train))) == 1  # the same words for either


def test_counting_gives_a_number_where_one_is_asked_for():
    train = [{"text": "old", "text_pair": "tent", "label": 4.0}, {"text": "bad", "text_pair": "lamp", "label": 1.0}]
    for kind in ("bag of words", "bag of differences"):
        high, low = benchmarks.baselines(STS_B)[kind](train, train)
        assert 4 > high > 2.5 > low > 1


def test_the_rules():
    assert benchmarks.most_frequent_label([{"label": 1}, {"label": 0}, {"label": 1}], [{}] * 2) == [1, 1]
    assert benchmarks.overlaps([], [{"text": "A b", "text_pair": "b c"}]) == [1 / 3]
    train = [{"tokens": ["Tom", "Tom", "old"], "ner_tags": [1, 1, 0]}, {"tokens": ["Tom"], "ner_tags": [0]}]
    assert benchmarks.usual_tags(["O", "B-PER"], train, [{"tokens": ["old", "Tom", "Ann"]}]) == [["O", "B-PER", "O"]]
    question = {"context": "A lamp is old. A tent is good.", "question": "What is a tent?"}
    assert benchmarks.most_shared(question) == "A tent is good."


def test_scores_of_classes_and_numbers():
    rows = [{"label": label} for label in (1, 1, 1, 0)]
    scores = benchmarks.score(MRPC, rows, [1, 1, 0, 0])
    assert (scores["accuracy"], scores["f1"], scores["matthews"]) == (0.75, 0.8, 0.5774)
    assert 0 <= scores["low"] < 0.75 < scores["high"] <= 1
    assert benchmarks.score(MRPC, rows, [1, 1, 1, 1])["matthews"] == 0
    scores = benchmarks.score(STS_B, [{"label": float(label)} for label in (0, 1, 2)], [0, 1, 8])
    assert scores == {"pearson": 0.9177, "spearman": 1.0}


# ---- models


@pytest.mark.parametrize("name", ["MRPC", "STS-B", "WNUT17", "XQuAD, 2,000 questions"])
def test_the_network_of_transformers_starts_from_the_same_weights(name, checkpoint, tokenizer):
    labels = {"id2label": dict(enumerate(BENCHMARKS[name].labels or "ab"))}
    ours = finetuning.start_from(BENCHMARKS[name].task, checkpoint, **labels)
    theirs = benchmarks.in_transformers(ours).eval()
    assert type(theirs).__module__.startswith("transformers.")
    inputs = batch([encode(tokenizer, "a lamp", "old"), encode(tokenizer, "tent")])
    with torch.no_grad():
        for one, other in zip(ours.eval()(**inputs).values(), theirs(**inputs).to_tuple(), strict=True):
            real = inputs["attention_mask"].bool() if one.shape[:2] == inputs["input_ids"].shape else ...
            torch.testing.assert_close(one[real], other[real])


def test_every_question_gets_an_answer(checkpoint, tokenizer, monkeypatch):
    monkeypatch.setattr(finetuning, "fine_tune", lambda *args, **settings: None)
    monkeypatch.setattr(finetuning, "predict", lambda *args: [[{"text": ""}, {"text": "good"}, {"text": "a lamp"}]])
    benchmark = BENCHMARKS["XQuAD, 2,000 questions"]
    assert benchmarks.fine_tuned("pretrained", benchmark, checkpoint, tokenizer, [], [{}], seed=0) == ["good"]


# ---- the study


@pytest.fixture
def trained(monkeypatch):
    """(task, seed) of every run that is trained."""
    found, fine_tune = [], finetuning.fine_tune

    def spy(task, *args, **settings):
        found.append((task, settings["seed"]))
        return fine_tune(task, *args, **settings)

    monkeypatch.setattr(finetuning, "fine_tune", spy)
    return found


def test_every_benchmark_has_every_kind_and_no_text_is_kept(folder, checkpoint, quick, tmp_path):
    output = tmp_path / "s.json"
    result = benchmarks.study_benchmarks(output, 1, folder, checkpoint)
    assert json.loads(output.read_text()) == result
    found = {(run["benchmark"], run["kind"]) for run in result["runs"]}
    pairs = {name for name, benchmark in BENCHMARKS.items() if benchmark.task == "paraphrase"}
    words = pairs | {name for name, benchmark in BENCHMARKS.items() if benchmark.task == "sentiment"}
    lacking = {"bag of differences": pairs, "bag of words": words}
    assert found == {(name, kind) for kind in KINDS for name in lacking.get(kind, BENCHMARKS)}
    for run in result["runs"]:
        assert BENCHMARKS[run["benchmark"]].scores.keys() <= run["scores"].keys()
        assert run["rows"] == [3 if BENCHMARKS[run["benchmark"]].size else 4, 4]
    assert "lamp" not in output.read_text() and "tent" not in output.read_text()


def test_a_stopped_study_goes_on_where_it_stopped(folder, checkpoint, quick, tmp_path, trained, monkeypatch, capsys):
    monkeypatch.setattr(benchmarks, "BENCHMARKS", {name: BENCHMARKS[name] for name in ("SST-2, 1,000 examples", "MRPC")})
    output = tmp_path / "s.json"
    benchmarks.study_benchmarks(output, 1, folder, checkpoint)
    assert trained == [("sentiment", 0)] * 3 + [("paraphrase", 0)] * 3
    first = json.loads(output.read_text())["runs"]
    trained.clear()
    result = benchmarks.study_benchmarks(output, 2, folder, checkpoint)
    assert trained == [("sentiment", 1)] * 2 + [("paraphrase", 1)] * 2 + [("sentiment", 1), ("paraphrase", 1)]
    assert result["runs"][: len(first)] == first
    bags = [(run["benchmark"], run["seed"]) for run in result["runs"] if run["kind"] == "bag of words"]
    assert bags == [("SST-2, 1,000 examples", 0), ("MRPC", 0), ("SST-2, 1,000 examples", 1)]  # the sample differs; MRPC's is all
    monkeypatch.setitem(benchmarks.BENCHMARKS, "MRPC", replace(BENCHMARKS["MRPC"], epochs=2))
    with pytest.raises(ValueError, match="MRPC was made with other data or settings"):
        benchmarks.study_benchmarks(output, 2, folder, checkpoint)
    (folder / "mrpc" / "test.tsv").unlink()
    assert benchmarks.study_benchmarks(output, 2, folder, checkpoint) == result  # and nothing is asked of MRPC
    assert f"MRPC is left out: {folder} lacks mrpc/train.tsv or mrpc/test.tsv" in capsys.readouterr().err
    with pytest.raises(ValueError, match="has none of the benchmarks: SST-2, 1,000 examples, MRPC"):
        benchmarks.study_benchmarks(output, 2, folder / "wic", checkpoint)


def test_both_paths_learn_the_same(folder, checkpoint, tokenizer):
    rows = SST_2.read(folder / SST_2.train, SST_2.labels) * 4
    answers = []
    for kind in ("pretrained", "transformers"):
        torch.manual_seed(0)
        model = finetuning.start_from("sentiment", checkpoint, **benchmarks.NO_DROPOUT)
        model = benchmarks.in_transformers(model) if kind == "transformers" else model
        before = finetuning.predict("sentiment", model, tokenizer, rows)
        settings = {"epochs": 10, "batch_size": 4, "learning_rate": 1e-2}
        finetuning.fine_tune("sentiment", model, tokenizer, rows, rows[:2], **settings)
        answers.append(finetuning.predict("sentiment", model, tokenizer, rows))
        assert np.abs(answers[-1] - before).max() > 0.1
    np.testing.assert_allclose(*answers, atol=1e-3)


# ---- the command


def test_the_command_prints_means_and_ranges(folder, checkpoint, quick, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(benchmarks, "BENCHMARKS", {name: BENCHMARKS[name] for name in ("SST-2, 1,000 examples", "MRPC")})
    output = tmp_path / "s.json"
    command = ["evaluate", "--model", str(checkpoint), "--tasks", str(folder), "--seeds", "2", "--output", str(output)]
    assert cli.main(command) == 0
    header, rule, *rows = capsys.readouterr().out.splitlines()
    cells = [[cell.strip() for cell in row.split("|")[1:-1]] for row in (header, *rows)]
    assert cells[0] == ["", *KINDS, "BERT-Tiny", "BERT-Mini"]
    assert [row[0] for row in cells[1:]] == ["SST-2, 1,000 examples: accuracy", "MRPC: accuracy", "MRPC: f1"]
    assert cells[3][-2:] == ["81.1", "81.1"] and cells[1][5] == ""  # one text has no differences
    runs = json.loads(output.read_text())["runs"]
    f1 = [100 * run["scores"]["f1"] for run in runs if run["benchmark"] == "MRPC" and run["kind"] == "random"]
    assert cells[3][3] == f"{sum(f1) / 2:.1f} ({min(f1):.1f}–{max(f1):.1f})"


@pytest.mark.parametrize("options, problem", [
    (["--tasks", ".", "--corpus", "docstrings"], "--corpus is for the held-out scores"),
    (["--seeds", "2"], "--seeds and --output go with --tasks FOLDER"),
    (["--output", "x.json"], "--seeds and --output go with --tasks FOLDER"),
])
def test_options_that_do_nothing_are_refused(options, problem, capsys):
    assert cli.main(["evaluate", *options]) == 1
    assert problem in capsys.readouterr().err


# ---- what is stored


def test_the_card_shows_the_table_of_the_stored_runs():
    result = json.loads((data_path("studies") / "benchmarks.json").read_text(encoding="utf-8"))
    assert benchmarks.table(result) in (data_path("bert-course-mini") / "README.md").read_text(encoding="utf-8")


def test_our_code_and_transformers_agree_on_the_stored_benchmarks():
    runs = json.loads((data_path("studies") / "benchmarks.json").read_text(encoding="utf-8"))["runs"]
    scores = {(run["benchmark"], run["seed"], run["kind"]): run["scores"] for run in runs}
    others = {run[:2]: found for run, found in scores.items() if run[2] == "transformers"}
    assert len(others) >= 4
    for (name, seed), theirs in others.items():
        assert scores[name, seed, "pretrained"] == pytest.approx(theirs, abs=0.01)
