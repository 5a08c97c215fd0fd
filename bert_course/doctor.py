"""Is this machine ready for the course, and is the course's data whole? One row for each thing that is checked."""

import functools
import hashlib
import os
import platform
import re
import shutil
import time
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import psutil
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from bert_course import data_path

GIB = 2**30
MEMORY_GIB = 3  # the largest lesson
DISK_GIB = 1  # what the lessons write
REPAIR = "git checkout -- data (in a clone), or install the course again"


class Check(NamedTuple):
    name: str
    found: str
    ok: bool = True
    fix: str = ""


def checks() -> list[Check]:
    """Every check, in the order in which a learner should fix them."""
    versions = [python_version(), *package_versions()]
    return [*versions, *torch_checks(), memory(), disk(), *data_checks()]


def table():
    """The checks as a DataFrame, for lesson 00."""
    import pandas as pd

    rows = checks()
    index = ["✓" if row.ok else "✗" for row in rows]
    return pd.DataFrame([(row.name, row.found, "" if row.ok else row.fix) for row in rows], index, ["check", "found", "fix"])


def python_version() -> Check:
    wanted = metadata.metadata("bert-course")["Requires-Python"]
    found = platform.python_version()
    return Check("Python", found, found in SpecifierSet(wanted), f"install Python {wanted} and set up again")


def package_versions() -> list[Check]:
    rows = []
    for requirement in map(Requirement, metadata.requires("bert-course")):
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        fix = f'pip install "{requirement}"'
        try:
            found = metadata.version(requirement.name)
            ok = requirement.specifier.contains(found, prereleases=True)
            rows.append(Check(requirement.name, found, ok, "" if ok else fix))
        except metadata.PackageNotFoundError:
            rows.append(Check(requirement.name, "not installed", False, fix))
    return rows


def torch_checks() -> list[Check]:
    try:
        import torch

        from bert_course import lesson
    except (ImportError, OSError) as error:  # OSError: a library of torch that Windows does not find
        return [Check("device", f"torch cannot be imported: {error}", False, "pip install torch")]

    rows = []
    for name, setting in (("source", lesson.source), ("device", lesson.device)):
        try:
            rows.append(Check(name, str(setting())))
        except ValueError as error:
            rows.append(Check(name, str(error).split(". ")[0], False, str(error).split(". ")[-1]))
    rows.append(Check("CPU", f"{processor()}, {os.cpu_count()} cores"))
    rows.append(Check("threads", f"{torch.get_num_threads()} used by torch"))
    for i in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(i)
        rows.append(Check(f"GPU {i}", f"{gpu.name}, {gpu.total_memory / GIB:.0f} GiB"))
    if torch.backends.mps.is_available():
        rows.append(Check("MPS", "found; the course runs on the CPU of a Mac"))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows.append(Check("bfloat16", f"{bfloat16_speedup(device):.1f} times the speed of float32 on the {device.upper()}"))
    return rows


def processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")  # only Linux has it, and there platform.processor() knows no more than "x86_64"
    names = re.findall(r"^model name\s*: (.+)$", cpuinfo.read_text(), re.M) if cpuinfo.is_file() else []
    return names[0] if names else platform.processor() or platform.machine()


@functools.cache  # where bfloat16 is slow, this takes seconds
def bfloat16_speedup(device: str) -> float:
    """How many times faster than in float32 a matrix product is in bfloat16: measured, not read from the processor's flags."""
    import torch

    def seconds(dtype):
        x = torch.ones(512, 512, dtype=dtype, device=device)
        times = []
        for _ in range(4):  # the first is the warm-up
            start = time.perf_counter()
            (x @ x)[0, 0].item()
            times.append(time.perf_counter() - start)
        return min(times[1:])

    return seconds(torch.float32) / seconds(torch.bfloat16)


def memory() -> Check:
    free = psutil.virtual_memory().available / GIB
    total = psutil.virtual_memory().total / GIB
    return Check("memory", f"{free:.1f} of {total:.1f} GiB free", free >= MEMORY_GIB,
                 f"close other programs until {MEMORY_GIB} GiB are free")


def disk() -> Check:
    free = shutil.disk_usage(".").free / GIB
    return Check("disk", f"{free:.1f} GiB free here", free >= DISK_GIB, f"free {DISK_GIB} GiB")


def data_checks() -> list[Check]:
    """Each folder of data/ against data/SHA256SUMS, the checkpoint's among them."""
    try:
        sums = data_path("SHA256SUMS")
    except FileNotFoundError as error:
        return [Check("data", str(error), False, REPAIR)]
    files: dict[str, int] = {}
    damaged: dict[str, list[str]] = {}
    for line in sums.read_text(encoding="utf-8").splitlines():
        expected, name = line.split("  ", 1)
        folder = name.split("/")[0]
        files[folder] = files.get(folder, 0) + 1
        path = sums.parent / name
        if not path.is_file():
            damaged.setdefault(folder, []).append(f"{name} is missing")
        elif sha256(path) != expected:
            damaged.setdefault(folder, []).append(f"{name} is damaged")
    return [
        Check(f"data/{folder}", "; ".join(damaged.get(folder, [f"{count} files, whole"])), folder not in damaged, REPAIR)
        for folder, count in files.items()
    ]


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
