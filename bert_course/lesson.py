"""What a lesson needs besides BERT: set-up, device, source, seed and quizzes."""

import os
import random
import warnings
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import torch

from bert_course import data_path

__all__ = ["data_path", "device", "pick", "quiz", "seed", "setup", "source"]

T = TypeVar("T")

# Okabe and Ito's palette: told apart with every kind of colour vision.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]


def setup() -> None:
    """Make a lesson quiet, repeatable and readable. The set-up cell calls it, before any other import."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    if source() == "embedded":
        os.environ["HF_HUB_OFFLINE"] = "1"
        os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    else:
        print("BERT_COURSE_SOURCE=hub: lessons 12 to 15 end on a model and data from the Hub; all before uses the course's own.")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DATASETS_VERBOSITY", "error")
    warnings.filterwarnings("ignore", message="IProgress not found")  # tqdm, where there is no ipywidgets
    seed(0)

    import matplotlib as mpl

    mpl.rcParams.update({
        "axes.prop_cycle": mpl.cycler(color=COLOURS),
        "axes.spines.right": False,
        "axes.spines.top": False,
        "figure.dpi": 100,
        "figure.figsize": (7, 4),
        "figure.constrained_layout.use": True,
    })


def source() -> str:
    """Where data and checkpoints come from: "embedded" (this course's data/) or "hub" (the Hugging Face Hub).

    Set by BERT_COURSE_SOURCE; embedded unless told otherwise.
    """
    return environment("BERT_COURSE_SOURCE", ("embedded", "hub"))


def device() -> torch.device:
    """The device a lesson runs on, set by BERT_COURSE_DEVICE: auto (a CUDA GPU if there is one), cpu or cuda.

    Raises:
        ValueError: if cuda is asked for and there is none.
    """
    wanted = environment("BERT_COURSE_DEVICE", ("auto", "cpu", "cuda"))
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ValueError("BERT_COURSE_DEVICE is cuda, but torch sees no CUDA GPU. Set BERT_COURSE_DEVICE=auto or cpu.")
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")


def environment(name: str, allowed: Sequence[str]) -> str:
    value = os.environ.get(name) or allowed[0]
    if value not in allowed:
        raise ValueError(f"{name} is '{value}', expected one of {', '.join(allowed)}. Set it again, or unset it.")
    return value


def pick(cpu: T, gpu: T) -> T:
    """The amount of work for this device, so that a GPU run is a bigger run of the same cells.

    >>> steps = pick(cpu=300, gpu=5000)
    """
    return gpu if device().type == "cuda" else cpu


def seed(value: int) -> None:
    """Seed Python, NumPy and torch (every device)."""
    random.seed(value)
    np.random.seed(value)
    torch.manual_seed(value)


def quiz(question: str, options: Sequence[str], answer: str, why: str) -> Callable[[str], None]:
    """Print a question with its options a), b), …; return the function that checks a choice.

    >>> check = quiz("How many sentences fit in one input?", ["one", "two"], answer="b", why="[SEP] stands between them.")
    How many sentences fit in one input?
      a) one
      b) two
    >>> check("a")
    a) is not it. Try again.
    >>> check("b")
    Yes, b). [SEP] stands between them.
    """
    letters = list("abcdefghij"[: len(options)])
    if answer not in letters:
        raise ValueError(f"answer is '{answer}', expected one of {', '.join(letters)}.")
    print(question)
    for letter, option in zip(letters, options, strict=True):
        print(f"  {letter}) {option}")

    def check(choice: str) -> None:
        if choice not in letters:
            raise ValueError(f"choice is '{choice}', expected one of {', '.join(letters)}.")
        print(f"Yes, {choice}). {why}" if choice == answer else f"{choice}) is not it. Try again.")

    return check
