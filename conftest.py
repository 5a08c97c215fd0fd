"""Settings for every test: unit tests, doctests and lessons run on the CPU, from data/ alone, with the network cut."""

import os
import runpy
from pathlib import Path

OFFLINE = Path(__file__).parent / "tests" / "offline"

collect_ignore = [str(OFFLINE)]

os.environ.setdefault("BERT_COURSE_DEVICE", "cpu")  # `make test-gpu` says cuda
if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):  # each has its share of the cores, the lessons' kernels too
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, os.cpu_count() // int(workers))))
os.environ["BERT_COURSE_SOURCE"] = "embedded"
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(OFFLINE), os.environ.get("PYTHONPATH")]))
runpy.run_path(str(OFFLINE / "sitecustomize.py"))


def pytest_collectstart(collector):
    if hasattr(collector, "skip_compare"):  # a lesson
        collector.skip_compare += ("stderr",)
