"""Lesson 11: which choices of its recipe leave the plateau of word frequencies; all on its text and its exam."""

import random
import tempfile
import time
from pathlib import Path

import torch
from tqdm.auto import tqdm

from .. import corpora
from ..config import BertConfig
from ..objectives import pair_batches
from ..pretraining import Recipe, pretrain
from ..shards import tokenized_chunks
from ..wordpiece import WordPieceTokenizer, train_wordpiece
from .recipes import DEFAULTS, held_out_scores
from .store import fingerprint, opened, store

LESSON = {"phases": ((1.0, 32, 0.3, 2048),), "learning_rate": 3e-3, "warmup": 0.05}
CHANGES = {
    "as in the lesson": {},
    "64 tokens": {"phases": ((1.0, 64, 0.3, 2048),)},
    "128 tokens": {"phases": ((1.0, 128, 0.3, 2048),)},
    "the last third with 64 tokens, 20 % masked": {"phases": ((0.66, 32, 0.3, 2048), (0.34, 64, 0.2, 2048))},
    "15 % masked": {"phases": ((1.0, 32, 0.15, 2048),)},
    "learning rate 1e-3": {"learning_rate": 1e-3},
    "learning rate 1e-4": {"learning_rate": 1e-4},
    "from noise": {"warm_start": False},
    "dropout 0.1": {"dropout": 0.1},
}
LENGTHS = 32, 64


def study_plateau(output: Path, seeds: int, steps: int = 4000) -> dict:
    """Loss (nats a blank) and share of blanks filled right after `steps` steps on the docstrings, with each of `CHANGES`.

    Split, vocabulary, model and exam are lesson 11's; the exam is set at each of `LENGTHS`. A seed chooses the first weights,
    the pairs and the masks.

    Raises:
        ValueError: if `output` holds runs of other text or settings.
    """
    documents = list(corpora.documents("docstrings"))
    random.Random(0).shuffle(documents)
    parts = {"train": [d for i, d in enumerate(documents) if i % 30], "held out": documents[::30]}
    tokenizer = train_wordpiece((paragraph for document in parts["train"] for paragraph in document), 4096)
    config = BertConfig.preset("tiny", vocab_size=tokenizer.vocab_size, num_attention_heads=4, max_position_embeddings=128)
    with tempfile.TemporaryDirectory() as folder:
        files = {name: Path(folder) / f"{name}.txt" for name in parts}
        for name, part in parts.items():
            corpora.write(part, files[name])
        result = opened(output, f"{fingerprint(*files.values())} {steps} steps {DEFAULTS} {LESSON} {CHANGES}")
        done = {(run["seed"], run["change"]) for run in result["runs"]}
        exams = [exam(files["held out"], tokenizer, length) for length in LENGTHS]
        plan = [(seed, change) for seed in range(seeds) for change in CHANGES]
        for seed, change in tqdm([run for run in plan if run not in done], unit="run"):
            started = time.perf_counter()
            recipe = Recipe(steps, seed=seed, **LESSON | CHANGES[change])
            run_folder, cache = Path(folder) / f"{change} {seed}", Path(folder) / "tokens"
            model = pretrain(files["train"], run_folder, tokenizer, config, recipe, progress_bar=False, cache=cache)
            scores = {str(length): held_out_scores(model, batches) for length, batches in zip(LENGTHS, exams)}
            store(output, result, {"change": change, "seed": seed, **scores, "seconds": round(time.perf_counter() - started)})
    return result


def exam(file: Path, tokenizer: WordPieceTokenizer, length: int) -> list[dict]:
    """Batches with up to 15% of the tokens hidden, all by [MASK], no two of them side by side."""
    rng, dice = random.Random(0), torch.Generator().manual_seed(0)
    never = torch.tensor([tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id])
    batches = []
    for documents in tokenized_chunks(file, tokenizer, held_out=False):
        for batch in pair_batches(documents, tokenizer, length, 4096, rng):
            ids = batch["input_ids"]
            hidden = (torch.rand(ids.shape, generator=dice) < 0.15) & ~torch.isin(ids, never)
            hidden[:, 1:] &= ~hidden[:, :-1]
            shown, labels = ids.masked_fill(hidden, tokenizer.mask_id), ids.masked_fill(~hidden, -100)
            batches.append(batch | {"input_ids": shown, "labels": labels, "attention_mask": (ids != tokenizer.pad_id).long()})
    return batches
