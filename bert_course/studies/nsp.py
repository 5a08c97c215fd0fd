"""Lesson 10: what next sentence prediction adds."""

import random
import tempfile
import time
from pathlib import Path

import torch
from tqdm.auto import tqdm

from .. import corpora, data_path, finetuning, tasks
from ..config import BertConfig
from ..files import read_json
from ..objectives import OBJECTIVES
from ..pretraining import Recipe, pretrain
from ..shards import split_sentences
from ..wordpiece import train_wordpiece
from .store import fingerprint, opened, store


def study_nsp(output: Path, seeds: int, steps: int = 1500) -> dict:
    """What next sentence prediction adds: accuracy after pretraining a tiny BERT with it and without it, on equal budgets.

    Both read the docstrings for `steps` steps of 2,048 tokens at length 64. Two tasks are learned from it: "reviews" (one text,
    data/reviews) and "answers" (a pair: is this sentence, of two in data/passages, the one that answers the question?).

    Raises:
        ValueError: if `output` holds runs of other data or settings.
    """
    reviews = [tasks.read("sentiment", data_path("reviews") / f"{split}.csv") for split in ("train", "validation", "test")]
    answers = [answer_pairs(data_path("passages") / f"{split}.json") for split in ("train", "validation", "test")]
    files = sorted([*data_path("reviews").glob("*.csv"), *data_path("passages").glob("*.json")])
    result = opened(output, fingerprint(*files) + f" {steps} steps")
    done = {(run["seed"], run["objective"]) for run in result["runs"]}
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder) / "docstrings.txt"
        documents = list(corpora.documents("docstrings"))
        random.Random(0).shuffle(documents)
        corpora.write(documents, corpus)
        tokenizer = train_wordpiece((paragraph for document in documents for paragraph in document), 4096)
        plan = [(seed, objective) for seed in range(seeds) for objective in OBJECTIVES]
        for seed, objective in tqdm([run for run in plan if run not in done], unit="run"):
            started = time.perf_counter()
            checkpoint = Path(folder) / f"{seed} {objective}"
            config = BertConfig.preset("tiny", vocab_size=tokenizer.vocab_size)
            recipe = Recipe(steps, objective=objective, phases=((1.0, 64, 0.2, 2048),), learning_rate=3e-3, seed=seed)
            pretrain(corpus, checkpoint, tokenizer, config, recipe, progress_bar=False)
            run = {"seed": seed, "objective": objective}
            for name, task, (train, validation, test) in (("reviews", "sentiment", reviews), ("answers", "paraphrase", answers)):
                torch.manual_seed(seed)
                model = finetuning.start_from(task, checkpoint)
                finetuning.fine_tune(task, model, tokenizer, train, validation, epochs=4, learning_rate=1e-3, seed=seed)
                run[name] = finetuning.evaluate(task, model, tokenizer, test)["accuracy"]
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
                pairs = ((sentences[place], 1), (other, 0))
                rows += [{"text": qa["question"], "text_pair": sentence, "label": label} for sentence, label in pairs]
    return rows
