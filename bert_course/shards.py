"""Corpora as token ids: tokenized once, kept on disk, read through memory maps.

A shard holds `SHARD` documents in a file of three arrays, one behind the other: after how many sentences each document ends
and after how many tokens each sentence ends (uint32), and the tokens (uint16, for vocabularies above 65,536 uint32). A JSON
file beside it has their lengths and the SHA-256 of the file.
"""

import hashlib
import itertools
import json
import re
import sys
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np

from . import corpora
from .files import replacing
from .wordpiece import WordPieceTokenizer

SHARD = 256  # documents
CHUNK = 32  # documents read at once; the random second halves of pairs come from among them
HELD_OUT = 200  # every 200th document is never trained on
FORMAT = 1  # to be raised when other tokens come from the same text, or are stored in another way


def split_sentences(paragraph: str) -> list[str]:
    """Cut after . ! ? where a capital, a digit or a quote follows. Rough, and enough for choosing where segments end."""
    return re.split(r"(?:(?<=[.!?])|(?<=[.!?][\"')]))\s+(?=[\"'(]?[A-Z0-9])", paragraph)


def raw_documents(corpus: str | Path, held_out: bool = False) -> Iterator[list[str]]:
    """The documents that are held out for evaluation, or all the others."""
    return (d for i, d in enumerate(corpora.documents(corpus)) if (i % HELD_OUT == HELD_OUT - 1) == held_out)


def tokenized(documents: Iterable[list[str]], tokenizer: WordPieceTokenizer) -> Iterator[list[list[int]]]:
    """For each document its sentences, for each sentence its token ids; [PAD], [CLS], [SEP] and [MASK] in the text left out."""
    from tokenizers.implementations import BertWordPieceTokenizer  # the same tokens as ours, faster

    fast = BertWordPieceTokenizer(tokenizer.vocab, lowercase=tokenizer.lowercase)
    marks = {tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id}
    documents = iter(documents)
    while texts := list(itertools.islice(documents, CHUNK)):
        sentences = [[s for paragraph in text for s in split_sentences(paragraph)] for text in texts]
        encoded = iter(fast.encode_batch([s for text in sentences for s in text], add_special_tokens=False))
        for text in sentences:
            ids = (encoding.ids for encoding in itertools.islice(encoded, len(text)))
            ids = (s if marks.isdisjoint(s) else [t for t in s if t not in marks] for s in ids)
            yield [s for s in ids if s]


class Shards:
    """The tokenized documents of a corpus: `shards[7]` is the eighth, as `tokenized` gives it; IndexError after the last.

    A shard is made when it is first needed, and made again when its file is damaged.
    """

    def __init__(self, corpus: str | Path, tokenizer: WordPieceTokenizer, cache: str | Path):
        """`cache`: a folder, for any number of corpora and vocabularies."""
        made_from = [FORMAT, SHARD, corpora.fingerprint(corpus), tokenizer.tokens, tokenizer.lowercase]
        self.corpus, self.tokenizer = corpus, tokenizer
        self.folder = Path(cache) / hashlib.sha256(json.dumps(made_from).encode()).hexdigest()[:16]
        self.folder.mkdir(parents=True, exist_ok=True)
        self.dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32)
        self._texts, self._next = iter(()), 0  # the text being read, and the number of the shard that begins there
        self._shard = lru_cache(maxsize=1)(self._open_or_make)

    def __str__(self) -> str:
        return str(self.corpus)

    def __getitem__(self, number: int) -> list[list[int]]:
        documents, sentences, tokens = self._shard(number // SHARD)
        place = number % SHARD
        if place >= len(documents):
            raise IndexError(number)
        ends = sentences[documents[place - 1] if place else 0 : documents[place]].tolist()
        start = int(sentences[documents[place - 1] - 1]) if place and documents[place - 1] else 0
        return [tokens[a:b].tolist() for a, b in zip([start, *ends], ends)]

    def complete(self) -> None:
        """Make all shards that have not been made."""
        for number in itertools.count():
            if len(self._shard(number)[0]) < SHARD:
                return

    def _open_or_make(self, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return self._open(number) or self._make(number) or self._open(number)

    def _open(self, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
        path = self.folder / f"{number:05}.tokens"
        if not path.with_suffix(".json").exists():
            return None
        try:
            about = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
            content = np.memmap(path, np.uint8, "r") if path.stat().st_size else np.empty(0, np.uint8)
            if hashlib.sha256(content).hexdigest() == about["sha256"]:
                ends = np.cumsum([4 * about["documents"], 4 * about["sentences"]])
                documents, sentences, tokens = np.split(content, ends)
                return documents.view(np.uint32), sentences.view(np.uint32), tokens.view(self.dtype)
        except (OSError, ValueError, KeyError):
            pass
        print(f"{path} is damaged: it is made again.", file=sys.stderr)
        return None

    def _make(self, number: int) -> None:
        if self._next > number or not self._next:
            self._texts, self._next = corpora.documents(self.corpus), 0
        texts = itertools.islice(self._texts, (number - self._next) * SHARD, (number - self._next + 1) * SHARD)
        self._next = 0  # after an error the text is read from its start again
        documents, sentences, tokens = [], [], []
        for document in tokenized(texts, self.tokenizer):
            sentences += map(len, document)
            documents.append(len(sentences))
            tokens.append(np.array([t for s in document for t in s], self.dtype))
        self._next = number + 1
        ends = np.array(documents, np.uint32), np.cumsum(sentences, dtype=np.uint32)
        content = b"".join(part.tobytes() for part in (*ends, *tokens))
        about = {"documents": len(documents), "sentences": len(sentences), "sha256": hashlib.sha256(content).hexdigest()}
        path = self.folder / f"{number:05}.tokens"
        with replacing(path) as temporary:
            temporary.write_bytes(content)
        with replacing(path.with_suffix(".json")) as temporary:  # last: what has one is whole
            temporary.write_text(json.dumps(about), encoding="utf-8")


def numbered_chunks(
    corpus: str | Path | Shards, tokenizer: WordPieceTokenizer, held_out: bool, first: int = 0, step: int = 1
) -> Iterator[tuple[int, list]]:
    """Every `step`th chunk from `first` on with its number, in `CHUNK` documents: those held out for evaluation, or the others.

    A chunk of fewer than two documents with text is passed over: one alone has no other to draw a random second half from.
    """
    if isinstance(corpus, Shards):
        chunks = ((n, list(_chunk(corpus, n, held_out))) for n in itertools.count(first, step))
    else:
        texts = itertools.islice(raw_documents(corpus, held_out), first * CHUNK, None)
        documents = tokenized(texts, tokenizer)
        chunks = ((n, list(itertools.islice(documents, CHUNK))) for n in itertools.count(first))
        chunks = itertools.islice(chunks, 0, None, step)
    for number, chunk in chunks:
        if not chunk:
            return
        if len(chunk := [document for document in chunk if document]) > 1:
            yield number, chunk


def _chunk(shards: Shards, number: int, held_out: bool) -> Iterator[list]:
    for n in range(number * CHUNK, (number + 1) * CHUNK):
        try:
            yield shards[n * HELD_OUT + HELD_OUT - 1 if held_out else n + n // (HELD_OUT - 1)]
        except IndexError:
            return


def tokenized_chunks(
    corpus: str | Path | Shards, tokenizer: WordPieceTokenizer, held_out: bool, first: int = 0
) -> Iterator[list]:
    """Documents of token ids, `CHUNK` at a time: those held out for evaluation, or all the others. Skips `first` chunks."""
    return (chunk for _, chunk in numbered_chunks(corpus, tokenizer, held_out, first))
