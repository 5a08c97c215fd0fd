"""WordPiece, BERT's tokenizer: from a text to token ids and back.

A text becomes tokens in five steps:

1. cut out special tokens such as [MASK]; split at white space and around each Chinese character;
2. drop control characters (uncased also: split letters from their accents, drop these, lower-case);
3. split off each punctuation character, which leaves words;
4. cut each word into pieces, always taking the longest one that the vocabulary has; every piece
   but the first is written with "##" in front;
5. a word that cannot be cut like this, or of more than 100 characters, becomes one [UNK].

Sources: Schuster & Nakajima 2012 (the WordPiece model), Wu et al. 2016 (longest match first),
Devlin et al. 2019 (BERT) and its code, google-research/bert tokenization.py. The reference, token
for token and offset for offset, is `transformers.BertTokenizer` (the Rust library `tokenizers`).

One difference remains: upper-case letters that Unicode gained after this Python's own
`unicodedata.unidata_version` stay as they are, since this Python cannot lower-case them.
"""

import json
import os
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from unicodedata import category, combining, normalize

from .files import read_json, replacing

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
MAX_WORD_CHARS = 100
CACHE_SIZE = 1 << 16

_SPACE = "\t\n\r \u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
_CJK = (
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002a6df"
    "\U0002a700-\U0002b81f\U0002b920-\U0002ceaf\U0002f800-\U0002fa1f"
)
_CHUNK = re.compile(rf"\[(?:PAD|UNK|CLS|SEP|MASK)\]|[\[{_CJK}]|[^\[{_CJK}{_SPACE}]+")


def _characters(ranges: str) -> frozenset[str]:
    """The characters of ranges in hexadecimal, such as "61D 890-8D3"."""
    bounds = [(part.split("-")[0], part.split("-")[-1]) for part in ranges.split()]
    return frozenset(chr(i) for low, high in bounds for i in range(int(low, 16), int(high, 16) + 1))


# The reference has the character categories of Unicode 8 (2015) and the decompositions of Unicode 9:
# accents and punctuation that came later are letters to it. So they are to us, whatever the Python.
# To be few, the ranges also hold what makes no difference, such as newer letters.
_NEW_IN_9 = _characters("8D4-8E1 1DFB 11442-11446 11C3F 1E000-1E02A 1E944-1E94A")
_NEWER = _characters(
    "5C8-5C9 61D 7FD 890-8D3 8E2 9FD-9FE A76 AFA-AFF B53-B55 C04-C3C C77 C84 D00 D3B-D3C D81 EBA "
    "ECE 1715 180F-1886 1ABF-1AF0 1B4E-1B4F 1B7D-1B7F 1DF6-1DFA 2E43-2E63 A82C A8C5 A8FF A9BD "
    "105C9-105E4 10D24-10F89 11070-11074 110C2-110CD 111CF 1123E-11241 1133B 11383-1143F "
    "11443-11444 1144B-1145E 11660-1166C 116B9 1182F-11C3D 11C41-11FFF 12FF1-1612F 16D68-16F4F "
    "16FE2-16FF1 1CF00-1D128 1D250-1D281 1E08F-1E6F5 1E95E-1E95F"
)
_CHANGED = {"\u166d": "Po", "\u1734": "Mn", "\U000111c9": "Po", "\U0001171e": "Mn"}  # since Unicode 8


@cache
def _category(char: str) -> str:
    """The general category of a character in Unicode 8; "Lo", a letter, for what is newer or unassigned."""
    if char in _NEWER or char in _NEW_IN_9 or category(char) == "Cn":
        return "Lo"
    return _CHANGED.get(char) or category(char)


def _decompose(chars: list[tuple[str, int]]) -> list[tuple[str, int]]:
    """Split "é" into "e" and its accent (NFD) in (character, position) pairs.

    Unicode then sorts the accents of one letter by their combining class. Like the reference we
    leave the positions where they were: the first part of the n-th character takes the n-th.
    """
    parts, letters = [], 0
    for char, _ in chars:
        for k, part in enumerate(char if char in _NEWER else normalize("NFD", char)):
            order = 0 if part in _NEWER else combining(part)
            letters += order == 0
            parts.append((letters, order, part, k == 0))
    parts.sort(key=lambda part: part[:2])
    positions, result = iter([position for _, position in chars]), []
    for _, _, part, is_first in parts:
        result.append((part, next(positions) if is_first else result[-1][1]))
    return result


def _split_words(chunk: str, lowercase: bool) -> list[list[tuple[str, int]]]:
    """The words of a text without white space, as lists of (character, position in the text)."""
    chars = [(char, i) for i, char in enumerate(chunk) if _category(char)[0] != "C" and char != "\ufffd"]
    if lowercase:
        chars = [(char, i) for char, i in _decompose(chars) if _category(char) != "Mn"]
        chars = [(lower, i) for char, i in chars for lower in char.lower()]
    words = [[]]
    for char, i in chars:
        if _category(char)[0] == "P" or (char.isascii() and not char.isalnum()):  # "!" and also "$"
            words += [[(char, i)], []]
        else:
            words[-1].append((char, i))
    return [word for word in words if word]


class WordPieceTokenizer:
    """BERT's tokenizer with a given vocabulary.

    Args:
        vocab: the tokens in the order of their ids, or a dictionary token -> id.
        lowercase: True for an uncased model (lower-case, no accents), False for a cased one.

    Raises:
        ValueError: [PAD] [UNK] [CLS] [SEP] or [MASK] is missing, a token is there twice, is empty or
            has a line break in it, or the ids of a dictionary are not 0, 1, 2, ...

    Its attributes: vocab (token -> id), tokens (id -> token), vocab_size, lowercase, and the ids
    pad_id, unk_id, cls_id, sep_id and mask_id.

    >>> vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "un", "##aff", "##able"]
    >>> WordPieceTokenizer(vocab).encode_with_offsets("Unaffable!")
    ([5, 6, 7, 1], [(0, 2), (2, 5), (5, 9), (9, 10)])
    """

    def __init__(self, vocab: dict[str, int] | list[str], lowercase: bool = True):
        self.tokens = sorted(vocab, key=vocab.get) if isinstance(vocab, dict) else list(vocab)
        if isinstance(vocab, dict) and sorted(vocab.values()) != list(range(len(vocab))):
            raise ValueError(f"the ids of a vocabulary of {len(vocab)} tokens must be 0 to {len(vocab) - 1}")
        self.vocab = {}
        for i, token in enumerate(self.tokens):
            if not token or "\n" in token or "\r" in token:
                raise ValueError(f"line {i + 1}: the token {token!r} is empty or has a line break")
            if token in self.vocab:
                raise ValueError(f"duplicate token {token!r} in lines {self.vocab[token] + 1} and {i + 1}")
            self.vocab[token] = i
        if missing := [token for token in SPECIAL_TOKENS if token not in self.vocab]:
            raise ValueError(f"the vocabulary lacks {' '.join(missing)}")
        self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id = map(self.vocab.get, SPECIAL_TOKENS)
        self.vocab_size = len(self.tokens)
        self.lowercase = lowercase
        self._cache = {}  # chunk -> its pieces, since a text repeats its words

    def tokenize(self, text: str) -> list[str]:
        """The tokens of a text."""
        return [self.tokens[i] for i in self.encode(text)]

    def encode(self, text: str) -> list[int]:
        """The token ids of a text, with no [CLS] and [SEP] added."""
        return self.encode_with_offsets(text)[0]

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """The token ids of a text and for each the (start, end) of its characters in the text."""
        ids, offsets = [], []
        for chunk in _CHUNK.finditer(text):
            for token_id, start, end in self._encode_chunk(chunk.group()):
                ids.append(token_id)
                offsets.append((chunk.start() + start, chunk.start() + end))
        return ids, offsets

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids: pieces joined, no space before . , ? ! (as the reference does).

        Raises:
            ValueError: an id is not in the vocabulary.
        """
        text = ""
        for n, i in enumerate(ids):
            if not 0 <= i < self.vocab_size:
                raise ValueError(f"token id {i} is not between 0 and {self.vocab_size - 1}")
            token = self.tokens[i]
            if n > 0 and token.startswith("##"):
                text += token[2:]
            else:
                text += token if n == 0 or token in (".", ",", "?", "!") else " " + token
        return text

    def _encode_chunk(self, chunk: str) -> list[tuple[int, int, int]]:
        """(id, start, end) of the tokens of one match of _CHUNK."""
        if chunk in SPECIAL_TOKENS:
            return [(self.vocab[chunk], 0, len(chunk))]
        if chunk not in self._cache:
            if len(self._cache) >= CACHE_SIZE:
                self._cache.clear()
            self._cache[chunk] = [
                (token_id, word[start][1], word[end - 1][1] + 1)
                for word in _split_words(chunk, self.lowercase)
                for token_id, start, end in self._split_word("".join(char for char, _ in word))
            ]
        return self._cache[chunk]

    def _split_word(self, word: str) -> list[tuple[int, int, int]]:
        """(id, start, end) of the pieces of one word: the longest match first."""
        unknown = [(self.unk_id, 0, len(word))]
        if len(word) > MAX_WORD_CHARS:
            return unknown
        pieces, start = [], 0
        while start < len(word):
            for end in range(len(word), start, -1):
                piece = word[start:end] if start == 0 else "##" + word[start:end]
                if piece in self.vocab:
                    break
            else:
                return unknown
            pieces.append((self.vocab[piece], start, end))
            start = end
        return pieces

    @classmethod
    def from_file(cls, path: str | os.PathLike, lowercase: bool = True) -> "WordPieceTokenizer":
        """Read a vocab.txt: one token a line, its id is the line number less one.

        Raises:
            ValueError: the file is empty, not UTF-8, or no vocabulary (see the class).
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
            if not text:
                raise ValueError("the file is empty")
            return cls(text.removesuffix("\n").split("\n"), lowercase)
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: not UTF-8 ({error.reason} at byte {error.start})") from None
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    def save(self, path: str | os.PathLike) -> None:
        """Write the vocabulary as a vocab.txt."""
        with replacing(path) as temporary:
            temporary.write_text("".join(token + "\n" for token in self.tokens), encoding="utf-8", newline="\n")

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike) -> "WordPieceTokenizer":
        """Read vocab.txt of a model folder, and do_lower_case (default True) of tokenizer_config.json.

        Raises:
            ValueError: see from_file; or the folder asks for what only other BERT tokenizers do.
        """
        path = Path(folder, "tokenizer_config.json")
        config = read_json(path) if path.exists() else {}
        lowercase = config.get("do_lower_case", True)
        for key, values in {"strip_accents": (None, lowercase), "tokenize_chinese_chars": (True,)}.items():
            if config.get(key, values[0]) not in values:
                raise ValueError(f"{path}: {key} {config[key]} with do_lower_case {lowercase} is not supported")
        return cls.from_file(Path(folder, "vocab.txt"), lowercase)

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Write vocab.txt and tokenizer_config.json, so that `transformers` loads the same tokenizer.

        Raises:
            FileExistsError: a tokenizer.json is there, which `transformers` would load instead.
        """
        folder = Path(folder)
        if (hiding := folder / "tokenizer.json").exists():
            raise FileExistsError(f"{hiding}: transformers would load it instead of vocab.txt; remove it first")
        folder.mkdir(parents=True, exist_ok=True)
        config = {"tokenizer_class": "BertTokenizer", "do_lower_case": self.lowercase}
        self.save(folder / "vocab.txt")
        with replacing(folder / "tokenizer_config.json") as temporary:
            temporary.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8", newline="\n")


def train_wordpiece(texts: Iterable[str], vocab_size: int, lowercase: bool = True) -> WordPieceTokenizer:
    """Learn a vocabulary: merge the most frequent pair of pieces until there are enough tokens.

    The `tokenizers` library does the work. It numbers the pieces of one character at random and
    breaks ties by number; so we collect these first and pass them sorted: same texts, same tokens.

    Args:
        texts: the texts; they are kept in memory.
        vocab_size: how many tokens, [PAD] [UNK] [CLS] [SEP] [MASK] (ids 0 to 4) included. Few texts
            may give fewer, since a pair must occur twice to be merged.
        lowercase: see WordPieceTokenizer.

    Raises:
        ValueError: vocab_size is too small for the single characters of the texts.

    >>> tokenizer = train_wordpiece(["low lower lowest"] * 2, vocab_size=22)
    >>> tokenizer.tokenize("Lowest")
    ['lowe', '##st']
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    def train(size: int, first_tokens: list[str]) -> list[str]:
        tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(
            vocab_size=size, min_frequency=2, special_tokens=first_tokens, show_progress=False
        )
        tokenizer.train_from_iterator(texts, trainer)
        vocab = tokenizer.get_vocab()
        return sorted(vocab, key=vocab.get)

    texts, special = list(texts), list(SPECIAL_TOKENS)
    characters = sorted(set(train(0, special)) - set(special))
    if vocab_size < len(special) + len(characters):
        raise ValueError(f"vocab_size {vocab_size} is too small: the texts need {len(special) + len(characters)}")
    return WordPieceTokenizer(train(vocab_size, special + characters), lowercase)
