"""Lesson 13: paraphrases."""

import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from .. import data_path, finetuning, tasks
from ..baselines.bi_encoder import BiEncoder
from ..inputs import batch, encode
from ..model import BertForSequenceClassification, BertModel
from ..wordpiece import WordPieceTokenizer
from .store import fingerprint, opened, store


def study_paraphrases(output: Path, seeds: int, epochs: int = 5) -> dict:
    """Accuracy on the test split of data/paraphrases, all and by kind, of four models fine-tuned on its training split.

    "pretrained" and "random" (the same network from random weights) read both sentences at once; "no segments" is
    "pretrained" with segment 0 everywhere, in training and after; "bi-encoder" reads them apart (`BiEncoder`), pretrained too.
    All without dropout, as the checkpoint was pretrained: with it, they learned next to nothing in so few epochs.
    "scores" has what is asked of each: the test split "as trained", with the sentences "swapped" and, where the model knows
    segments, with them all zero ("segments zeroed") or drawn by lot for every token ("segments shuffled"); "same answer" is
    the share of pairs with the same answer after swapping. "attention" has `across` before and after.

    Raises:
        ValueError: if `output` holds runs of another checkpoint, other data or settings.
    """
    checkpoint = data_path("bert-course-mini")
    tokenizer = WordPieceTokenizer.from_pretrained(checkpoint)
    files = [data_path("paraphrases") / f"{split}.csv" for split in ("train", "validation", "test")]
    train, validation, test = (tasks.read("paraphrase", path) for path in files)
    swapped = [row | {"text": row["text_pair"], "text_pair": row["text"]} for row in test]
    rates = finetuning.LEARNING_RATES["paraphrase"]
    no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    made_from = fingerprint(checkpoint / "model.safetensors", *files) + f" {epochs} epochs {sorted(rates.items())} no dropout"
    result = opened(output, made_from)

    def built(kind: str) -> torch.nn.Module:
        model = finetuning.start_from("paraphrase", checkpoint, **no_dropout)
        return {"random": lambda: BertForSequenceClassification(model.config),
                "bi-encoder": lambda: BiEncoder(model.bert)}.get(kind, lambda: model)()

    kinds = ("pretrained", "random", "no segments", "bi-encoder")
    done = {(run["seed"], run["kind"]) for run in result["runs"]}
    plan = [(seed, kind) for seed in range(seeds) for kind in kinds if (seed, kind) not in done]
    for seed, kind in tqdm(plan, unit="run"):
        started = time.perf_counter()
        torch.manual_seed(seed)
        model = built(kind)
        run = {"seed": seed, "kind": kind, "scores": {}}
        if kind == "pretrained":
            before = across(model.bert, tokenizer, test)
        with segments(model, torch.zeros_like if kind == "no segments" else None):
            rate = rates["random" if kind == "random" else "pretrained"]
            settings = {"epochs": epochs, "learning_rate": rate, "seed": seed}
            run["history"] = finetuning.fine_tune("paraphrase", model, tokenizer, train, validation, **settings)
            guesses = finetuning.predict("paraphrase", model, tokenizer, test).argmax(-1)
            turned = finetuning.predict("paraphrase", model, tokenizer, swapped).argmax(-1)
        run["scores"] = {"as trained": by_kind(test, guesses), "swapped": by_kind(test, turned)}
        run["same answer"] = round(float((guesses == turned).mean()), 4)
        if kind == "pretrained":
            run["attention"] = {"before": before, "after": across(model.bert, tokenizer, test)}
            for name, change in (("segments zeroed", torch.zeros_like), ("segments shuffled", by_lot)):
                with segments(model, change):
                    guesses = finetuning.predict("paraphrase", model, tokenizer, test).argmax(-1)
                run["scores"][name] = by_kind(test, guesses)
        store(output, result, run | {"seconds": round(time.perf_counter() - started, 1)})
    return result


@contextmanager
def segments(model: torch.nn.Module, change: Callable[[torch.Tensor], torch.Tensor] | None):
    """Within it, the embeddings of `model.bert` get change(token_type_ids) in place of these; None changes nothing."""
    hook = None
    if change:
        hook = model.bert.embeddings.register_forward_pre_hook(lambda module, args: (args[0], change(args[1])))
    try:
        yield
    finally:
        if hook:
            hook.remove()


def by_lot(token_type_ids: torch.Tensor) -> torch.Tensor:
    return torch.randint_like(token_type_ids, 2)


def by_kind(rows: list[dict], guesses: np.ndarray) -> dict[str, float]:
    """The share of right answers, "all" and of each kind of pair."""
    right = np.array([guess == row["label"] for row, guess in zip(rows, guesses, strict=True)])
    of = np.array([row["kind"] for row in rows])
    return {"all": round(right.mean(), 4)} | {kind: round(right[of == kind].mean(), 4) for kind in dict.fromkeys(of)}


@torch.no_grad()
def across(bert: BertModel, tokenizer: WordPieceTokenizer, rows: list[dict]) -> list[float]:
    """For each layer the share of attention that goes from a word piece of one sentence to those of the other.

    The mean over heads, pieces and pairs; [CLS] and [SEP] do not ask, and are not counted as listened to.
    """
    shares = []
    for row in rows:
        encoding = encode(tokenizer, row["text"], row["text_pair"])
        inputs = {name: ids.to(finetuning.device_of(bert)) for name, ids in batch([encoding], tokenizer.pad_id).items()}
        weights = torch.stack(bert.eval()(**inputs, output_attentions=True).attentions)[:, 0].mean(1).cpu()  # (L, S, S)
        segment, word = torch.tensor(encoding.token_type_ids), torch.tensor([end > 0 for _, end in encoding.offsets])
        other = (segment[:, None] != segment) & word  # (S, S)
        shares.append((weights * other).sum(-1)[:, word].mean(-1))
    return [round(share, 4) for share in torch.stack(shares).mean(0).tolist()]
