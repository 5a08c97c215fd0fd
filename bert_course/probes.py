"""What do vectors know? Probes that several lessons put to several models."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from sklearn.neighbors import NearestCentroid
from torch import Tensor, nn

from .inputs import Encoding, batch, encode
from .wordpiece import WordPieceTokenizer


@torch.no_grad()
def hidden_states(model: nn.Module, tokenizer: WordPieceTokenizer, texts: Sequence[str]) -> Iterator[tuple[Encoding, Tensor]]:
    """For each text its encoding and the states of every layer, (layers + 1, S, D). Layer 0 is the embeddings.

    Args:
        model: a body that is called as `BertModel` is: `BertModel`, `CausalModel`, `RecurrentModel`, `ElmoModel`.
    """
    model.eval()
    device = next(model.parameters()).device
    for start in range(0, len(texts), 32):
        encodings = [encode(tokenizer, text) for text in texts[start : start + 32]]
        inputs = {name: ids.to(device) for name, ids in batch(encodings, tokenizer.pad_id).items()}
        states = torch.stack(model(**inputs, output_hidden_states=True).hidden_states).cpu()  # (L + 1, B, S, D)
        for row, encoding in enumerate(encodings):
            yield encoding, states[:, row, : len(encoding)]


def target_vectors(model: nn.Module, tokenizer: WordPieceTokenizer, rows: Sequence[dict]) -> np.ndarray:
    """The vectors of one word in its sentence, from every layer: (rows, layers + 1, D). Layer 0 is the embeddings.

    Args:
        model: as for `hidden_states`.
        rows: with "text", "word" and "start", where in the text the word begins (as `tasks.read_senses` returns them).
    """
    vectors = []
    for row, (encoding, states) in zip(rows, hidden_states(model, tokenizer, [row["text"] for row in rows])):
        end = row["start"] + len(row["word"])
        pieces = [i for i, (a, b) in enumerate(encoding.offsets) if row["start"] <= a < b <= end]
        vectors.append(states[:, pieces].mean(1).numpy())
    return np.stack(vectors)


def mean_vectors(model: nn.Module, tokenizer: WordPieceTokenizer, texts: Sequence[str]) -> np.ndarray:
    """The mean vector of each text's tokens, [CLS] and [SEP] left out, from every layer: (texts, layers + 1, D)."""
    return np.stack([states[:, 1:-1].mean(1).numpy() for _, states in hidden_states(model, tokenizer, texts)])


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


@torch.no_grad()
def gap_scores(model: nn.Module, tokenizer: WordPieceTokenizer, left: Sequence[int], right: Sequence[int]) -> Tensor:
    """Log-probabilities (V,) of the token in a gap, by [MASK]: for `BertForPreTraining` and `BertForMaskedLM`.

    Args:
        left, right: token ids before and after the gap.
    """
    ids = [tokenizer.cls_id, *left, tokenizer.mask_id, *right, tokenizer.sep_id]
    states = model.eval().bert(torch.tensor([ids], device=next(model.parameters()).device)).last_hidden_state
    return model.cls.predictions(states[0, 1 + len(left)]).log_softmax(-1).cpu()


def cloze_margins(
    tokenizer: WordPieceTokenizer, rows: Sequence[dict], scores: Callable[[Sequence[int], Sequence[int]], Tensor]
) -> np.ndarray:
    """(rows,) by how much the right word scores above the other in the gap.

    Args:
        rows: as `tasks.read_cloze` returns them.
        scores: (left, right) -> (V,), as `partial(gap_scores, model, tokenizer)`.
    Raises:
        ValueError: if a word is not a single piece of the vocabulary.
    """
    margins = []
    for row in rows:
        if unknown := {row["word"], row["other"]} - tokenizer.vocab.keys():
            raise ValueError(f"'{unknown.pop()}' is not a single piece of this vocabulary.")
        found = scores(*sides(tokenizer, row))
        margins.append(float(found[tokenizer.vocab[row["word"]]] - found[tokenizer.vocab[row["other"]]]))
    return np.array(margins)


def sides(tokenizer: WordPieceTokenizer, row: dict) -> tuple[list[int], list[int]]:
    """The token ids before and after the word of a row of `tasks.read_cloze`."""
    end = row["start"] + len(row["word"])
    return tokenizer.encode(row["text"][: row["start"]]), tokenizer.encode(row["text"][end:])


def cloze_pairs(rows: Sequence[dict], margins: Sequence[float]) -> list[dict]:
    """For each pair of twins its side, the smaller distance, and "right": 1 if the margins of both add up to more than 0.

    Twins have the same two candidates with changed parts, so a liking for one of the words adds nothing. Who sees no
    difference between the twins gets a sum of 0, "right" 0.5.
    """
    twins = defaultdict(list)
    for row, margin in zip(rows, margins, strict=True):
        twins[row["pair"]].append((row, margin))
    results = []
    for pair in twins.values():
        total = sum(margin for _, margin in pair)
        right = 0.5 if abs(total) < 1e-3 else float(total > 0)
        results.append({"side": pair[0][0]["side"], "distance": min(row["distance"] for row, _ in pair), "right": right})
    return results


def influence(
    model: nn.Module, input_ids: Tensor, layer: int = -1, part: slice = slice(None), draws: int = 8
) -> np.ndarray:
    """What reaches whom: entry [i, j] is how much the state at token i changes with the vector of token j (S, S).

    The norm of the derivatives of state i by the embedding of j (before LayerNorm and positions), estimated by `draws`
    random directions. It is exactly 0 where nothing can pass.

    Args:
        model: a body that is called as `BertModel` is: `BertModel`, `CausalModel`, `RecurrentModel`, `ElmoModel`.
        input_ids: (S,).
        layer: 0 the embeddings, -1 the last.
        part: which numbers of the state, slice(0, D) for the forward half of an `ElmoModel`.
    """
    vectors = []
    handle = model.embeddings.word_embeddings.register_forward_hook(lambda module, args, output: vectors.append(output))
    with torch.backends.cudnn.flags(enabled=False):  # its LSTM has no backward pass in eval mode
        states = model.eval()(input_ids[None], output_hidden_states=True).hidden_states[layer][0, :, part]  # (S, D)
    handle.remove()
    generator = torch.Generator().manual_seed(0)
    squares = torch.zeros(len(input_ids), len(input_ids))
    for direction in torch.randn(draws, states.shape[1], generator=generator).to(states):
        for i, along in enumerate(states @ direction):
            gradient = torch.autograd.grad(along, vectors[0], retain_graph=True)[0][0]  # (S, D)
            squares[i] += gradient.pow(2).sum(-1).cpu() / draws
    return squares.sqrt().numpy()
