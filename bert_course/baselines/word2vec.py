"""Skip-gram with negative sampling (Mikolov et al. 2013, arXiv:1310.4546), trained by `gensim`."""

import re
from collections.abc import Iterable

from gensim.models import Word2Vec


def words(text: str) -> list[str]:
    """Lower-case words of letters and digits.

    >>> words("It's a NumPy array, isn't it?")
    ["it's", 'a', 'numpy', 'array', "isn't", 'it']
    """
    return re.findall(r"[^\W_]+(?:'[^\W_]+)*", text.lower())


def skip_gram(sentences: Iterable[list[str]], size: int = 100, epochs: int = 3, seed: int = 0, workers: int = 1) -> Word2Vec:
    """Train a vector of `size` numbers for each word that occurs at least ten times; 5 words each side, 5 negative samples.

    Args:
        sentences: lists of words; read epochs + 1 times, so not a generator.
        workers: threads; with one, the same seed gives the same vectors.
    """
    settings = {"sg": 1, "window": 5, "negative": 5, "min_count": 10}
    return Word2Vec(sentences, vector_size=size, epochs=epochs, seed=seed, workers=workers, **settings)
