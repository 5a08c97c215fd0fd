"""Lesson 14: names, with and without pretraining, by the number of training sentences."""

import random
import time
from pathlib import Path

import torch
from tqdm.auto import tqdm

from .. import data_path, finetuning, tasks
from ..model import BertForTokenClassification
from ..wordpiece import WordPieceTokenizer
from .store import fingerprint, opened, store


def study_entities(
    output: Path, seeds: int, checkpoint: str | Path | None = None, epochs: dict[int, int] | None = None
) -> dict:
    """Tags for the test split of data/entities and their scores, by seed, number of training sentences and kind of model.

    The kinds: "pretrained", "random" (the same network from random weights) and, for the uncased checkpoint, "capitals marked":
    pretrained, with "^" behind every word that has a capital (`marked`). The last two with all training sentences only.

    Args:
        epochs: by number of training sentences; default: 6 for all of them, 10 for 300 and 24 for 100.
    Raises:
        ValueError: if `output` holds runs of another checkpoint, other sentences or other numbers of epochs.
    """
    checkpoint = Path(checkpoint or data_path("bert-course-mini"))
    tokenizer = WordPieceTokenizer.from_pretrained(checkpoint)
    files = [data_path("entities") / f"{split}.conll" for split in tasks.SPLITS[:3]]
    splits = [tasks.read("entities", path) for path in files]
    whole = len(splits[0])
    epochs = epochs or {whole: 6, 300: 10, 100: 24}
    rates = finetuning.LEARNING_RATES["entities"]
    made_from = fingerprint(checkpoint / "model.safetensors", *files) + f" {sorted(epochs.items())} {rates}"
    result = opened(output, made_from)
    done = {(run["seed"], run["size"], run["kind"]) for run in result["runs"]}
    plan = [(seed, whole, kind) for seed in range(seeds) for kind in ("pretrained", "random", "capitals marked")]
    plan += [(seed, size, "pretrained") for seed in range(seeds) for size in epochs if size != whole]
    for seed, size, kind in tqdm([run for run in plan if run not in done], unit="run"):
        started = time.perf_counter()
        train, validation, test = map(marked, splits) if kind == "capitals marked" else splits
        torch.manual_seed(seed)
        model = finetuning.start_from("entities", checkpoint)
        if kind == "random":
            model = BertForTokenClassification(model.config)
        rate = rates["random" if kind == "random" else "pretrained"]
        settings = {"epochs": epochs[size], "learning_rate": rate, "seed": seed}
        chosen = random.Random(seed).sample(train, size)
        history = finetuning.fine_tune("entities", model, tokenizer, chosen, validation, **settings)
        guesses = finetuning.predict("entities", model, tokenizer, test)
        truth = [[tasks.LABELS["entities"][i] for i in row["ner_tags"]] for row in test]
        run = {"seed": seed, "size": size, "kind": kind, "scores": finetuning.score_entities(truth, guesses)}
        run |= {"history": history, "guesses": [" ".join(tags) for tags in guesses]}
        store(output, result, run | {"seconds": round(time.perf_counter() - started, 1)})
    return result


def marked(rows: list[dict]) -> list[dict]:
    """Sentences in which a "^" behind a word says that it has a capital; an uncased vocabulary keeps the sign."""
    return [row | {"tokens": [f"{word}^" if word[0].isupper() else word for word in row["tokens"]]} for row in rows]
