"""Lesson 02: Word2Vec and BERT on senses and on pairs of words."""

import time
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr
from tqdm.auto import tqdm

from .. import data_path, probes, tasks
from ..checkpoint import from_pretrained
from ..model import BertForPreTraining
from ..shards import raw_documents
from ..wordpiece import WordPieceTokenizer
from .store import fingerprint, opened, store


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
    from ..baselines.word2vec import skip_gram, words

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


def without_word(row: dict) -> str:
    return row["text"][: row["start"]] + row["text"][row["start"] + len(row["word"]) :]


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))
