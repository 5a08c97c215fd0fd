"""Lesson 12: what pretraining adds to the classification of reviews."""

import time
from pathlib import Path

import torch
from tqdm.auto import tqdm

from .. import data_path, finetuning, tasks
from ..model import BertForSequenceClassification
from ..wordpiece import WordPieceTokenizer
from .store import fingerprint, opened, store


def study_reviews(
    output: Path, seeds: int, checkpoint: str | Path | None = None, epochs: dict[int, int] | None = None
) -> dict:
    """Scores on the test split of data/reviews and accuracy on the challenge split, by seed, size and kind of model.

    The kinds: "pretrained", "random" (the same network from random weights) and "bag of words" (of 1 and of 1 to 2 words).
    Writes every run to `output` as it is done and, when called again, does only what is missing.

    Args:
        epochs: by number of training reviews; default: 8 for all of them.
    Raises:
        ValueError: if `output` holds runs of another checkpoint, other reviews or other numbers of epochs.
    """
    checkpoint = Path(checkpoint or data_path("bert-course-mini"))
    tokenizer = WordPieceTokenizer.from_pretrained(checkpoint)
    files = [data_path("reviews") / f"{split}.csv" for split in tasks.SPLITS]
    train, validation, test, challenge = (tasks.read("sentiment", path) for path in files)
    texts = [row["text"] for row in (*test, *challenge)]
    epochs = epochs or {len(train): 8}
    rates = finetuning.LEARNING_RATES["sentiment"]
    made_from = fingerprint(checkpoint / "model.safetensors", *files) + f" {sorted(epochs.items())} {rates}"
    result = opened(output, made_from)

    def fine_tuned(kind: str, rows: list[dict], seed: int) -> tuple[list[int], list[dict]]:
        torch.manual_seed(seed)
        model = finetuning.start_from("sentiment", checkpoint)
        if kind == "random":
            model = BertForSequenceClassification(model.config)
        settings = {"epochs": epochs[len(rows)], "learning_rate": rates[kind], "seed": seed}
        history = finetuning.fine_tune("sentiment", model, tokenizer, rows, validation, **settings)
        return finetuning.predict("sentiment", model, tokenizer, [*test, *challenge]).argmax(-1).tolist(), history

    def counted(kind: str, rows: list[dict], seed: int) -> tuple[list[int], list[dict]]:
        baseline = finetuning.bag_of_words(2 if kind == "bag of 1-2 words" else 1)
        baseline.fit([row["text"] for row in rows], [row["label"] for row in rows])
        return baseline.predict(texts).tolist(), []

    kinds = {"bag of words": counted, "bag of 1-2 words": counted, "pretrained": fine_tuned, "random": fine_tuned}
    done = {(run["seed"], run["size"], run["kind"]) for run in result["runs"]}
    plan = [(seed, size, kind) for seed in range(seeds) for size in sorted(epochs) for kind in kinds]
    for seed, size, kind in tqdm([run for run in plan if run not in done], unit="run"):
        started = time.perf_counter()
        guesses, history = kinds[kind](kind, finetuning.sample_pairs(train, size, seed), seed)
        seconds = round(time.perf_counter() - started, 1)
        scores = finetuning.score(test, guesses[: len(test)])
        scores["challenge"] = finetuning.score(challenge, guesses[len(test) :])["all"]
        run = {"seed": seed, "size": size, "kind": kind, "scores": scores, "history": history, "seconds": seconds}
        store(output, result, run)
    return result
