"""The checkpoint on public benchmarks, read from a local folder. The study keeps scores and settings, nothing of the data."""

import random
import re
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from scipy.stats import pearsonr, spearmanr
from sklearn.linear_model import Ridge
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef
from sklearn.pipeline import make_pipeline
from tqdm.auto import tqdm

from .. import finetuning, lesson, tasks
from ..checkpoint import save_pretrained
from ..shards import split_sentences
from ..wordpiece import WordPieceTokenizer
from .siblings import read_wic
from .store import fingerprint, markdown, mean_and_range, opened, store


@dataclass(frozen=True)
class Benchmark:
    """Data, settings and the scores to show."""

    task: str  # of `finetuning`: how rows are read, and which head
    read: Callable[[Path, Sequence[str]], list[dict]]  # (file, labels) -> rows
    train: str  # files, in the folder of all tasks
    test: str
    labels: Sequence[str]  # a single one: a number is predicted
    scores: dict[str, Sequence[float]]  # with what is published of BERT-Tiny and BERT-Mini, if anything
    epochs: int
    learning_rate: float
    size: int | None = None  # rows to train on, drawn anew for each seed; None: all


def read_table(columns: Sequence[str], path: Path, labels: Sequence[str]) -> list[dict]:
    """Rows of a file with a header and tabs between the columns; quotes are characters like any other.

    Args:
        columns: names of those that hold the text, the second text, if there is one, and the label.
        labels: what stands in the last of them; a single name: it holds numbers.
    Raises:
        ValueError: names file and line of what is missing or wrong.
    """
    with open(path, encoding="utf-8-sig") as lines:
        header, *table = (line.rstrip("\n").split("\t") for line in lines)
    if missing := set(columns) - set(header):
        raise ValueError(f"{path} lacks the column {' and '.join(sorted(missing))}; its first line has {', '.join(header)}.")
    *texts, label = map(header.index, columns)
    rows = []
    for number, fields in enumerate(table, start=2):
        if len(fields) != len(header):
            raise ValueError(f"{path} line {number} has {len(fields)} columns, not {len(header)}. Is a tab in a text?")
        if len(labels) > 1 and fields[label] not in labels:
            raise ValueError(f"{path} line {number}: label '{fields[label]}' is not one of {', '.join(labels)}.")
        row = dict(zip(("text", "text_pair"), (fields[i] for i in texts)))
        rows.append(row | {"label": labels.index(fields[label]) if len(labels) > 1 else float(fields[label])})
    return rows


def read_quoted(path: Path, labels: Sequence[str]) -> list[dict]:
    """Rows of WiC: in both texts the word in question stands between quotes."""
    pairs, same = read_wic(path)
    rows = []
    for sides, label in zip(pairs, same):
        cuts = [(side["text"], side["start"], side["start"] + len(side["word"])) for side in sides]
        texts = [f'{text[:start]}" {text[start:end]} "{text[end:]}' for text, start, end in cuts]
        rows.append(dict(zip(("text", "text_pair"), texts)) | {"label": int(label)})
    return rows


def read_names(path: Path, labels: Sequence[str]) -> list[dict]:
    """Rows of a CoNLL file. WikiANN has the language before each token, "en:", and two lists of several hundred words, which
    no model of 512 positions reads: sentences of more than 250 words are left out."""
    rows = [row for row in tasks.read("entities", path, labels) if len(row["tokens"]) <= 250]
    return [row | {"tokens": [token.removeprefix("en:") for token in row["tokens"]]} for row in rows]


def read_questions(path: Path, labels: Sequence[str]) -> list[dict]:
    return tasks.read("passages", path)


def iob2(*types: str) -> list[str]:
    return ["O", *(f"{place}-{name}" for name in types for place in "BI")]


# The published scores are those of google-research/bert, README ("24 smaller BERT models", March 2020), on GLUE's test splits,
# whose labels are secret: for SST-2 and CoLA they are of other rows than ours, the development splits.
# Learning rates are those of `finetuning.LEARNING_RATES`. Epochs: SST-2, 600 rows kept out of its training split, after training
# on 1,000 others: 0.71 from the fifth epoch on. MRPC, 500 kept out, 1,500 trained on: 0.67, 0.67, 0.63 (one seed each). The
# others were not tried; they are as few because a run on one core of a CPU takes minutes.
SST_2 = dict(task="sentiment", read=partial(read_table, ("sentence", "label")), train="sst2/train.tsv", test="sst2/dev.tsv",
             labels=("0", "1"), scores={"accuracy": (0.832, 0.859)})
BENCHMARKS = {
    "SST-2, 1,000 examples": Benchmark(**SST_2 | {"scores": {"accuracy": ()}}, size=1000, epochs=6, learning_rate=4e-4),
    "MRPC": Benchmark(
        "paraphrase", partial(read_table, ("#1 String", "#2 String", "Quality")), "mrpc/train.tsv", "mrpc/test.tsv", ("0", "1"),
        {"accuracy": (0.711, 0.718), "f1": (0.811, 0.811)}, epochs=2, learning_rate=3e-4,
    ),
    "WNUT17": Benchmark(
        "entities", read_names, "wnut17/train.conll", "wnut17/test.conll",
        iob2("corporation", "creative-work", "group", "location", "person", "product"), {"f1": ()}, epochs=3, learning_rate=6e-4,
    ),
    "STS-B": Benchmark(
        "paraphrase", partial(read_table, ("sentence1", "sentence2", "score")), "stsb/train.tsv", "stsb/test.tsv",
        ("similarity",), {"pearson": (0.743, 0.754), "spearman": (0.736, 0.733)}, epochs=2, learning_rate=3e-4,
    ),
    "CoLA": Benchmark(
        "sentiment", partial(read_table, ("sentence", "label")), "cola/train.tsv", "cola/dev.tsv", ("0", "1"),
        {"matthews": (0.0, 0.0)}, epochs=2, learning_rate=4e-4,
    ),
    "WiC": Benchmark("paraphrase", read_quoted, "wic/train.tsv", "wic/test.tsv", ("F", "T"), {"accuracy": ()},
                     epochs=2, learning_rate=3e-4),
    "WikiANN, 2,000 sentences": Benchmark(
        "entities", read_names, "wikiann_en/train", "wikiann_en/test", iob2("LOC", "ORG", "PER"), {"f1": ()},
        size=2000, epochs=4, learning_rate=6e-4,
    ),
    "XQuAD, 2,000 questions": Benchmark(
        "passages", read_questions, "squadshifts/new_wiki.json", "xquad_en/xquad.en.json", (),
        {"exact_match": (), "f1": ()}, size=2000, epochs=2, learning_rate=6e-4,
    ),
    "SST-2": Benchmark(**SST_2, epochs=1, learning_rate=4e-4),
}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}  # as the checkpoint was pretrained
FINE_TUNED = ("pretrained", "transformers", "random")


def study_benchmarks(output: Path, seeds: int, folder: Path, checkpoint: Path) -> dict:
    """Scores of the benchmarks in `folder`, by benchmark, seed and kind of model.

    "pretrained" is the checkpoint in our code. "transformers" is the same with the classes of `transformers`, from the same
    start: the head of either has the same random weights. "random" is the same network from random weights. "bag of words",
    for pairs also "bag of differences" (words that both texts have, words that one has), counts; "rule" is what needs next to
    no learning: the most frequent label, the share of words that two texts have in common (where a number is asked for), each
    word's most frequent tag, or the sentence with most words of the question.

    Each model is trained with the settings of `BENCHMARKS` for all their epochs, and scored once, on the test file.

    Raises:
        ValueError: if no benchmark is in `folder`; if `output` holds runs of another checkpoint, other data or settings.
    """
    tokenizer = WordPieceTokenizer.from_pretrained(checkpoint)
    result = opened(output, fingerprint(checkpoint / "model.safetensors"))
    stored = {(run["benchmark"], run["seed"], run["kind"]): run["made_from"] for run in result["runs"]}
    plan, made_from = [], {}
    for name, benchmark in BENCHMARKS.items():
        files = folder / benchmark.train, folder / benchmark.test
        if not all(file.exists() for file in files):
            print(f"{name} is left out: {folder} lacks {benchmark.train} or {benchmark.test}.", file=sys.stderr)
            continue
        settings = f"{benchmark.epochs} epochs of {benchmark.learning_rate}, {benchmark.size or 'all'} rows, no dropout"
        made_from[name] = f"{fingerprint(*files)} {settings}"
        for seed in range(seeds):
            for kind in (*FINE_TUNED, *baselines(benchmark)):
                if kind in FINE_TUNED or benchmark.size or seed == 0:  # other baselines are the same for every seed
                    plan.append((name, seed, kind))
    plan.sort(key=lambda run: run[1] > 0 and run[2] == "transformers")  # one seed shows nearly all; the others come last
    if not plan:
        raise ValueError(f"{folder} has none of the benchmarks: {', '.join(BENCHMARKS)}.")
    if other := {run[0] for run, stamp in stored.items() if made_from.get(run[0], stamp) != stamp}:
        raise ValueError(f"{output}: {', '.join(sorted(other))} was made with other data or settings. Move it away.")
    for name, seed, kind in tqdm([run for run in plan if run not in stored], unit="run"):
        started, benchmark = time.process_time(), BENCHMARKS[name]
        train, test = (benchmark.read(folder / file, benchmark.labels) for file in (benchmark.train, benchmark.test))
        if benchmark.size:
            train = random.Random(seed).sample(train, benchmark.size)
        if kind in FINE_TUNED:
            guesses = fine_tuned(kind, benchmark, checkpoint, tokenizer, train, test, seed)
        else:
            guesses = baselines(benchmark)[kind](train, test)
        run = {"benchmark": name, "seed": seed, "kind": kind, "scores": score(benchmark, test, guesses)}
        seconds = round(time.process_time() - started, 1)
        store(output, result, run | {"rows": [len(train), len(test)], "made_from": made_from[name], "seconds": seconds})
    return result


def fine_tuned(
    kind: str, benchmark: Benchmark, checkpoint: Path, tokenizer: WordPieceTokenizer, train: list, test: list, seed: int
) -> Sequence:
    """What a model says of `test` after training."""
    torch.manual_seed(seed)
    labels = {"id2label": dict(enumerate(benchmark.labels))} if benchmark.labels else {}
    model = finetuning.start_from(benchmark.task, checkpoint, **NO_DROPOUT, **labels)
    if kind == "random":
        model = type(model)(model.config)
    if kind == "transformers":
        model = in_transformers(model)
    settings = {"epochs": benchmark.epochs, "learning_rate": benchmark.learning_rate, "seed": seed}
    finetuning.fine_tune(benchmark.task, model.to(lesson.device()), tokenizer, train, train[:2], **settings)
    guesses = finetuning.predict(benchmark.task, model, tokenizer, test)
    if benchmark.task == "passages":  # in SQuAD 1.1 every question has an answer
        return [next(answer["text"] for answer in best if answer["text"]) for best in guesses]
    if benchmark.task == "entities":
        return guesses
    return guesses[:, 0] if len(benchmark.labels) == 1 else guesses.argmax(-1)


def in_transformers(model: torch.nn.Module) -> torch.nn.Module:
    """The same network with the same weights, as `transformers` opens what we save."""
    import transformers

    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(model, folder)
        return getattr(transformers, type(model).__name__).from_pretrained(folder)


def baselines(benchmark: Benchmark) -> dict[str, Callable[[list[dict], list[dict]], Sequence]]:
    """By kind: (train, test) -> guesses."""
    if benchmark.task == "entities":
        return {"rule": partial(usual_tags, benchmark.labels)}
    if benchmark.task == "passages":
        return {"rule": lambda train, test: list(map(most_shared, test))}
    number = len(benchmark.labels) == 1
    if benchmark.task == "sentiment":
        bags = {"bag of words": partial(counted, number, lambda row: row["text"])}
    else:
        bags = {"bag of words": partial(counted, number, lambda row: f"{row['text']} {row['text_pair']}"),
                "bag of differences": partial(counted, number, differences)}
    return bags | {"rule": overlaps if number else most_frequent_label}


def counted(number: bool, text: Callable[[dict], str], train: list[dict], test: list[dict]) -> np.ndarray:
    bag = finetuning.bag_of_words()
    if number:
        bag = make_pipeline(bag[0], Ridge())
    bag.fit(list(map(text, train)), [row["label"] for row in train])
    return bag.predict(list(map(text, test)))


def words_of(text: str) -> set[str]:
    return set(re.findall(r"[\w']+", text.lower()))


def differences(row: dict) -> str:
    """A pair as one text of marked words: "both_lamp one_old"."""
    a, b = words_of(row["text"]), words_of(row["text_pair"])
    return " ".join(f"both_{word}" if word in a & b else f"one_{word}" for word in sorted(a | b))


def overlaps(train: list[dict], test: list[dict]) -> list[float]:
    sides = [(words_of(row["text"]), words_of(row["text_pair"])) for row in test]
    return [len(a & b) / len(a | b) for a, b in sides]


def most_frequent_label(train: list[dict], test: list[dict]) -> list[int]:
    [(label, _)] = Counter(row["label"] for row in train).most_common(1)
    return [label] * len(test)


def usual_tags(labels: Sequence[str], train: list[dict], test: list[dict]) -> list[list[str]]:
    """Each word's most frequent tag in `train`; O for words that are new."""
    tags = defaultdict(Counter)
    for row in train:
        for token, tag in zip(row["tokens"], row["ner_tags"]):
            tags[token][labels[tag]] += 1
    usual = {token: count.most_common(1)[0][0] for token, count in tags.items()}
    return [[usual.get(token, "O") for token in row["tokens"]] for row in test]


def most_shared(row: dict) -> str:
    """The sentence of the passage with most words of the question."""
    asked = words_of(row["question"])
    return max(split_sentences(row["context"]), key=lambda sentence: len(words_of(sentence) & asked))


def score(benchmark: Benchmark, rows: list[dict], guesses: Sequence) -> dict:
    """Classes: accuracy and its 95% `interval`, f1 of the second, Matthews' correlation. Numbers: Pearson's and Spearman's
    correlation. Entities and passages: as `finetuning` scores them."""
    if benchmark.task == "passages":
        scores = finetuning.score_answers(rows, guesses)
    elif benchmark.task == "entities":
        scores = finetuning.score_entities([[benchmark.labels[i] for i in row["ner_tags"]] for row in rows], guesses)
    else:
        truth = [row["label"] for row in rows]
        if len(benchmark.labels) == 1:
            scores = {"pearson": pearsonr(truth, guesses).statistic, "spearman": spearmanr(truth, guesses).statistic}
        else:
            scores = {"accuracy": accuracy_score(truth, guesses), "f1": f1_score(truth, guesses, zero_division=0)}
            scores["matthews"] = matthews_corrcoef(truth, guesses)
            scores["low"], scores["high"] = finetuning.bootstrap(np.equal(truth, guesses))
    return {name: round(float(value), 4) for name, value in scores.items()}


def table(result: dict) -> str:
    """The mean of each score in percent (lowest and highest of several seeds), as a table in Markdown."""
    kinds = (*FINE_TUNED, "bag of words", "bag of differences", "rule")
    found = defaultdict(list)
    for run in result["runs"]:
        for name, value in run["scores"].items():
            found[run["benchmark"], name, run["kind"]].append(100 * value)
    lines = [["", *kinds, "BERT-Tiny", "BERT-Mini"]]
    for benchmark, settings in BENCHMARKS.items():
        for name, published in settings.scores.items():
            cells = [found[benchmark, name, kind] for kind in kinds]
            if any(cells):
                of_others = [f"{100 * value:.1f}" for value in published] or ["", ""]
                lines.append([f"{benchmark}: {name}", *map(mean_and_range, cells), *of_others])
    return markdown(lines)
