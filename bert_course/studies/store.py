"""One JSON file for each study: runs are stored as they are done, and those of other data or settings are not mixed in."""

import hashlib
import json
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import numpy as np
import torch

from ..doctor import processor
from ..files import read_json, replacing


def opened(output: Path, made_from: str) -> dict:
    """The study so far, or an empty one."""
    if not output.exists():
        return {"made_from": made_from, "runs": []}
    result = read_json(output)
    if result.get("made_from") != made_from:
        raise ValueError(f"{output} was made with another checkpoint, data or settings. Move it away to measure anew.")
    return result


def store(output: Path, result: dict, run: dict, where: str = "runs") -> None:
    result.setdefault(where, []).append(run)
    hardware = f"{processor()}, {torch.get_num_threads()} threads"
    result |= {"date": date.today().isoformat(), "torch": torch.__version__, "hardware": hardware}
    with replacing(output) as path:
        path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def fingerprint(*paths: Path) -> str:
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()[:16]


def mean_and_range(values: Sequence[float], digits: int = 1) -> str:
    if not values:
        return ""
    spread = f" ({min(values):.{digits}f}–{max(values):.{digits}f})" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{spread}"


def markdown(lines: list[list[str]]) -> str:
    """A table whose first line is its head: text in the first column, numbers in the others."""
    rule = ["---", *["---:"] * (len(lines[0]) - 1)]
    return "\n".join(f"| {' | '.join(line)} |" for line in [lines[0], rule, *lines[1:]])
