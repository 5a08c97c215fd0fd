"""Execute lessons from top to bottom and store them with their outputs: `make notebooks`, or name some lessons.

Prints the seconds and the peak memory of each. A lesson that fails is left as it was.
"""

import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from bert_course.stamp import lessons

PEAK = "__import__('resource').getrusage(0).ru_maxrss"
PEAK_UNITS_PER_GIB = 2**30 if sys.platform == "darwin" else 2**20


def execute(path: Path) -> None:
    lesson = nbformat.read(path, as_version=4)
    client = NotebookClient(lesson, timeout=600, kernel_name="python3", record_timing=False, coalesce_streams=True,
                            resources={"metadata": {"path": str(path.parent)}})
    start = time.perf_counter()
    with client.setup_kernel():
        for index, cell in enumerate(lesson.cells):
            client.execute_cell(cell, index)
        seconds = time.perf_counter() - start
        lesson.cells.append(nbformat.v4.new_code_cell(PEAK))
        client.execute_cell(lesson.cells[-1], len(lesson.cells) - 1)
    peak = int(lesson.cells.pop().outputs[0].data["text/plain"]) / PEAK_UNITS_PER_GIB

    lesson.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for cell in lesson.cells:
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):  # where readers of the exported page look for the alt text
                output.metadata["image/png"] = {"alt": cell.metadata.get("alt", "")}
    nbformat.write(lesson, path)
    print(f"{path.name:<40} {seconds:6.1f} s {peak:6.2f} GiB", flush=True)


if __name__ == "__main__":
    for path in map(Path, sys.argv[1:] or lessons()):
        execute(path)
