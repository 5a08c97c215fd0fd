"""Lessons 01 to 04: Word2Vec, ELMo, GPT and BERT, trained on the same text and put to the same questions."""

import copy
import json
import random
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tqdm.auto import tqdm

from .. import baselines, corpora, data_path, finetuning, lesson, plots, probes, tasks
from ..baselines import elmo, gpt, rnn
from ..checkpoint import from_pretrained
from ..config import BertConfig
from ..model import BertForPreTraining, BertForSequenceClassification
from ..objectives import Objective, pair_batches
from ..pretraining import Recipe, pretrain
from ..shards import split_sentences
from ..wordpiece import WordPieceTokenizer
from .store import fingerprint, opened, store
from .word2vec import without_word


class Sibling(NamedTuple):
    """How `study_siblings` trains and questions a model."""

    body: str  # the attribute of the pretrained model that is called as `BertModel` is
    gap_scores: Callable  # (model, tokenizer, left, right) -> a score for every piece in the gap between them
    classifier: type[torch.nn.Module] | None  # fine-tuned on data/reviews


SIBLINGS = {
    "recurrent": Sibling("rnn", rnn.gap_scores, None),
    "bilm": Sibling("elmo", elmo.gap_scores, elmo.ElmoForSequenceClassification),
    "causal": Sibling("bert", rnn.gap_scores, gpt.CausalForSequenceClassification),
    "mlm": Sibling("bert", probes.gap_scores, BertForSequenceClassification),
    "mlm+nsp": Sibling("bert", probes.gap_scores, BertForSequenceClassification),
}


NAMES = {
    "skipgram": "Word2Vec", "recurrent": "LSTM", "bilm": "ELMo", "causal": "GPT", "mlm": "BERT without NSP", "mlm+nsp": "BERT"
}
TRIED_RATES = {"skipgram": (0.025, 0.05, 0.1)} | dict.fromkeys(SIBLINGS, (1e-3, 2e-3, 4e-3))
FINE_TUNING_RATES = (5e-4, 2e-3)
SIBLING_PHASES = ((0.6, 32, 0.15, 1024), (0.4, 64, 0.15, 1024))  # of `Recipe`; small batches: the budget is small


def study_siblings(
    output: Path,
    seeds: int,
    corpus: str | Path = "docstrings",
    tokens: int = 2_000_000,
    tasks_folder: Path | None = None,
    kinds: Sequence[str] = ("skipgram", "bilm", "causal", "mlm", "mlm+nsp"),
) -> dict:
    """Word2Vec, ELMo, GPT and BERT, of two layers and about 1.5 million parameters each, trained on the same `tokens` tokens
    of one text with the vocabulary of data/bert-course-mini, and put to the same questions.

    "trials" is how each kind got its learning rate: short runs of a fifth of the tokens at each of `TRIED_RATES`, seed 0, by
    "held_out": the loss on text that is not trained on, or Word2Vec's `mean_rank` there. "most frequent word" is the share of
    gaps (see below) that it fills.

    What a run holds, by kind and seed:
    - parameters; megabytes and tokens_per_second (see `cost`); learning_rate; curve, the training losses as `curve` gives them
      (not Word2Vec's, which gensim does not tell); held_out, the losses on text that is not trained on.
    - gaps: share of `held_out_gaps` for which the right piece scores highest, from the context on the "left" only, on the
      "right" only, and from "both". ELMo's halves each give the one side that they read; for both, their logarithms are added
      and that of the piece's frequency, which is in both, taken off. GPT reads no right side; "gaps sentence" is what it says
      when it compares: of the 20 pieces that score highest after the left side, the one that suits the whole sentence best.
    - cloze: for each sentence of data/cloze the margin of the right word over the other (see `probes.cloze_pairs`). ELMo adds
      what both halves say; "cloze left" and "cloze right" are its halves alone, which read only that side; GPT adds
      "cloze sentence", by the probability of the whole sentence with either word.
    - senses: `probes.sense_accuracy` on data/senses, for every layer above the embeddings five splits. Word2Vec has one vector
      a piece, so it gets the mean of the sentence's other pieces.
    - wic, if `tasks_folder` has a folder wic (Pilehvar and Camacho-Collados 2019): accuracy of "the same sense?" on the test
      split, by layer: the cosine of a word's two vectors, and the threshold that is best on the development split.
    - reviews: `finetuning.score` of the test split by logistic regression on mean vectors ("frozen"; layer and penalty chosen
      on the validation split) and by fine-tuning ("fine-tuned", four epochs; of `FINE_TUNING_RATES` the one that is better
      on the validation split).

    Args:
        corpus: as `corpora.documents` reads it.
        tokens: read by each model, [CLS] and [SEP] counted. Word2Vec reads the same text, once, as all do.
        kinds: "recurrent", an LSTM language model, only if asked for: the forward half of ELMo is one.
    Also draws the gaps into a PNG file beside `output`.

    Raises:
        ValueError: if `output` holds runs of other data or settings, or the corpus is too small.
    """
    from ..baselines import word2vec

    device = lesson.device().type
    tokenizer = WordPieceTokenizer.from_pretrained(data_path("bert-course-mini"))
    config = BertConfig.preset("tiny", vocab_size=tokenizer.vocab_size, max_position_embeddings=128)
    size = rnn.parameters(BertForPreTraining, config)
    splits = ("train", "validation", "test")
    files = {name: data_path(name) for name in ("reviews", "senses", "cloze")}
    tables = [path for folder in files.values() for path in sorted(folder.glob("*.csv"))]
    reviews = [tasks.read("sentiment", files["reviews"] / f"{split}.csv") for split in splits]
    senses = [row for split in ("train", "test") for row in tasks.read_senses(files["senses"] / f"{split}.csv")]
    sense_splits = [probes.random_split(senses, seed) for seed in range(5)]
    gaps = tasks.read_cloze(files["cloze"] / "test.csv")
    wic = {split: read_wic(tasks_folder / "wic" / f"{split}.tsv") for split in ("dev", "test")} if tasks_folder else {}

    def margins(scores: Callable) -> list[float]:
        return probes.cloze_margins(tokenizer, gaps, scores).round(3).tolist()

    def questions(target_vectors: Callable, mean_vectors: Callable) -> dict:
        """Both arguments: (rows or texts) -> (rows, layers, D)."""
        layers = target_vectors(senses).transpose(1, 0, 2)
        answers = {"senses": [[probes.sense_accuracy(x, senses, split).round(4) for split in sense_splits] for x in layers]}
        if wic:
            vectors = {split: [target_vectors(side) for side in zip(*pairs)] for split, (pairs, _) in wic.items()}
            answers["wic"] = same_sense(*((vectors[split], labels) for split, (_, labels) in wic.items()))
        vectors = [mean_vectors([row["text"] for row in rows]).transpose(1, 0, 2) for rows in reviews]
        return answers | {"reviews": {"frozen": frozen_scores(vectors, *reviews)}}

    def train(kind: str, folder: Path, budget: int, rate: float, seed: int) -> tuple:
        """The trained model, or Word2Vec's two tables, and what there is to store of the training."""
        run = {"kind": kind, "seed": seed, "tokens": budget, "learning_rate": rate}
        if kind == "skipgram":
            started = time.process_time()
            tables = word2vec.pretrain(text, folder, tokenizer, round(size / tokenizer.vocab_size / 2), budget, rate, seed)
            run["tokens_per_second"] = round(budget / (time.process_time() - started))
            return tables, run | {"held_out": {"mean_rank": mean_rank(*tables, held_out)}}
        objective = objectives[kind]
        mine = rnn.sized(objective.model, config, size) if kind in ("recurrent", "bilm") else config
        settings = {"phases": SIBLING_PHASES, "learning_rate": rate, "warmup": 0.05, "seed": seed}
        recipe = Recipe(tokens=budget, objective=objective, **settings)
        model = pretrain(text, folder, tokenizer, mine, recipe, device, progress_bar=False)
        return model, run | {"held_out": held_out_losses(model, objective, tokenizer, held_out)}

    def word_vectors(vectors: torch.Tensor, contexts: torch.Tensor) -> dict:
        def means(texts):
            return np.stack([vectors[tokenizer.encode(text)].mean(0, keepdim=True).numpy() for text in texts])

        numbers = vectors.numel() + contexts.numel()
        run = {"parameters": numbers, "megabytes": round(4 * numbers / 1e6)}
        scores = partial(word2vec.gap_scores, vectors, contexts)
        run |= {"gaps": {side: filled(asked, scores, side) for side in SHOWN}, "cloze": margins(scores)}
        return run | questions(lambda rows: means(map(without_word, rows)), means)

    def network(kind: str, model: torch.nn.Module, folder: Path, seed: int) -> dict:
        sibling = SIBLINGS[kind]
        run = {"parameters": sum(p.numel() for p in model.parameters())} | cost(model, objectives[kind], tokenizer)
        scores = partial(sibling.gap_scores, model, tokenizer)
        by_side = dict.fromkeys(SHOWN, scores)
        run |= {"curve": curve(folder / "log.jsonl"), "cloze": margins(scores)}
        if kind == "bilm":
            halves = {side: partial(elmo.gap_scores, model, tokenizer, sides=side) for side in ("left", "right")}
            run |= {f"cloze {side}": margins(half) for side, half in halves.items()}
            by_side = halves | {"both": lambda left, right: scores(left, right) - frequency}
        run["gaps"] = {side: filled(asked, one, side) for side, one in by_side.items()}
        if kind == "causal":
            run |= sentences(model, scores)
        body = getattr(model, sibling.body)

        def upper_layers(rows):  # in the embeddings a word has the same vector everywhere
            return probes.target_vectors(body, tokenizer, rows)[:, 1:]

        run |= questions(upper_layers, partial(probes.mean_vectors, body, tokenizer))
        if sibling.classifier:
            run["reviews"]["fine-tuned"] = fine_tuned_scores(sibling.classifier, folder, tokenizer, reviews, seed, device)
        return run

    def sentences(model: torch.nn.Module, scores: Callable) -> dict:
        """What a model that reads from left to right says when it compares whole sentences."""
        whole = partial(gpt.sentence_scores, model, tokenizer)
        right, found = [], []
        for left, piece, after in asked:
            best = scores(left, after).topk(20).indices
            right.append(int(best[whole(left, best.tolist(), after).argmax()]) == piece)
        for row in gaps:
            left, after = probes.sides(tokenizer, row)
            word, other = whole(left, [tokenizer.vocab[row["word"]], tokenizer.vocab[row["other"]]], after).tolist()
            found.append(round(word - other, 3))
        return {"gaps sentence": round(float(np.mean(right)), 4), "cloze sentence": found}

    objectives = baselines.objectives()
    with tempfile.TemporaryDirectory() as temporary:
        text = Path(temporary) / "text.txt"
        held_out = sibling_text(corpus, tokenizer, tokens, text)
        asked = held_out_gaps(held_out, tokenizer)
        counts = torch.bincount(torch.tensor([i for d in corpora.documents(text) for p in d for i in tokenizer.encode(p)]),
                                minlength=tokenizer.vocab_size)
        frequency = (counts + 1.0).log()
        made_from = fingerprint(*tables, text) + f" {tokens} tokens of {Path(corpus).stem}"
        result = opened(output, f"{made_from} {TRIED_RATES} {FINE_TUNING_RATES} {SIBLING_PHASES}")
        most_frequent = max((frequency[piece], piece) for _, piece, _ in asked)[1]
        result["most frequent word"] = round(float(np.mean([piece == most_frequent for _, piece, _ in asked])), 4)
        done = {(run["seed"], run["kind"]) for run in result["runs"]}
        plan = [(seed, kind) for seed in range(seeds) for kind in kinds if (seed, kind) not in done]
        tried = {(trial["kind"], trial["learning_rate"]) for trial in result.get("trials", [])}
        trials = [(kind, rate) for kind in kinds for rate in TRIED_RATES[kind] if (kind, rate) not in tried]
        for kind, rate in tqdm(trials, desc="learning rates", unit="run"):
            store(output, result, train(kind, Path(temporary) / f"{kind} {rate}", tokens // 5, rate, 0)[1], "trials")
        for seed, kind in tqdm(plan, unit="run"):
            started, folder = time.perf_counter(), Path(temporary) / f"{kind} seed {seed}"
            model, run = train(kind, folder, tokens, best_rate(result["trials"], kind), seed)
            run |= word_vectors(*model) if kind == "skipgram" else network(kind, model, folder, seed)
            store(output, result, run | {"seconds": round(time.perf_counter() - started, 1)})
    baseline = ("the most frequent word", result["most frequent word"])
    plots.grouped_bars(gap_shares(result["runs"]), "gaps filled (share)", baseline, output.with_suffix(".png"))
    return result


def gap_shares(runs: list[dict]) -> dict[str, dict[str, list[float]]]:
    """For each side that is shown and each kind: the shares of gaps filled, a seed each."""
    shares = defaultdict(lambda: defaultdict(list))
    for run in runs:
        for side, share in run["gaps"].items():
            shares["both sides" if side == "both" else f"{side} side only"][NAMES[run["kind"]]].append(share)
        if "gaps sentence" in run:
            shares["both sides"]["GPT, comparing 20 sentences"].append(run["gaps sentence"])
    return shares


def best_rate(trials: list[dict], kind: str) -> float:
    """The learning rate with the least sum of held-out losses (of those that are minimised)."""
    weights = baselines.objectives()[kind].weights if kind in SIBLINGS else {"mean_rank": 1.0}
    mine = [trial for trial in trials if trial["kind"] == kind]
    return min(mine, key=lambda t: sum(w * t["held_out"][name] for name, w in weights.items()))["learning_rate"]


def sibling_text(corpus: str | Path, tokenizer: WordPieceTokenizer, tokens: int, path: Path) -> list:
    """Write the start of a corpus, `tokens` tokens in documents of ten paragraphs, to `path`: all that is counted or learned
    comes from there. Returns every fortieth document, which is left out there, tokenized, to measure with."""
    documents = (d[i : i + 10] for d in corpora.documents(corpus) for i in range(0, len(d), 10))
    kept, held_out, count = [], [], 0
    for number, document in enumerate(documents):
        ids = [tokenizer.encode(sentence) for paragraph in document for sentence in split_sentences(paragraph)]
        if number % 40 == 39:
            held_out.append(ids)
            continue
        kept.append(document)
        count += sum(map(len, ids))
        if count >= tokens and held_out:
            corpora.write(kept, path)
            return held_out
    raise ValueError(f"corpus '{corpus}' has {count:,} tokens; needed are {tokens:,} and some to measure with.")


def held_out_gaps(documents: list, tokenizer: WordPieceTokenizer, count: int = 1000) -> list[tuple[list[int], int, list[int]]]:
    """(left, piece, right) for a random word in each of up to `count` sentences of 12 to 60 pieces, as ids. The word is one
    piece of letters and has at least four pieces on either side."""
    pieces, rng, found = tokenizer.tokens, random.Random(0), []
    for sentence in {tuple(s): None for s in chain.from_iterable(documents) if 12 <= len(s) <= 60}:
        names = [pieces[i] for i in sentence]
        words = [i for i in range(4, len(sentence) - 4) if names[i].isalpha() and not names[i + 1].startswith("##")]
        if words:
            i = rng.choice(words)
            found.append((list(sentence[:i]), sentence[i], list(sentence[i + 1 :])))
    if not found:
        raise ValueError("no sentence of the held-out text has 12 to 60 pieces and a whole word in the middle. Take more text.")
    return rng.sample(found, min(count, len(found)))


SHOWN = {"left": lambda left, right: (left, []), "right": lambda left, right: ([], right), "both": lambda *sides: sides}


def filled(asked: list[tuple[list[int], int, list[int]]], scores: Callable, side: str) -> float:
    """Share of gaps in which the right piece has the highest of `scores(left, right)` (V,), when a side of `SHOWN` is shown."""
    answers = [int(scores(*SHOWN[side](left, right)).argmax()) == piece for left, piece, right in asked]
    return round(float(np.mean(answers)), 4)


def curve(log: Path, points: int = 40) -> dict[str, list]:
    """The tokens read, and the mean of each loss since the point before."""
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    if not lines:
        return {}  # so short a run that nothing was logged
    parts = np.array_split(lines, min(points, len(lines)))
    names = [name for name in lines[0] if name.endswith("loss")]
    losses = {name: [round(float(np.mean([line[name] for line in part])), 3) for part in parts] for name in names}
    return {"tokens": [part[-1]["tokens"] for part in parts]} | losses


@torch.no_grad()
def held_out_losses(model: torch.nn.Module, objective: Objective, tokenizer: WordPieceTokenizer, documents: list) -> dict:
    """Means over 20 batches of up to 32 rows of up to 64 tokens; 15% are masked where any are."""
    generator, device = torch.Generator().manual_seed(0), next(model.parameters()).device
    losses = defaultdict(list)
    for rows in pair_batches(documents, tokenizer, 64, 2048, random.Random(0), objective.name)[:20]:
        ready = objective.prepare(rows, tokenizer, 0.15, generator)
        ready = {name: x if x is None else x.to(device) for name, x in ready.items()}
        for name, loss in objective.losses(model, ready).items():
            losses[name].append(loss.item())
    return {name: round(float(np.mean(values)), 4) for name, values in losses.items()}


def mean_rank(vectors: torch.Tensor, contexts: torch.Tensor, documents: list) -> float:
    """The mean rank (its logarithm to base 2) of the right piece among all, guessed from five pieces on either side."""
    ranks = []
    for sentence in list(chain.from_iterable(documents))[:200]:
        for i in range(len(sentence) - 1):
            scores = contexts @ vectors[sentence[max(0, i - 5) : i] + sentence[i + 1 : i + 6]].mean(0)
            ranks.append(1 + int((scores > scores[sentence[i]]).sum()))
    return round(float(np.log2(ranks).mean()), 4)


def cost(model: torch.nn.Module, objective: Objective, tokenizer: WordPieceTokenizer) -> dict[str, int]:
    """Of training on a batch of 32 rows of 64 tokens, AdamW included.

    Returns:
        tokens_per_second: the fastest of five steps; on a CPU, seconds of one core at work (other programs do not count).
        megabytes: parameters, gradients and AdamW's two averages, and what is kept between forward and backward pass.
    """
    device = next(model.parameters()).device
    model = copy.deepcopy(model).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    rows = {"input_ids": torch.randint(5, tokenizer.vocab_size, (32, 64), generator=torch.Generator().manual_seed(0))}
    rows |= {"token_type_ids": torch.zeros(32, 64, dtype=torch.long), "next_sentence_label": torch.zeros(32, dtype=torch.long)}
    ready = objective.prepare(rows, tokenizer, 0.15, torch.Generator().manual_seed(0))
    ready = {name: x if x is None else x.to(device) for name, x in ready.items()}
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def note(tensor):
        if (storage := tensor.untyped_storage()).data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    def now() -> float:
        if device.type == "cpu":
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()

    seconds = []
    for _ in range(5):
        started = now()
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            losses = objective.losses(model, ready)
        sum(weight * losses[name] for name, weight in objective.weights.items()).backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(now() - started)
        held, kept = sum(kept.values()), {}
    weights = sum(4 * p.numel() * p.element_size() for p in model.parameters())
    return {"tokens_per_second": round(32 * 64 / min(seconds)), "megabytes": round((weights + held) / 1e6)}


def frozen_scores(vectors: list[np.ndarray], train: list[dict], validation: list[dict], test: list[dict]) -> dict:
    """Logistic regression on the vectors (layers, rows, D) of three splits, by the layer and penalty best on the second."""
    labels = [[row["label"] for row in rows] for rows in (train, validation, test)]
    trials = []
    for layer, (x, y, z) in enumerate(zip(*vectors)):
        for c in (0.003, 0.03, 0.3):
            fitted = make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=1000)).fit(x, labels[0])
            trials.append((fitted.score(y, labels[1]), layer, fitted.predict(z).tolist()))
    _, layer, guesses = max(trials, key=lambda trial: trial[0])
    return finetuning.score(test, guesses) | {"layer": layer}


def fine_tuned_scores(
    classifier: type[torch.nn.Module], folder: Path, tokenizer: WordPieceTokenizer, reviews: list, seed: int, device: str
) -> dict:
    """Of the test split, by the learning rate that is best on the validation split."""
    trials = []
    for rate in FINE_TUNING_RATES:
        torch.manual_seed(seed)
        labels = dict(enumerate(tasks.LABELS["sentiment"]))
        model = from_pretrained(classifier, folder, new_head=True, id2label=labels).to(device)
        settings = {"epochs": 4, "learning_rate": rate, "seed": seed}
        history = finetuning.fine_tune("sentiment", model, tokenizer, *reviews[:2], **settings)
        trials.append((history[-1]["accuracy"], rate, model))
    _, rate, model = max(trials, key=lambda trial: trial[0])
    guesses = finetuning.predict("sentiment", model, tokenizer, reviews[2]).argmax(-1).tolist()
    return finetuning.score(reviews[2], guesses) | {"learning_rate": rate}


def read_wic(path: Path) -> tuple[list[tuple[dict, dict]], np.ndarray]:
    """Pairs of rows for `probes.target_vectors`, and whether the word has the same sense in both."""
    pairs, labels = [], []
    for line in path.read_text(encoding="utf-8").splitlines()[1:]:
        _, _, places, *texts, label = line.split("\t")
        sides = []
        for place, text in zip(map(int, places.split("-")), texts):
            tokens = text.split(" ")
            sides.append({"text": text, "word": tokens[place], "start": len(" ".join(tokens[:place] + [""]))})
        pairs.append(tuple(sides))
        labels.append(label == "T")
    return pairs, np.array(labels)


def same_sense(known: tuple, asked: tuple) -> list[float]:
    """Accuracy of "same sense?" for each layer; both arguments: two lists of vectors (pairs, layers, D), and answers."""
    cosines = []
    for (a, b), _ in (known, asked):
        a, b = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (a, b))
        cosines.append((a * b).sum(-1).T)  # (layers, pairs)
    scores = []
    for one, other in zip(*cosines):
        threshold = max(np.sort(one), key=lambda t: np.mean((one >= t) == known[1]))
        scores.append(round(float(np.mean((other >= threshold) == asked[1])), 4))
    return scores
