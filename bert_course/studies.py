"""The studies behind tables in the lessons: many runs, each stored as soon as it is done.

A stopped study goes on where it stopped; one of other data or settings is not mixed in.
"""

import copy
import hashlib
import json
import random
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from datetime import date
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from scipy.stats import spearmanr
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tqdm.auto import tqdm

from . import baselines, corpora, data_path, finetuning, lesson, probes, recall, tasks
from .baselines import elmo, gpt, rnn
from .baselines.bi_encoder import BiEncoder
from .checkpoint import from_pretrained
from .config import BertConfig
from .doctor import processor
from .files import read_json, replacing
from .inputs import batch, encode
from .model import (
    BertForPreTraining,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
)
from .pretraining import OBJECTIVES, Objective, Recipe, pair_batches, pretrain, raw_documents, split_sentences
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
    train, validation, test, challenge = (tasks.read("sentiment", path) for path in files)
    texts = [row["text"] for row in (*test, *challenge)]
    epochs = epochs or {len(train): 8}
    rates = finetuning.LEARNING_RATES["sentiment"]
    made_from = fingerprint(checkpoint / "model.safetensors", *files) + f" {sorted(epochs.items())} {rates}"
    result = opened(output, made_from)

    def fine_tuned(kind: str, rows: list[dict], seed: int) -> tuple[list[int], list[dict]]:
        torch.manual_seed(seed)
        model = finetuning.start_from("sentiment", checkpoint)
        if kind == "random":
            model = BertForSequenceClassification(model.config)
        settings = {"epochs": epochs[len(rows)], "learning_rate": rates[kind], "seed": seed}
        history = finetuning.fine_tune("sentiment", model, tokenizer, rows, validation, **settings)
        return finetuning.predict("sentiment", model, tokenizer, [*test, *challenge]).argmax(-1).tolist(), history

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


def study_entities(
    output: Path, seeds: int, checkpoint: str | Path | None = None, epochs: dict[int, int] | None = None
) -> dict:
    """Tags for the test split of data/entities and their scores, by seed, number of training sentences and kind of model.

    The kinds: "pretrained", "random" (the same network from random weights) and, for the uncased checkpoint, "capitals marked":
    pretrained, with "^" behind every word that has a capital (`marked`). The last two with all training sentences only.

    Args:
        epochs: by number of training sentences; default: 6 for all of them, 10 for 300 and 24 for 100.
    Raises:
        ValueError: if `output` holds runs of another checkpoint, other sentences or other numbers of epochs.
    """
    checkpoint = Path(checkpoint or data_path("bert-course-mini"))
    tokenizer = WordPieceTokenizer.from_pretrained(checkpoint)
    files = [data_path("entities") / f"{split}.conll" for split in tasks.SPLITS[:3]]
    splits = [tasks.read("entities", path) for path in files]
    whole = len(splits[0])
    epochs = epochs or {whole: 6, 300: 10, 100: 24}
    rates = finetuning.LEARNING_RATES["entities"]
    made_from = fingerprint(checkpoint / "model.safetensors", *files) + f" {sorted(epochs.items())} {rates}"
    result = opened(output, made_from)
    done = {(run["seed"], run["size"], run["kind"]) for run in result["runs"]}
    plan = [(seed, whole, kind) for seed in range(seeds) for kind in ("pretrained", "random", "capitals marked")]
    plan += [(seed, size, "pretrained") for seed in range(seeds) for size in epochs if size != whole]
    for seed, size, kind in tqdm([run for run in plan if run not in done], unit="run"):
        started = time.perf_counter()
        train, validation, test = map(marked, splits) if kind == "capitals marked" else splits
        torch.manual_seed(seed)
        model = finetuning.start_from("entities", checkpoint)
        if kind == "random":
            model = BertForTokenClassification(model.config)
        rate = rates["random" if kind == "random" else "pretrained"]
        settings = {"epochs": epochs[size], "learning_rate": rate, "seed": seed}
        chosen = random.Random(seed).sample(train, size)
        history = finetuning.fine_tune("entities", model, tokenizer, chosen, validation, **settings)
        guesses = finetuning.predict("entities", model, tokenizer, test)
        truth = [[tasks.LABELS["entities"][i] for i in row["ner_tags"]] for row in test]
        run = {"seed": seed, "size": size, "kind": kind, "scores": finetuning.score_entities(truth, guesses)}
        run |= {"history": history, "guesses": [" ".join(tags) for tags in guesses]}
        store(output, result, run | {"seconds": round(time.perf_counter() - started, 1)})
    return result


def marked(rows: list[dict]) -> list[dict]:
    """Sentences in which a "^" behind a word says that it has a capital; an uncased vocabulary keeps the sign."""
    return [row | {"tokens": [f"{word}^" if word[0].isupper() else word for word in row["tokens"]]} for row in rows]


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
    made_from = fingerprint(checkpoint / "model.safetensors", *files) + f" {sorted(sizes.items())}"
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
        rate = HEAD_RATES[task] if part == "head" else finetuning.LEARNING_RATES[task]["pretrained"]
        settings = {"epochs": epochs, "learning_rate": rate, "seed": seed}
        finetuning.fine_tune(task, model, tokenizer, train, train[:2], **settings)  # its last epoch is taken, whatever it is
        seconds = round(time.process_time() - started, 1)
        run = {"seed": seed, "data": data, "part": part, "size": size, "epochs": epochs}
        store(output, result, run | finetuning.evaluate(task, model, tokenizer, test) | {"seconds": seconds})
    return result


DEPTH_SIZE = 200
PARTS = ("head", "top layer", "top two layers", "all")
HEAD_RATES = {"sentiment": 1e-3, "entities": 1e-2}  # a head alone bears more; sentiment has the pooler in it (4e-3: no better)


def only(part: str, model: torch.nn.Module) -> torch.nn.Module:
    """The model with all but a part frozen: the "head" (with the pooler, if there is one), "top layer", "top two layers"."""
    layers = {"head": 0, "top layer": 1, "top two layers": 2}
    if part != "all":
        first = model.config.num_hidden_layers - layers[part]
        model.bert.embeddings.requires_grad_(False)
        model.bert.encoder.layer[:first].requires_grad_(False)
    return model


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
            for name, task, (train, validation, test) in (("reviews", "sentiment", reviews), ("answers", "paraphrase", answers)):
                torch.manual_seed(seed)
                model = finetuning.start_from(task, checkpoint)
                finetuning.fine_tune(task, model, tokenizer, train, validation, epochs=4, learning_rate=1e-3, seed=seed)
                run[name] = finetuning.evaluate(task, model, tokenizer, test)["accuracy"]
            store(output, result, run | {"seconds": round(time.perf_counter() - started, 1)})
    return result


def study_word2vec(output: Path, seeds: int, corpus: Path, word_pairs: Path) -> dict:
    """Word2Vec and the course's checkpoint, which read the same text: what each knows of senses and of pairs of words.

    "senses" is `probes.sense_accuracy` on data/senses. Word2Vec has one vector a word, so it gets the mean vector of the
    sentence's other words ("other words"). "pairs" is Spearman's correlation with people's scores of word pairs; BERT gets
    a word as its pieces' mean, in the embedding table ("table") or in the last layer, with the word alone as the text.

    Args:
        corpus: the text that the checkpoint was trained on.
        word_pairs: folder of files with a word, a word and a score a line, tabs between.
    Raises:
        ValueError: if `output` holds runs of another checkpoint, corpus or data.
    """
    from .baselines.word2vec import skip_gram, words

    folder = data_path("bert-course-mini")
    sense_files = [data_path("senses") / f"{split}.csv" for split in ("train", "test")]
    pair_files = sorted(word_pairs.glob("*.txt"))
    result = opened(output, fingerprint(folder / "model.safetensors", *sense_files, *pair_files))
    rows = [row for file in sense_files for row in tasks.read_senses(file)]
    splits = [probes.random_split(rows, seed) for seed in range(5)]
    pairs = {file.stem: [line.split("\t") for line in file.read_text("utf-8").splitlines()] for file in pair_files}

    def grade(sense_vectors: dict, word_vectors: dict) -> dict:
        senses = {
            name: [round(float(probes.sense_accuracy(vectors, rows, split)), 4) for split in splits]
            for name, vectors in sense_vectors.items()
        }
        correlations = {}
        for name, vectors in word_vectors.items():
            for file, lines in pairs.items():
                compared = [(cosine(vectors[a], vectors[b]), float(score)) for a, b, score in lines if a in known and b in known]
                correlations[f"{file}: {name}"] = round(float(spearmanr(*zip(*compared)).statistic), 4)
                correlations[f"{file}: share of pairs known"] = round(len(compared) / len(lines), 4)
        return {"senses": senses, "pairs": correlations}

    class Paragraphs:
        """Lists of words, as often as gensim wants to read them."""

        def __iter__(self):
            return (words(paragraph) for document in raw_documents(corpus) for paragraph in document)

    tokenizer = WordPieceTokenizer.from_pretrained(folder)
    model = from_pretrained(BertForPreTraining, folder).bert
    layers = probes.target_vectors(model, tokenizer, rows).transpose(1, 0, 2)
    table = model.embeddings.word_embeddings.weight.detach().numpy()
    done = {run["seed"] for run in result["runs"]}
    for seed in tqdm([seed for seed in range(seeds) if seed not in done], unit="run"):
        started = time.perf_counter()
        vectors = skip_gram(Paragraphs(), size=256, epochs=1, seed=seed, workers=torch.get_num_threads())
        seconds, known = time.perf_counter() - started, vectors.wv.key_to_index
        context = [[w for w in words(row["text"]) if w in known and w != row["word"]] for row in rows]
        others = np.stack([vectors.wv.get_mean_vector(sentence, pre_normalize=False) for sentence in context])
        listed = sorted({word for lines in pairs.values() for line in lines for word in line[:2]} & set(known))
        alone = probes.target_vectors(model, tokenizer, [{"text": w, "word": w, "start": 0} for w in listed])
        kinds = {"table": {w: table[tokenizer.encode(w)].mean(0) for w in listed}, "last layer": dict(zip(listed, alone[:, -1]))}
        run = {
            "seed": seed,
            "word2vec": grade({"other words": others}, {"vector": vectors.wv}),
            "bert": grade({f"layer {number}": layer for number, layer in enumerate(layers)}, kinds),
            "words": vectors.corpus_total_words,
            "vocabulary": len(known),
            "seconds": round(seconds, 1),
        }
        store(output, result, run)
    return result


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


def study_recall(output: Path, seeds: int, distances: tuple[int, ...] = (4, 8, 16, 32)) -> dict:
    """How far encoder, LSTM and BiLSTM can recall: accuracy of `recall.CONTENDERS` by distance, after equal budgets.

    One note at every distance (300 steps at most), two notes at distance 4 (1,000 steps). Each contender gets, for each task,
    the learning rate that does best with a seed of its own (100); those runs are stored too.

    Raises:
        ValueError: if `output` holds runs of other settings.
    """
    tasks_asked = [(1, distance, 300) for distance in distances] + [(2, 4, 1000)]
    result = opened(output, f"recall, notes, distance, steps: {tasks_asked}, rates {recall.RATES}")

    def run(name: str, notes: int, distance: int, steps: int, rate: float, seed: int) -> dict:
        about = {"model": name, "notes": notes, "distance": distance, "rate": rate, "seed": seed}
        for known in result["runs"]:
            if about.items() <= known.items():
                return known
        trained = recall.train(name, distance, notes, rate, steps, seed)
        size = sum(weights.numel() for weights in trained.model.parameters())
        about |= {"accuracy": round(trained.accuracy, 4), "steps": trained.steps, "history": trained.history}
        store(output, result, about | {"parameters": size, "seconds": round(trained.seconds, 1)})
        return result["runs"][-1]

    for asked, name in tqdm([(asked, name) for asked in tasks_asked for name in recall.CONTENDERS], unit="task"):
        tuning = [run(name, *asked, rate, seed=100) for rate in recall.RATES]
        best = max(tuning, key=lambda one: (min(one["accuracy"], 0.99), -one["steps"]))["rate"]  # 0.99 is solved
        for seed in range(seeds):
            run(name, *asked, best, seed)
    return result


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
TRIED_RATES = {"skipgram": (0.025, 0.05, 0.1)} | dict.fromkeys(SIBLINGS, (1e-3, 2e-3, 4e-3, 8e-3))
FINE_TUNING_RATES = (5e-4, 2e-3)
SIBLING_PHASES = ((0.25, 32, 0.15, 512), (0.75, 64, 0.15, 1024))  # of `Recipe`; small batches: the budget is small


def study_siblings(
    output: Path,
    seeds: int,
    corpus: str | Path = "docstrings",
    tokens: int = 4_000_000,
    tasks_folder: Path | None = None,
    kinds: Sequence[str] = ("skipgram", "bilm", "causal", "mlm", "mlm+nsp"),
) -> dict:
    """Word2Vec, ELMo, GPT and BERT, of two layers and about 1.5 million parameters each, trained on the same `tokens` tokens
    of one text with the vocabulary of data/bert-course-mini, and put to the same questions.

    "trials" is how each kind got its learning rate: short runs of a tenth of the tokens at each of `TRIED_RATES`, seed 0, by
    "held_out": the loss on text that is not trained on, or Word2Vec's `mean_rank` there.

    What a run holds, by kind and seed:
    - parameters; megabytes and tokens_per_second (see `cost`); learning_rate; curve, the training losses as `curve` gives them
      (not Word2Vec's, which gensim does not tell); held_out, the losses on text that is not trained on.
    - cloze: for each sentence of data/cloze the margin of the right word over the other (see `probes.cloze_pairs`). ELMo adds
      what both halves say; "cloze left" and "cloze right" are its halves alone, which read only that side.
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
    Raises:
        ValueError: if `output` holds runs of other data or settings, or the corpus is too small.
    """
    from .baselines import word2vec

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
        run["cloze"] = margins(partial(word2vec.gap_scores, vectors, contexts))
        return run | questions(lambda rows: means(map(without_word, rows)), means)

    def network(kind: str, model: torch.nn.Module, folder: Path, seed: int) -> dict:
        sibling = SIBLINGS[kind]
        run = {"parameters": sum(p.numel() for p in model.parameters())} | cost(model, objectives[kind], tokenizer)
        run |= {"curve": curve(folder / "log.jsonl"), "cloze": margins(partial(sibling.gap_scores, model, tokenizer))}
        if kind == "bilm":
            for side in ("left", "right"):
                run[f"cloze {side}"] = margins(partial(elmo.gap_scores, model, tokenizer, sides=side))
        body = getattr(model, sibling.body)

        def upper_layers(rows):  # in the embeddings a word has the same vector everywhere
            return probes.target_vectors(body, tokenizer, rows)[:, 1:]

        run |= questions(upper_layers, partial(probes.mean_vectors, body, tokenizer))
        if sibling.classifier:
            run["reviews"]["fine-tuned"] = fine_tuned_scores(sibling.classifier, folder, tokenizer, reviews, seed, device)
        return run

    objectives = baselines.objectives()
    with tempfile.TemporaryDirectory() as temporary:
        text = Path(temporary) / "text.txt"
        held_out = sibling_text(corpus, tokenizer, tokens, text)
        made_from = fingerprint(*tables, text) + f" {tokens} tokens of {Path(corpus).stem}"
        result = opened(output, f"{made_from} {TRIED_RATES} {FINE_TUNING_RATES} {SIBLING_PHASES}")
        done = {(run["seed"], run["kind"]) for run in result["runs"]}
        plan = [(seed, kind) for seed in range(seeds) for kind in kinds if (seed, kind) not in done]
        tried = {(trial["kind"], trial["learning_rate"]) for trial in result.get("trials", [])}
        trials = [(kind, rate) for kind in kinds for rate in TRIED_RATES[kind] if (kind, rate) not in tried]
        for kind, rate in tqdm(trials, desc="learning rates", unit="run"):
            store(output, result, train(kind, Path(temporary) / f"{kind} {rate}", tokens // 10, rate, 0)[1], "trials")
        for seed, kind in tqdm(plan, unit="run"):
            started, folder = time.perf_counter(), Path(temporary) / f"{kind} seed {seed}"
            model, run = train(kind, folder, tokens, best_rate(result["trials"], kind), seed)
            run |= word_vectors(*model) if kind == "skipgram" else network(kind, model, folder, seed)
            store(output, result, run | {"seconds": round(time.perf_counter() - started, 1)})
    return result


def best_rate(trials: list[dict], kind: str) -> float:
    """The learning rate with the least sum of held-out losses (of those that are minimised)."""
    weights = baselines.objectives()[kind].weights if kind in SIBLINGS else {"mean_rank": 1.0}
    mine = [trial for trial in trials if trial["kind"] == kind]
    return min(mine, key=lambda t: sum(w * t["held_out"][name] for name, w in weights.items()))["learning_rate"]


def sibling_text(corpus: str | Path, tokenizer: WordPieceTokenizer, tokens: int, path: Path) -> list:
    """Write the start of a corpus, `tokens` tokens in documents of ten paragraphs, to `path`: all that is counted or learned
    comes from there. Returns what follows it in the corpus, tokenized, to measure with."""
    documents = (d[i : i + 10] for d in corpora.documents(corpus) for i in range(0, len(d), 10))
    kept, count = [], 0
    while chunk := list(islice(documents, 64)):
        ids = [[tokenizer.encode(s) for paragraph in document for s in split_sentences(paragraph)] for document in chunk]
        if count >= tokens:
            path.write_text("\n\n".join("\n".join(document) for document in kept), encoding="utf-8")
            return ids
        kept += chunk
        count += sum(len(sentence) for document in ids for sentence in document)
    raise ValueError(f"corpus '{corpus}' has {count:,} tokens; needed are {tokens:,} and some to measure with.")


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


def without_word(row: dict) -> str:
    return row["text"][: row["start"]] + row["text"][row["start"] + len(row["word"]) :]


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


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


def opened(output: Path, made_from: str) -> dict:
    """The study so far, or an empty one."""
    if not output.exists():
        return {"made_from": made_from, "runs": []}
    result = read_json(output)
    if result.get("made_from") != made_from:
        raise ValueError(f"{output} was made with another checkpoint, data or settings. Move it away to measure anew.")
    return result


def store(output: Path, result: dict, run: dict, where: str = "runs") -> None:
    result.setdefault(where, []).append(run)
    hardware = f"{processor()}, {torch.get_num_threads()} threads"
    result |= {"date": date.today().isoformat(), "torch": torch.__version__, "hardware": hardware}
    with replacing(output) as path:
        path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def fingerprint(*paths: Path) -> str:
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()[:16]
