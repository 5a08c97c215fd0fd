"""What do vectors know? Probes that several lessons put to several models."""

from collections.abc import Sequence

import numpy as np
import torch
from sklearn.neighbors import NearestCentroid

from .inputs import batch, encode
from .model import BertModel
from .wordpiece import WordPieceTokenizer


@torch.no_grad()
def target_vectors(model: BertModel, tokenizer: WordPieceTokenizer, rows: Sequence[dict]) -> np.ndarray:
    """The vectors of one word in its sentence, from every layer: (rows, layers + 1, D). Layer 0 is the embeddings.

    Args:
        rows: with "text", "word" and "start", where in the text the word begins (as `tasks.read_senses` returns them).
    """
    model.eval()
    device = next(model.parameters()).device
    vectors = []
    for row in rows:
        encoding = encode(tokenizer, row["text"])
        inputs = {name: ids.to(device) for name, ids in batch([encoding], tokenizer.pad_id).items()}
        states = torch.stack(model(**inputs, output_hidden_states=True).hidden_states)[:, 0]  # (L + 1, S, D)
        end = row["start"] + len(row["word"])
        pieces = [i for i, (a, b) in enumerate(encoding.offsets) if row["start"] <= a < b <= end]
        vectors.append(states[:, pieces].mean(1).cpu().numpy())
    return np.stack(vectors)


def sense_accuracy(vectors: np.ndarray, rows: Sequence[dict], train: np.ndarray) -> float:
    """Share of the other rows whose vector lies nearest to the mean of its own sense, among the senses of its word.

    Args:
        vectors: (rows, D).
        train: (rows,) bool, the rows that the means are taken of.
    """
    words, senses = (np.array([row[name] for row in rows]) for name in ("word", "sense"))
    right = np.zeros(len(rows), bool)
    for word in set(words):
        known, asked = (words == word) & train, (words == word) & ~train
        right[asked] = NearestCentroid().fit(vectors[known], senses[known]).predict(vectors[asked]) == senses[asked]
    return right[~train].mean()


def random_split(rows: Sequence[dict], seed: int, size: int = 8) -> np.ndarray:
    """(rows,) bool, True for `size` random rows of each sense."""
    rng = np.random.default_rng(seed)
    senses = np.array([f"{row['word']} {row['sense']}" for row in rows])
    train = np.zeros(len(rows), bool)
    for sense in sorted(set(senses)):
        train[rng.choice(np.flatnonzero(senses == sense), size, replace=False)] = True
    return train
