"""Lesson 16: how much of the network has to be trained."""

import random
import time
from pathlib import Path

import torch
from tqdm.auto import tqdm

from .. import data_path, finetuning, tasks
from ..wordpiece import WordPieceTokenizer
from .store import fingerprint, opened, store

DEPTH_SIZE = 200
PARTS = ("head", "top layer", "top two layers", "all")
HEAD_RATES = {"sentiment": 1e-3, "entities": 1e-2}  # a head alone bears more; sentiment has the pooler in it (4e-3: no better)


def study_features(output: Path, seeds: int, sizes: dict[int, int] | None = None) -> dict:
    """How much of the network has to be trained: scores by seed, number of examples and trained part (`only`).

    "reviews": the plain reviews of data/reviews; "all" by every size, the other parts with `DEPTH_SIZE`. "entities": so many
    sentences of data/entities, by part. Scores are of the test split: accuracy on its plain reviews, F1 of whole names.

    Args:
        sizes: epochs by number of reviews.
    Raises:
        ValueError: if `output` holds runs of another checkpoint, other data or settings.
    """
    checkpoint = data_path("bert-course-mini")
    tokenizer = WordPieceTokenizer.from_pretrained(checkpoint)
    files = [data_path("reviews") / f"{split}.csv" for split in ("train", "test")]
    files += [data_path("entities") / f"{split}.conll" for split in ("train", "test")]
    reviews = [[row for row in tasks.read("sentiment", path) if row["case"] == "plain"] for path in files[:2]]
    sentences = [tasks.read("entities", path) for path in files[2:]]
    sizes = sizes or {8: 20, 40: 10, DEPTH_SIZE: 6, 800: 3}
    rates = {task: finetuning.LEARNING_RATES[task]["pretrained"] for task in HEAD_RATES}
    made_from = fingerprint(checkpoint / "model.safetensors", *files) + f" {sorted(sizes.items())} {HEAD_RATES} {rates}"
    result = opened(output, made_from)
    done = {(run["seed"], run["data"], run["part"], run["size"]) for run in result["runs"]}
    plan = []
    for seed in range(seeds):
        plan += [(seed, "reviews", "all", size) for size in sizes]
        plan += [(seed, data, part, DEPTH_SIZE) for data in ("reviews", "entities") for part in PARTS]
    for seed, data, part, size in tqdm(dict.fromkeys(run for run in plan if run not in done), unit="run"):
        started = time.process_time()
        torch.manual_seed(seed)
        if data == "reviews":
            task, train, test, epochs = "sentiment", finetuning.sample_pairs(reviews[0], size, seed), reviews[1], sizes[size]
        else:
            task, train, test, epochs = "entities", random.Random(seed).sample(sentences[0], size), sentences[1], 6
        model = only(part, finetuning.start_from(task, checkpoint))
        rate = HEAD_RATES[task] if part == "head" else rates[task]
        settings = {"epochs": epochs, "learning_rate": rate, "seed": seed}
        finetuning.fine_tune(task, model, tokenizer, train, train[:2], **settings)  # its last epoch is taken, whatever it is
        seconds = round(time.process_time() - started, 1)
        run = {"seed": seed, "data": data, "part": part, "size": size, "epochs": epochs}
        store(output, result, run | finetuning.evaluate(task, model, tokenizer, test) | {"seconds": seconds})
    return result


def only(part: str, model: torch.nn.Module) -> torch.nn.Module:
    """The model with all but a part frozen: the "head" (with the pooler, if there is one), "top layer", "top two layers"."""
    layers = {"head": 0, "top layer": 1, "top two layers": 2}
    if part != "all":
        first = model.config.num_hidden_layers - layers[part]
        model.bert.embeddings.requires_grad_(False)
        model.bert.encoder.layer[:first].requires_grad_(False)
    return model
