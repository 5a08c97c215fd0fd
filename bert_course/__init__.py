"""BERT Course: the BERT that the lessons read, pretrain, fine-tune and measure."""

from pathlib import Path

__version__ = "0.1.0"


def data_path(name: str = "") -> Path:
    """The course's own dataset or checkpoint `name`: in data/ of a clone, or inside the installed package.

    >>> data_path("SHA256SUMS").name
    'SHA256SUMS'

    Raises:
        FileNotFoundError: if the course has no such data.
    """
    package = Path(__file__).parent
    installed = package / "data"
    root = installed if installed.is_dir() else package.parent / "data"
    if not (root / name).exists():
        there = ", ".join(sorted(path.name for path in root.glob("*"))) or "nothing"
        raise FileNotFoundError(f"The course has no data '{name}' in {root}, which holds {there}. See `bert-course doctor`.")
    return root / name
