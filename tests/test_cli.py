"""The command line and the doctor: what is broken is named, with its fix, in one line and without a traceback."""

import subprocess
import sys

import pytest

from bert_course import cli, doctor, lesson, stamp


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
