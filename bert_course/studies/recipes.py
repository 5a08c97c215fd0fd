"""The recipe of the checkpoint's first run, one part changed at a time, on a small part of its budget."""

import hashlib
import random
import tempfile
import time
from dataclasses import fields
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from .. import data_path
from ..config import BertConfig
from ..objectives import masked_batch, pair_batches, pretraining_losses
from ..pretraining import Recipe, pretrain
from ..shards import tokenized_chunks
from ..wordpiece import WordPieceTokenizer
from .store import markdown, mean_and_range, opened, store

FIRST_RUN = "as in the first run"
DEFAULTS = {field.name: field.default for field in fields(Recipe)}
PHASES = DEFAULTS["phases"]
RECIPES = {  # what differs from `Recipe`
    FIRST_RUN: {},
    "learning rate 5e-4": {"learning_rate": 5e-4},
    "learning rate 2e-3": {"learning_rate": 2e-3},
    "Adam's β₂ 0.999": {"betas": (0.9, 0.999)},
    "from noise": {"warm_start": False},
    "dropout 0.1": {"dropout": 0.1},
    "128 tokens, 4,096 a batch throughout": {"phases": tuple((share, 128, rate, 4096) for share, _, rate, _ in PHASES)},
    "4,096 tokens a batch from the start": {"phases": tuple((share, length, rate, 4096) for share, length, rate, _ in PHASES)},
    "15 % masked from the start": {"phases": tuple((share, length, 0.15, size) for share, length, _, size in PHASES)},
    "30 % masked throughout": {"phases": tuple((share, length, 0.3, size) for share, length, _, size in PHASES)},
    "whole words masked": {"whole_words": True},
}


def study_recipes(output: Path, seeds: int, corpus: str | Path = "docstrings", tokens: int = 2_000_000) -> dict:
    """Held-out MLM scores of a mini BERT after `tokens` tokens of `corpus`, with each of `RECIPES`, the first with all seeds.

    All are scored on the same held-out pairs of up to 128 tokens with the same 15% of the tokens masked.

    Raises:
        ValueError: if `output` holds runs of another corpus or budget; if fewer than two documents are held out.
    """
    tokenizer = WordPieceTokenizer.from_pretrained(data_path("bert-course-mini"))
    config = BertConfig.preset("mini", vocab_size=tokenizer.vocab_size)
    rng, generator = random.Random(0), torch.Generator().manual_seed(0)
    documents = next(tokenized_chunks(corpus, tokenizer, held_out=True), [])
    batches = [masked_batch(b, tokenizer, 0.15, generator) for b in pair_batches(documents, tokenizer, 128, 8192, rng)[:40]]
    asked = hashlib.sha256(b"".join(batch["labels"].numpy().tobytes() for batch in batches)).hexdigest()[:16]
    result = opened(output, f"{asked} {tokens} tokens {DEFAULTS} {RECIPES}")
    done = {(run["recipe"], run["seed"]) for run in result["runs"]}
    plan = [(name, 0) for name in RECIPES] + [(FIRST_RUN, seed) for seed in range(1, seeds)]
    with tempfile.TemporaryDirectory() as folder:
        for name, seed in tqdm([run for run in plan if run not in done], unit="run"):
            started = time.perf_counter()
            recipe = Recipe(tokens=tokens, seed=seed, **RECIPES[name])
            run_folder, cache = Path(folder) / f"{name} {seed}", Path(folder) / "tokens"
            model = pretrain(corpus, run_folder, tokenizer, config, recipe, progress_bar=False, cache=cache)
            seconds = round(time.perf_counter() - started)
            loss, accuracy = held_out_scores(model, batches)
            store(output, result, {"recipe": name, "seed": seed, "mlm_loss": loss, "mlm_accuracy": accuracy, "seconds": seconds})
    return result


@torch.no_grad()
def held_out_scores(model: torch.nn.Module, batches: list[dict]) -> tuple[float, float]:
    """Loss and accuracy of the masked language model, means over the masked tokens."""
    hidden = [(batch["labels"] != -100).sum().item() for batch in batches]
    losses, _, right, _ = zip(*(pretraining_losses(model, batch) for batch in batches))
    return tuple(round(float(np.average([x.item() for x in column], weights=hidden)), 4) for column in (losses, right))


def table(result: dict) -> str:
    """In Markdown, the best MLM loss first; of several seeds the mean (lowest to highest)."""
    cells = []
    for name in RECIPES:
        runs = [run for run in result["runs"] if run["recipe"] == name]
        if runs:
            losses = [run["mlm_loss"] for run in runs]
            shown = mean_and_range(losses, 2), mean_and_range([100 * run["mlm_accuracy"] for run in runs])
            cells.append((np.mean(losses), [name, *shown]))
    return markdown([["", "MLM loss (nats)", "MLM accuracy (%)"], *(line for _, line in sorted(cells))])
