"""Lesson 01: how far a model can recall."""

from pathlib import Path

from tqdm.auto import tqdm

from .. import recall
from .store import opened, store


def study_recall(output: Path, seeds: int, distances: tuple[int, ...] = (4, 8, 16, 32)) -> dict:
    """How far encoder, LSTM and BiLSTM can recall: accuracy of `recall.CONTENDERS` by distance, after equal budgets.

    One note at every distance (300 steps at most), two notes at distance 4 (1,000 steps). Each contender gets, for each task,
    the learning rate that does best with a seed of its own (100); those runs are stored too.

    Raises:
        ValueError: if `output` holds runs of other settings.
    """
    tasks_asked = [(1, distance, 300) for distance in distances] + [(2, 4, 1000)]
    result = opened(output, f"recall, notes, distance, steps: {tasks_asked}, rates {recall.RATES}")

    def run(name: str, notes: int, distance: int, steps: int, rate: float, seed: int) -> dict:
        about = {"model": name, "notes": notes, "distance": distance, "rate": rate, "seed": seed}
        for known in result["runs"]:
            if about.items() <= known.items():
                return known
        trained = recall.train(name, distance, notes, rate, steps, seed)
        size = sum(weights.numel() for weights in trained.model.parameters())
        about |= {"accuracy": round(trained.accuracy, 4), "steps": trained.steps, "history": trained.history}
        store(output, result, about | {"parameters": size, "seconds": round(trained.seconds, 1)})
        return result["runs"][-1]

    for asked, name in tqdm([(asked, name) for asked in tasks_asked for name in recall.CONTENDERS], unit="task"):
        tuning = [run(name, *asked, rate, seed=100) for rate in recall.RATES]
        best = max(tuning, key=lambda one: (min(one["accuracy"], 0.99), -one["steps"]))["rate"]  # 0.99 is solved
        for seed in range(seeds):
            run(name, *asked, best, seed)
    return result
