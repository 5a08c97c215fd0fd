"""Fine-tuning a pretrained BERT, and using the result (Devlin et al. 2019, section 4 and appendix A.3)."""

import json
import random
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import torch
from torch import Tensor
from tqdm.auto import tqdm

from . import data_path, tasks
from .checkpoint import from_pretrained, replacing
from .inputs import batch, encode
from .model import BertForSequenceClassification, parameter_groups
from .wordpiece import WordPieceTokenizer


def train_classifier(
    model: BertForSequenceClassification,
    tokenizer: WordPieceTokenizer,
    train: Sequence[dict],
    validation: Sequence[dict],
    epochs: int = 4,
    batch_size: int = 16,
    learning_rate: float = 3e-4,
    warmup: float = 0.1,
    seed: int = 0,
) -> list[dict]:
    """Train in place with AdamW, linear warm-up and decay, and gradients clipped at norm 1.

    Args:
        train, validation: rows with "text" and "label" (a class id).
        learning_rate: at its peak. The paper's 2e-5 to 5e-5 are for base and large; a small model wants more.
        seed: decides the order of the rows and what dropout drops.
    Returns:
        for each epoch the mean training loss and the accuracy on `validation`.
    Raises:
        ValueError: if there is nothing to train on, or a label the model does not have.
    """
    unknown = {row["label"] for row in (*train, *validation)} - set(range(model.config.num_labels))
    if not train or unknown:
        raise ValueError(f"labels {sorted(unknown)} are not in the model's {model.config.id2label}." if train else "no rows to train on.")
    device = next(model.parameters()).device
    rng = random.Random(seed)
    torch.manual_seed(seed)
    rows = [(encode(tokenizer, row["text"], max_length=model.config.max_position_embeddings), row["label"]) for row in train]
    optimizer = torch.optim.AdamW(parameter_groups(model), lr=learning_rate)
    steps = epochs * -(-len(rows) // batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / max(1, warmup * steps), (steps - step) / max(1, steps - warmup * steps))
    )
    history = []
    for _ in range(epochs):
        model.train()
        losses = []
        for chosen in similar_lengths(rows, batch_size, rng):
            inputs = batch([encoding for encoding, _ in chosen], tokenizer.pad_id)
            labels = torch.tensor([label for _, label in chosen])
            loss = model(**{k: v.to(device) for k, v in inputs.items()}, labels=labels.to(device)).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            losses.append(loss.item())
        history.append({"loss": sum(losses) / len(losses), "accuracy": accuracy(model, tokenizer, validation)})
    return history


def similar_lengths(rows: list, batch_size: int, rng: random.Random) -> list[list]:
    """Batches in random order, of rows of about equal length, so that little of a batch is padding."""
    jittered = sorted(rows, key=lambda row: len(row[0]) + rng.uniform(-4, 4))
    batches = [jittered[i : i + batch_size] for i in range(0, len(rows), batch_size)]
    rng.shuffle(batches)
    return batches


@torch.no_grad()
def predict(model: BertForSequenceClassification, tokenizer: WordPieceTokenizer, texts: Sequence[str], batch_size: int = 64) -> Tensor:
    """Probabilities (len(texts), labels) of each class, on the CPU."""
    model.eval()
    device = next(model.parameters()).device
    encodings = [encode(tokenizer, text, max_length=model.config.max_position_embeddings) for text in texts]
    order = sorted(range(len(texts)), key=lambda i: len(encodings[i]))
    probabilities = torch.empty(len(texts), model.config.num_labels)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        inputs = batch([encodings[i] for i in chosen], tokenizer.pad_id)
        logits = model(**{k: v.to(device) for k, v in inputs.items()}).logits
        probabilities[chosen] = logits.softmax(-1).float().cpu()
    return probabilities


def accuracy(model, tokenizer, rows: Sequence[dict]) -> float:
    guesses = predict(model, tokenizer, [row["text"] for row in rows]).argmax(-1)
    return (guesses == torch.tensor([row["label"] for row in rows])).float().mean().item()


def study_reviews(output: Path, seeds: int, checkpoint: str | Path | None = None) -> dict:
    """Accuracy on data/reviews over seeds: pretrained against random start, at several sizes of the training set.

    Writes every run to `output` as it is done and, when called again, does only what is missing.
    """
    checkpoint = checkpoint or data_path("bert-course-mini")
    tokenizer = WordPieceTokenizer.from_pretrained(checkpoint)
    splits = {name: split.to_list() for name, split in tasks.load("sentiment").items()}
    result = json.loads(output.read_text()) if output.exists() else {"runs": []}
    sizes = [size for size in (50, 100, 200, 400, 800) if size < len(splits["train"])] + [len(splits["train"])]
    plan = [(seed, size, pretrained) for seed in range(seeds) for size in sizes for pretrained in (True, False)]
    done = {(run["seed"], run["size"], run["pretrained"]) for run in result["runs"]}
    for seed, size, pretrained in tqdm([p for p in plan if p not in done], unit="run"):
        torch.manual_seed(seed)
        model = from_pretrained(BertForSequenceClassification, checkpoint, new_head=True, id2label=tasks.SENTIMENT)
        if not pretrained:
            model = BertForSequenceClassification(model.config)
        train = random.Random(seed).sample(splits["train"], size)
        started = time.perf_counter()
        history = train_classifier(model, tokenizer, train, splits["validation"], epochs=max(4, min(40, 1600 // size)), seed=seed)
        seconds = time.perf_counter() - started
        probabilities = predict(model, tokenizer, [row["text"] for row in splits["test"]])
        right = (probabilities.argmax(-1) == torch.tensor([row["label"] for row in splits["test"]])).tolist()
        cases = {row["case"] for row in splits["test"]}
        by_case = {c: sum(r for r, row in zip(right, splits["test"]) if row["case"] == c) / sum(row["case"] == c for row in splits["test"]) for c in sorted(cases)}
        result["runs"].append({
            "seed": seed, "size": size, "pretrained": pretrained, "epochs": history, "seconds": round(seconds, 1),
            "test_accuracy": sum(right) / len(right), "by_case": by_case,
        })
        result["date"], result["torch"] = date.today().isoformat(), torch.__version__
        with replacing(output) as path:
            path.write_text(json.dumps(result, indent=1) + "\n")
    return result
