"""The command line and the doctor: what is broken is named, with its fix, in one line and without a traceback."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bert_course import cli, doctor, lesson, stamp
from bert_course.checkpoint import from_pretrained, read_tensors, save_pretrained
from bert_course.config import BertConfig
from bert_course.model import BertForPreTraining, BertForSequenceClassification
from bert_course.wordpiece import WordPieceTokenizer


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A small data/ with its SHA256SUMS, in the place of the course's own."""
    (tmp_path / "data" / "reviews").mkdir(parents=True)
    (tmp_path / "data" / "reviews" / "train.csv").write_text("text,label\n")
    monkeypatch.setattr(stamp, "ROOT", tmp_path)
    (tmp_path / "data" / "SHA256SUMS").write_text(stamp.sums())
    monkeypatch.setattr(doctor, "data_path", lambda name: tmp_path / "data" / name)
    return tmp_path / "data"


def test_doctor_passes_a_whole_data_folder(data):
    assert doctor.data_checks() == [doctor.Check("data/reviews", "1 files, whole", True, doctor.REPAIR)]


def test_doctor_finds_a_damaged_file(data):
    (data / "reviews" / "train.csv").write_text("text,lable\n")
    [row] = doctor.data_checks()
    assert not row.ok and row.found == "reviews/train.csv is damaged"


def test_doctor_finds_a_missing_file(data):
    (data / "reviews" / "train.csv").unlink()
    [row] = doctor.data_checks()
    assert not row.ok and row.found == "reviews/train.csv is missing"


def test_doctor_finds_a_missing_and_an_outdated_package(monkeypatch):
    monkeypatch.setattr(doctor.metadata, "requires", lambda name: ["no-such-package>=1", "torch>=99"])
    missing, outdated = doctor.package_versions()
    assert not missing.ok and missing.found == "not installed" and missing.fix == 'pip install "no-such-package>=1"'
    assert not outdated.ok and outdated.fix == 'pip install "torch>=99"'


@pytest.mark.parametrize("name, value", [("BERT_COURSE_SOURCE", "internet"), ("BERT_COURSE_DEVICE", "tpu")])
def test_doctor_finds_a_wrong_setting(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    [row] = [row for row in doctor.torch_checks() if not row.ok]
    assert f"{name} is '{value}'" in row.found and "Set it again" in row.fix


def test_doctor_prints_a_fix_and_exits_with_1(monkeypatch, capsys):
    rows = [doctor.Check("Python", "3.12"), doctor.Check("disk", "0.1 GiB free here", False, "free 1 GiB")]
    monkeypatch.setattr(doctor, "checks", lambda: rows)
    assert cli.main(["doctor"]) == 1
    assert capsys.readouterr().out.splitlines()[1:] == ["✗ disk                   0.1 GiB free here", f"{'':<24} fix: free 1 GiB"]


def test_doctor_exits_with_0_when_all_is_well(monkeypatch):
    monkeypatch.setattr(doctor, "checks", lambda: [doctor.Check("Python", "3.12")])
    assert cli.main(["doctor"]) == 0


def test_the_table_of_lesson_00_has_the_same_rows():
    assert list(doctor.table()["check"]) == [row.name for row in doctor.checks()]


@pytest.mark.parametrize("error, line", [
    (KeyboardInterrupt(), "bert-course: stopped"),
    (ValueError("label 'postive' is not one of negative, positive"),
     "bert-course: label 'postive' is not one of negative, positive"),
    (OSError(28, "No space left on device"), "bert-course: [Errno 28] No space left on device"),
    (ImportError("No module named 'psutil'"),
     "bert-course: No module named 'psutil'. Set the course up first: the README says how."),
])
def test_an_error_is_one_line(monkeypatch, capsys, error, line):
    def fail(args):
        raise error

    monkeypatch.setattr(cli, "doctor", fail)
    assert cli.main(["doctor"]) == 1
    assert capsys.readouterr().err == line + "\n"


def test_python_m_bert_course_runs_the_same_command_line():
    done = subprocess.run([sys.executable, "-m", "bert_course", "--help"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: bert-course")


def test_import_bert_course_is_light():
    code = "import bert_course, sys; print([name for name in ('torch', 'transformers', 'datasets') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_cuda_is_refused_where_there_is_none(monkeypatch):
    monkeypatch.setenv("BERT_COURSE_DEVICE", "cuda")
    monkeypatch.setattr(lesson.torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="no CUDA GPU. Set BERT_COURSE_DEVICE=auto or cpu"):
        lesson.device()


# finetune and predict

TEXTS = "text,label\n" + "The lamp is good,positive\nThe lamp is bad,negative\n" * 10
PAIRS = "text,text_pair,label\n" + "A lamp,It shines,paraphrase\nA lamp,It sinks,different\n" * 10
NAMES = "Ada B-PER\nmet O\nBo B-PER\n. O\n\nNew B-LOC\nYork I-LOC\nslept O\n\n" * 10
QUESTION = {"question": "Who came?", "answers": [{"text": "Ada", "answer_start": 4}]}
PASSAGES = json.dumps({"data": [
    {"paragraphs": [{"context": f"Now Ada came at {i}.", "qas": [QUESTION | {"id": str(i)}]}]} for i in range(20)
]})
OWN = {
    "sentiment": ("a.csv", TEXTS),
    "paraphrase": ("a.csv", PAIRS),
    "entities": ("a.conll", NAMES),
    "passages": ("a.json", PASSAGES),
}


@pytest.fixture
def tiny(tmp_path):
    """A folder with a tiny checkpoint, whose pieces are single characters."""
    letters = "abcdefghijklmnopqrstuvwxyz.,?!'"
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *("##" + letter for letter in letters)]
    config = BertConfig(len(pieces), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    save_pretrained(BertForPreTraining(config), tmp_path / "tiny")
    WordPieceTokenizer(pieces).save_pretrained(tmp_path / "tiny")
    return str(tmp_path / "tiny")


@pytest.fixture
def tuned(tiny, tmp_path, capsys):
    """Fine-tune on files of one's own; the folder of the model."""

    def run(task, *options):
        name, text = OWN[task]
        (tmp_path / name).write_text(text)
        command = ["finetune", "--task", task, "--train", str(tmp_path / name), "--model", tiny, "--epochs", "2"]
        assert cli.main([*command, "--output", str(tmp_path / "out"), "--batch-size", "8", *options]) == 0
        return str(tmp_path / "out")

    return run


def test_a_checkpoint_reads_on_with_its_own_vocabulary(tiny, tmp_path, capsys):
    text = "\n\n".join(f"Shelf {n} holds a lamp. It shines at night.\nNobody reads there." for n in range(40))
    (tmp_path / "own.txt").write_text(text)
    command = ["pretrain", "--model", tiny, "--corpus", str(tmp_path / "own.txt"), "--output", str(tmp_path / "out")]
    assert cli.main([*command, "--steps", "1"]) == 1
    assert "--model needs a --learning-rate" in capsys.readouterr().err
    assert cli.main([*command, "--steps", "1", "--learning-rate", "1e-3", "--vocab-size", "60"]) == 1
    assert "--model takes no --vocab-size: the checkpoint brings its own." in capsys.readouterr().err
    assert cli.main([*command, "--steps", "1", "--learning-rate", "1e-3"]) == 0
    for name in ("vocab.txt", "config.json"):
        assert (tmp_path / "out" / name).read_text() == Path(tiny, name).read_text()
    before, after = (read_tensors(Path(folder, "model.safetensors")) for folder in (tiny, tmp_path / "out"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)  # the first step's learning rate is zero
    resume = ["pretrain", "--resume", "--corpus", str(tmp_path / "own.txt"), "--output", str(tmp_path / "out"), "--steps", "2"]
    assert cli.main(resume) == 0
    recipe = json.loads((tmp_path / "out" / "training_state.json").read_text())["recipe"]
    assert (recipe["learning_rate"], recipe["phases"], recipe["steps"]) == (1e-3, [[1.0, 128, 0.15, 4096]], 2)
    assert cli.main([*resume, "--seed", "1"]) == 1
    assert "a run with seed 0, not 1; resume with the same." in capsys.readouterr().err


SAID = {
    "sentiment": (["--text", "The lamp is good"], {"text", "prediction", "scores"}),
    "paraphrase": (["--text", "A lamp", "--text-pair", "It shines"], {"text", "text_pair", "prediction", "scores"}),
    "entities": (["--text", "Ada met Bo."], {"text", "tokens", "tags", "entities"}),
    "passages": (["--question", "Who?", "--context", "Now Ada came."], {"question", "answer", "candidates"}),
}


@pytest.mark.parametrize("task", OWN)
def test_a_model_tuned_on_own_files_answers_in_json(task, tuned, tmp_path, capsys):
    folder = tuned(task)
    out, err = capsys.readouterr()
    history = [json.loads(line) for line in out.splitlines()]
    assert [epoch["epoch"] for epoch in history] == [1, 2] and "loss" in history[0]
    assert f"No --validation: 2 rows of {tmp_path / OWN[task][0]} are held out for it." in err
    assert f"is in {folder}." in err
    given, columns = SAID[task]
    assert cli.main(["predict", "--model", folder, *given]) == 0
    [answer] = map(json.loads, capsys.readouterr().out.splitlines())
    assert answer.keys() == columns
    assert cli.main(["predict", "--model", folder, "--file", str(tmp_path / OWN[task][0])]) == 0
    answers = list(map(json.loads, capsys.readouterr().out.splitlines()))
    assert len(answers) == 20 and answers[0].keys() >= columns


def test_own_labels_are_learned_and_named(tuned, tmp_path, capsys):
    (tmp_path / "b.csv").write_text(TEXTS.replace("positive", "fine").replace("negative", "poor"))
    folder = tuned("sentiment", "--train", str(tmp_path / "b.csv"), "--labels", "poor,so-so,fine")
    capsys.readouterr()
    assert cli.main(["predict", "--model", folder, "--text", "The lamp"]) == 0
    assert json.loads(capsys.readouterr().out)["scores"].keys() == {"poor", "so-so", "fine"}


@pytest.mark.parametrize("task, labels, complaint", [
    ("passages", "yes,no", "--labels is 'yes,no', but passages have answers, not labels. Leave it out."),
    ("sentiment", "", "--labels is '', expected at least two different names with commas between."),
    ("sentiment", "good", "--labels is 'good', expected at least two different names with commas between."),
    ("paraphrase", "no,yes,no", "--labels is 'no,yes,no', expected at least two different names with commas between."),
    ("entities", "O,B-CITY,CITY", "--labels is 'O,B-CITY,CITY', expected O and, for each type of names, B-TYPE and I-TYPE, "
     "as in O,B-CITY,I-CITY."),
])
def test_labels_that_do_not_suit_the_task_are_refused(capsys, task, labels, complaint):
    assert cli.main(["finetune", "--task", task, "--train", "nowhere", "--labels", labels, "--output", "nowhere"]) == 1
    assert capsys.readouterr().err == f"bert-course: {complaint}\n"


def test_tags_of_your_own_are_learned(tuned, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(OWN, "entities", ("a.conll", NAMES.replace("PER", "WHO")))
    folder = tuned("entities", "--labels", "O,B-WHO,B-LOC,I-LOC")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["id2label"]["1"] == "B-WHO" and folder


@pytest.mark.parametrize("given, complaint", [
    (["--text", "A"], "is one for paraphrase: give it --text and --text-pair, or --file."),
    (["--question", "A", "--context", "B"], "is one for paraphrase: give it --text and --text-pair, or --file."),
    ([], "is one for paraphrase: give it --text and --text-pair, or --file."),
    (["--text", "A", "--text-pair", "B", "--file", "c.csv"], "is one for paraphrase: give it --text and --text-pair, or --file."),
    (["--file", "nowhere.csv"], "No such file or directory: 'nowhere.csv'"),
])
def test_predict_says_what_the_model_wants(tiny, tmp_path, capsys, given, complaint):
    model = from_pretrained(BertForSequenceClassification, tiny, new_head=True, id2label={0: "different", 1: "paraphrase"})
    save_pretrained(model, tiny)
    assert cli.main(["predict", "--model", tiny, *given]) == 1
    assert capsys.readouterr().err.endswith(complaint + "\n")


@pytest.mark.parametrize("command, complaint", [
    (["predict", "--model", "TINY", "--text", "A"], "holds a BertForPreTraining. Fine-tune it first: bert-course finetune."),
    (["predict", "--model", "nowhere", "--text", "A"], "no folder 'nowhere' with a checkpoint"),
    (["finetune", "--task", "sentiment", "--train", "BROKEN", "--output", "OUT"],
     "broken.csv line 3: label 'postive' is not one of negative, positive. Fix the line."),
    (["finetune", "--task", "sentiment", "--validation", "BROKEN", "--output", "OUT"], "go with --train FILE."),
    (["finetune", "--task", "sentiment", "--train", "SINGLE", "--output", "OUT"],
     "there is only one row, and it cannot be trained on and held out at once. Give rows to validate with: --validation FILE."),
    (["finetune", "--task", "sentiment", "--output", "OUT", "--model", "TINY", "--resume"], "holds no checkpoint to resume."),
])
def test_what_is_wrong_is_one_line(tiny, tmp_path, capsys, command, complaint):
    places = {"TINY": tiny} | {name: str(tmp_path / f"{name.lower()}.csv") for name in ("BROKEN", "SINGLE", "OUT")}
    Path(places["BROKEN"]).write_text("text,label\nA,positive\nB,postive\n")
    Path(places["SINGLE"]).write_text("text,label\nA,positive\n")
    assert cli.main([places.get(word, word) for word in command]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("bert-course: ") and complaint in line
