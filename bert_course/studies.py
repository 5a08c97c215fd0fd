"""The studies behind tables in the lessons: many runs, each stored as soon as it is done.

A stopped study goes on where it stopped; one of other data or settings is not mixed in.
"""

import hashlib
import json
import random
import tempfile
import time
from datetime import date
from pathlib import Path

import torch
from tqdm.auto import tqdm

from . import corpora, data_path, finetuning, tasks
from .checkpoint import from_pretrained
from .config import BertConfig
from .doctor import processor
from .files import read_json, replacing
from .model import BertForSequenceClassification
from .pretraining import OBJECTIVES, Recipe, pretrain, split_sentences
from .wordpiece import WordPieceTokenizer, train_wordpiece


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
    train, validation, test, challenge = (tasks.read_reviews(path) for path in files)
    texts = [row["text"] for row in (*test, *challenge)]
    epochs = epochs or {len(train): 8}
    made_from = fingerprint(checkpoint / "model.safetensors", *files) + f" {sorted(epochs.items())} {finetuning.LEARNING_RATES}"
    result = opened(output, made_from)

    def fine_tuned(kind: str, rows: list[dict], seed: int) -> tuple[list[int], list[dict]]:
        torch.manual_seed(seed)
        model = from_pretrained(BertForSequenceClassification, checkpoint, new_head=True, id2label=tasks.SENTIMENT)
        if kind == "random":
            model = BertForSequenceClassification(model.config)
        settings = {"epochs": epochs[len(rows)], "learning_rate": finetuning.LEARNING_RATES[kind], "seed": seed}
        history = finetuning.train_classifier(model, tokenizer, rows, validation, **settings)
        return finetuning.predict(model, tokenizer, texts).argmax(-1).tolist(), history

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


def study_nsp(output: Path, seeds: int, steps: int = 1500) -> dict:
    """What next sentence prediction adds: accuracy after pretraining a tiny BERT with it and without it, on equal budgets.

    Both read the docstrings for `steps` steps of 2,048 tokens at length 64. Two tasks are learned from it: "reviews" (one text,
    data/reviews) and "answers" (a pair: is this sentence, of two in data/passages, the one that answers the question?).

    Raises:
        ValueError: if `output` holds runs of other data or settings.
    """
    reviews = [tasks.read_reviews(data_path("reviews") / f"{split}.csv") for split in ("train", "validation", "test")]
    answers = [answer_pairs(data_path("passages") / f"{split}.json") for split in ("train", "validation", "test")]
    files = sorted([*data_path("reviews").glob("*.csv"), *data_path("passages").glob("*.json")])
    result = opened(output, fingerprint(*files) + f" {steps} steps")
    done = {(run["seed"], run["objective"]) for run in result["runs"]}
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder) / "docstrings.txt"
        documents = list(corpora.documents("docstrings"))
        random.Random(0).shuffle(documents)
        corpus.write_text("\n\n".join("\n".join(document) for document in documents), encoding="utf-8")
        tokenizer = train_wordpiece((paragraph for document in documents for paragraph in document), 4096)
        plan = [(seed, objective) for seed in range(seeds) for objective in OBJECTIVES]
        for seed, objective in tqdm([run for run in plan if run not in done], unit="run"):
            started = time.perf_counter()
            checkpoint = Path(folder) / f"{seed} {objective}"
            config = BertConfig.preset("tiny", vocab_size=tokenizer.vocab_size)
            recipe = Recipe(steps, objective=objective, phases=((1.0, 64, 0.2, 2048),), learning_rate=3e-3, seed=seed)
            pretrain(corpus, checkpoint, tokenizer, config, recipe, progress_bar=False)
            run = {"seed": seed, "objective": objective}
            for name, (train, validation, test) in (("reviews", reviews), ("answers", answers)):
                torch.manual_seed(seed)
                model = from_pretrained(BertForSequenceClassification, checkpoint, new_head=True, id2label={0: "no", 1: "yes"})
                finetuning.train_classifier(model, tokenizer, train, validation, epochs=4, learning_rate=1e-3, seed=seed)
                run[name] = finetuning.accuracy(model, tokenizer, test)
            store(output, result, run | {"seconds": round(time.perf_counter() - started, 1)})
    return result


def answer_pairs(path: Path) -> list[dict]:
    """For each answerable question its sentence (label 1) and another sentence of the same passage (label 0)."""
    rows = []
    for entry in read_json(path)["data"]:
        for paragraph in entry["paragraphs"]:
            sentences = split_sentences(paragraph["context"])
            for qa in paragraph["qas"]:
                starts = [answer["answer_start"] for answer in qa["answers"]]
                if not starts:
                    continue
                ends = [len(" ".join(sentences[: i + 1])) for i in range(len(sentences))]
                place = next(i for i, end in enumerate(ends) if starts[0] < end)
                other = random.Random(qa["id"]).choice([s for i, s in enumerate(sentences) if i != place])
                rows += [{"text": (qa["question"], sentences[place]), "label": 1}, {"text": (qa["question"], other), "label": 0}]
    return rows


def opened(output: Path, made_from: str) -> dict:
    """The study so far, or an empty one."""
    if not output.exists():
        return {"made_from": made_from, "runs": []}
    result = read_json(output)
    if result.get("made_from") != made_from:
        raise ValueError(f"{output} was made with another checkpoint, data or settings. Move it away to measure anew.")
    return result


def store(output: Path, result: dict, run: dict) -> None:
    result["runs"].append(run)
    hardware = f"{processor()}, {torch.get_num_threads()} threads"
    result |= {"date": date.today().isoformat(), "torch": torch.__version__, "hardware": hardware}
    with replacing(output) as path:
        path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def fingerprint(*paths: Path) -> str:
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()[:16]
