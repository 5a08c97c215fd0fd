"""The course can be set up: pinned versions, conda, the set-up cell where the course is missing, and no network."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
from pathlib import Path

import nbformat
import pytest
import yaml
from nbclient import NotebookClient
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from bert_course import __version__, stamp

ROOT = stamp.ROOT
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CONSTRAINTS = (ROOT / "constraints.txt").read_text(encoding="utf-8")
PINS = {canonicalize_name(name): version for name, version in re.findall(r"^([\w.-]+)==(.+)$", CONSTRAINTS, re.M)}


def test_the_version_is_the_packages():
    assert __version__ == PROJECT["version"]


@pytest.mark.parametrize("requirement", [
    Requirement(line) for line in [*PROJECT["dependencies"], *sum(PROJECT["optional-dependencies"].values(), [])]
], ids=str)
def test_every_requirement_is_pinned_inside_its_range(requirement):
    assert requirement.specifier.contains(PINS[canonicalize_name(requirement.name)])


def test_every_constraint_is_one_exact_version():
    lines = [line for line in CONSTRAINTS.splitlines() if line and not line.startswith("#")]
    assert len(lines) == len(PINS)
    assert not [line for line in lines if "+" in line]  # torch==2.13.0 stands for the CPU and for every CUDA build


def test_conda_installs_what_make_installs():
    *_, pip = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))["dependencies"]
    installs = re.search(r"pip install (.+)", (ROOT / "Makefile").read_text(encoding="utf-8"))[1]
    assert " ".join(pip["pip"]) == installs.replace('"', "")


@pytest.mark.skipif(sys.platform == "win32", reason="builds the new environment from symbolic links")
def test_the_setup_cell_installs_the_course_and_only_the_course(tmp_path):
    """In a fresh environment that has everything but the course, from a git address, as in Colab."""
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "LICENSE-CC-BY-4.0", "bert_course", "data"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    identity = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    for command in (["init", "--quiet"], ["add", "--all"], [*identity, "commit", "--quiet", "--message", "course"]):
        subprocess.run(["git", *command], cwd=source, check=True)
    subprocess.run(["git", "clone", "--quiet", "--bare", source, tmp_path / "course.git"], check=True)

    colab = tmp_path / "colab"
    venv.create(colab, symlinks=True)
    python = colab / "bin" / "python"
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(colab)}))
    for package in Path(sysconfig.get_path("purelib")).iterdir():
        if "bert_course" not in package.name:
            (packages / package.name).symlink_to(package)
    before = set(packages.iterdir())

    cell = stamp.setup_cell().replace(stamp.address(), (tmp_path / "course.git").as_uri())
    cell = cell.replace("%pip install", "%pip install --no-index --no-build-isolation")  # no network in tests
    proof = """
import bert_course
from bert_course.doctor import data_checks
print("INSTALLED", bert_course.__file__, bert_course.data_path(), all(check.ok for check in data_checks()))"""
    (tmp_path / "cell.ipy").write_text(cell + proof)
    environment = os.environ | {"PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": "", "IPYTHONDIR": str(tmp_path)}
    done = subprocess.run([python, "-m", "IPython", "cell.ipy"], cwd=tmp_path, env=environment, capture_output=True, text=True)

    course = packages / "bert_course"
    assert f"INSTALLED {course / '__init__.py'} {course / 'data'} True" in done.stdout, done.stdout + done.stderr
    new = {path.name for path in set(packages.iterdir()) - before}
    assert new == {"bert_course", f"bert_course-{__version__}.dist-info"}
    assert all(path.is_symlink() for path in before)  # torch, numpy and the rest are untouched


CONNECT = "import socket; socket.create_connection(('192.0.2.1', 80), timeout=5)"
RESOLVE = "import socket; socket.getaddrinfo('example.org', 80)"


@pytest.mark.parametrize("code", [CONNECT, RESOLVE])
def test_a_unit_test_cannot_reach_the_network(code):
    with pytest.raises(OSError, match="tests run offline"):
        exec(code)


@pytest.mark.parametrize("code", [CONNECT, RESOLVE])
def test_a_lesson_cannot_reach_the_network(code):
    lesson = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    NotebookClient(lesson, kernel_name="python3", allow_errors=True).execute()
    [output] = lesson.cells[0].outputs
    assert output.ename == "OSError" and output.evalue.startswith("tests run offline")
