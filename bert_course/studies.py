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

import numpy as np
import torch
from scipy.stats import spearmanr
from tqdm.auto import tqdm

from . import corpora, data_path, finetuning, probes, tasks
from .checkpoint import from_pretrained
from .config import BertConfig
from .doctor import processor
from .files import read_json, replacing
from .model import BertForPreTraining, BertForSequenceClassification
from .pretraining import OBJECTIVES, Recipe, pretrain, raw_documents, split_sentences
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
