"""Lesson 15: answers in passages."""

import random
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm.auto import tqdm

from .. import data_path, finetuning, tasks
from ..model import BertForQuestionAnswering
from ..shards import split_sentences
from ..wordpiece import WordPieceTokenizer
from .store import fingerprint, opened, store


def study_passages(output: Path, seeds: int, epochs: int = 4) -> dict:
    """Answers to the test split of data/passages, and their scores, from pretrained and from random weights.

    A run trains on the training questions, about `excerpt`s of their passages, in batches of 8. "scores" has `answer_scores`
    about excerpts, about whole "passages", and about excerpts when each gets the "other question" that follows in its passage.
    "guesses" has for each question, about its excerpt, what `best_and_margin` says.

    Raises:
        ValueError: if `output` holds runs of another checkpoint, other data or settings.
    """
    checkpoint = data_path("bert-course-mini")
    tokenizer = WordPieceTokenizer.from_pretrained(checkpoint)
    files = [data_path("passages") / f"{split}.json" for split in tasks.SPLITS[:3]]
    train, validation, test = (tasks.read("passages", path) for path in files)
    rates = finetuning.LEARNING_RATES["passages"]
    made_from = fingerprint(checkpoint / "model.safetensors", *files) + f" {epochs} epochs {sorted(rates.items())}"
    result = opened(output, made_from)
    asked = {"excerpts": excerpts(test), "passages": test, "other question": excerpts(other_questions(test))}
    done = {(run["seed"], run["kind"]) for run in result["runs"]}
    plan = [(seed, kind) for seed in range(seeds) for kind in ("pretrained", "random") if (seed, kind) not in done]
    for seed, kind in tqdm(plan, unit="run"):
        started = time.perf_counter()
        torch.manual_seed(seed)
        model = finetuning.start_from("passages", checkpoint)
        if kind == "random":
            model = BertForQuestionAnswering(model.config)
        settings = {"epochs": epochs, "batch_size": 8, "learning_rate": rates[kind], "seed": seed}
        rows = excerpts(train, seed), excerpts(validation)
        run = {"seed": seed, "kind": kind, "history": finetuning.fine_tune("passages", model, tokenizer, *rows, **settings)}
        guesses = {name: best_and_margin(model, tokenizer, rows) for name, rows in asked.items()}
        run["scores"] = {name: answer_scores(asked[name], guesses[name]) for name in asked}
        run["guesses"] = [f"{start} {end} {margin:.2f}" for start, end, margin in guesses["excerpts"]]
        store(output, result, run | {"seconds": round(time.perf_counter() - started, 1)})
    return result


def excerpts(rows: Sequence[dict], seed: int = 0, size: int = 2) -> list[dict]:
    """Each question with `size` neighbouring sentences of its passage, its answer's among them (any, if it has none)."""
    rng = random.Random(seed)
    return [excerpt(row, size, rng) for row in rows]


def excerpt(row: dict, size: int, rng: random.Random) -> dict:
    sentences = split_sentences(row["context"])
    ends = [len(" ".join(sentences[: i + 1])) for i in range(len(sentences))]
    texts, starts = row["answers"]["text"], row["answers"]["answer_start"]
    if texts:
        first, last = (sum(end <= place for end in ends) for place in (starts[0], starts[0] + len(texts[0]) - 1))
    else:
        first = last = rng.randrange(len(sentences))
    begin = max(0, min(first - rng.randrange(size), len(sentences) - size))
    before = ends[begin - 1] + 1 if begin else 0
    answers = {"text": texts, "answer_start": [start - before for start in starts]}
    return row | {"context": " ".join(sentences[begin : max(begin + size, last + 1)]), "answers": answers}


def other_questions(rows: Sequence[dict]) -> list[dict]:
    """The same rows, each with the question that follows in its passage (the last with the first)."""
    questions = {}
    for row in rows:
        questions.setdefault(row["context"], []).append(row["question"])
    turned = [question for asked in questions.values() for question in [*asked[1:], asked[0]]]
    return [row | {"question": question} for row, question in zip(rows, turned, strict=True)]


def best_and_margin(model: torch.nn.Module, tokenizer: WordPieceTokenizer, rows: Sequence[dict]) -> list[tuple]:
    """Start and end of the best span, in characters, and its score less that of "no answer": if below 0, none is given."""
    found = []
    for candidates in finetuning.predict("passages", model, tokenizer, rows):
        best, nothing = (next(c for c in candidates if bool(c["text"]) == said) for said in (True, False))
        found.append((best["start"], best["end"], best["score"] - nothing["score"]))
    return found


def answer_scores(rows: Sequence[dict], guesses: Sequence[tuple], threshold: float = 0.0) -> dict[str, float]:
    """`score_answers`, where a span is given if its margin is at least -`threshold`.

    "pointing": F1 of the questions with an answer when "no answer" is forbidden.
    """
    spans = [row["context"][start:end] for row, (start, end, _) in zip(rows, guesses, strict=True)]
    given = [span if margin >= -threshold else "" for span, (_, _, margin) in zip(spans, guesses)]
    forced = finetuning.score_answers(rows, spans)["has_answer_f1"]
    return finetuning.score_answers(rows, given) | {"pointing": forced}
