"""For the course's authors: writes what several files must agree on.

The repository's address stands in pyproject.toml. From there it goes into the set-up cell and the Colab badge of every
lesson and into the README. data/SHA256SUMS lists every file of data/.
"""

import re
import tomllib
from pathlib import Path

import nbformat

from bert_course.doctor import sha256

ROOT = Path(__file__).parent.parent

SETUP_CELL = """\
import importlib.util
if importlib.util.find_spec("bert_course") is None:  # in Colab
    %pip install -q git+{address}
from bert_course import lesson
lesson.setup()"""

BADGE = "[![Open in Colab](images/colab-badge.svg)](https://colab.research.google.com/github/{repository}/blob/main/{path})"


def address() -> str:
    if not (ROOT / "pyproject.toml").is_file():
        raise ValueError(f"{ROOT} has no pyproject.toml: `stamp` works in a clone of the course, installed with `make lab`.")
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]["Repository"]


def lessons() -> list[Path]:
    return sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))


def stamped_lesson(path: Path) -> str:
    """The lesson's text with the badge and the set-up cell as they must be.

    Raises:
        ValueError: if the lesson has no place for them.
    """
    lesson = nbformat.read(path, as_version=4)
    title = lesson.cells[0]
    title.source, badges = re.subn(r"^\[!\[.*?colab\.research\.google\.com.*\)$", badge(path), title.source, flags=re.M)
    setup = next((cell for cell in lesson.cells if cell.cell_type == "code"), None)
    if badges != 1:
        raise ValueError(f"{path}: the first cell has {badges} Colab badges, expected 1. Give it the line\n{badge(path)}")
    if setup is None or "lesson.setup()" not in setup.source:
        raise ValueError(f"{path}: the first code cell is not the set-up cell. Make it\n{setup_cell()}")
    setup.source = setup_cell()
    return nbformat.writes(lesson) + "\n"


def badge(path: Path) -> str:
    return BADGE.format(repository=address().removeprefix("https://github.com/"), path=path.relative_to(ROOT).as_posix())


def setup_cell() -> str:
    return SETUP_CELL.format(address=address())


def stamped_readme() -> str:
    """The README with this repository's address in its clone command and in its Colab badges."""
    repository = address().removeprefix("https://github.com/")
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    text = re.sub(r"(?<=git clone )\S+", address(), text)
    return re.sub(r"(?<=colab\.research\.google\.com/github/)[^/]+/[^/]+", repository, text)


def sums() -> str:
    """One line for each file of data/, as `sha256sum` writes it."""
    data = ROOT / "data"
    files = sorted(path for path in data.rglob("*") if path.is_file() and path.name != "SHA256SUMS")
    return "".join(f"{sha256(path)}  {path.relative_to(data).as_posix()}\n" for path in files)


def stale() -> dict[Path, str]:
    """The files that are out of date, and the text each should have."""
    wanted = {path: stamped_lesson(path) for path in lessons()}
    wanted |= {ROOT / "README.md": stamped_readme(), ROOT / "data" / "SHA256SUMS": sums()}
    return {path: text for path, text in wanted.items() if not path.is_file() or path.read_text(encoding="utf-8") != text}
