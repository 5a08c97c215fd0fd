"""Skip-gram with negative sampling (Mikolov et al. 2013, arXiv:1310.4546), trained by `gensim`."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from gensim.models import Word2Vec
from torch import Tensor

from ..checkpoint import read_tensors, write_tensors
from ..files import replacing
from ..shards import tokenized_chunks
from ..wordpiece import WordPieceTokenizer


def words(text: str) -> list[str]:
    """Lower-case words of letters and digits.

    >>> words("It's a NumPy array, isn't it?")
    ["it's", 'a', 'numpy', 'array', "isn't", 'it']
    """
    return re.findall(r"[^\W_]+(?:'[^\W_]+)*", text.lower())


def skip_gram(
    sentences: Iterable[list[str]],
    size: int = 100,
    epochs: int = 3,
    seed: int = 0,
    workers: int = 1,
    rarest: int = 10,
    learning_rate: float = 0.025,
) -> Word2Vec:
    """Train a vector of `size` numbers for each word that occurs `rarest` times or more; 5 words each side, 5 negative samples.

    Args:
        sentences: lists of words; read epochs + 1 times, so not a generator.
        workers: threads; with one, the same seed gives the same vectors.
        learning_rate: at the start; from there linearly to nearly zero.
    """
    settings = {"sg": 1, "window": 5, "negative": 5, "min_count": rarest, "alpha": learning_rate}
    return Word2Vec(sentences, vector_size=size, epochs=epochs, seed=seed, workers=workers, **settings)


def pretrain(
    corpus: str | Path,
    output: str | Path,
    tokenizer: WordPieceTokenizer,
    size: int,
    tokens: int,
    learning_rate: float = 0.025,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Skip-gram over word pieces: the text and the vocabulary that `pretraining.pretrain` reads, and the first `tokens` of it.

    Writes model.safetensors and the vocabulary to `output`. It takes well under a minute for a million tokens and cannot be
    resumed.

    Returns:
        two tables (V, size), as `load` does.
    Raises:
        FileExistsError: if `output` already holds a checkpoint.
        ValueError: if the corpus has fewer than two documents.
    """
    output = Path(output)
    if (output / "model.safetensors").exists():
        raise FileExistsError(f"{output} already holds a checkpoint; choose another folder.")

    class Sentences:
        """The pieces of each sentence, as often as gensim wants to read them."""

        def __iter__(self):
            left = tokens
            for documents in tokenized_chunks(corpus, tokenizer, held_out=False):
                for sentence in (s for document in documents for s in document):
                    if left <= 0:
                        return
                    yield [tokenizer.tokens[i] for i in sentence[:left]]
                    left -= len(sentence)

    if next(iter(Sentences()), None) is None:
        raise ValueError(f"corpus '{corpus}' is too small: there are not two documents to train on.")
    model = skip_gram(Sentences(), size, epochs=1, seed=seed, rarest=1, learning_rate=learning_rate)
    rows = [tokenizer.vocab[piece] for piece in model.wv.index_to_key]
    tables = torch.zeros(2, tokenizer.vocab_size, size)
    tables[:, rows] = torch.stack([torch.from_numpy(table) for table in (model.wv.vectors, model.syn1neg)])
    tokenizer.save_pretrained(output)
    with replacing(output / "model.safetensors") as path:
        write_tensors({"vectors": tables[0].clone(), "contexts": tables[1].clone()}, path)
    return tables[0], tables[1]


def load(folder: str | Path) -> tuple[Tensor, Tensor]:
    """What `pretrain` stored: vectors (V, size) of the pieces, and the vectors that stand for them where they are predicted.
    Zeros for a piece that was not in the text."""
    tensors = read_tensors(Path(folder) / "model.safetensors")
    return tensors["vectors"], tensors["contexts"]


def gap_scores(vectors: Tensor, contexts: Tensor, left: Sequence[int], right: Sequence[int]) -> Tensor:
    """A score (V,) for every piece in a gap, from the mean vector of all pieces around it (gensim's predict_output_word)."""
    return contexts @ vectors[[*left, *right]].mean(0)
