"""What exactly goes into BERT: [CLS] A [SEP] B [SEP], segments, truncation, sliding windows, batches with masks.

An input longer than `max_length` is an error unless the caller chose truncation or windows: nothing is cut silently.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .wordpiece import WordPieceTokenizer


@dataclass
class Encoding:
    """One input. All lists have one entry per token."""

    input_ids: list[int]
    token_type_ids: list[int]  # 0: [CLS] A [SEP], 1: B [SEP]
    offsets: list[tuple[int, int]]  # where the token stands in its own text; (0, 0) for [CLS] and [SEP]

    def __len__(self) -> int:
        return len(self.input_ids)


def encode(
    tokenizer: WordPieceTokenizer, text: str, pair: str | None = None, max_length: int = 512, truncation: bool = False
) -> Encoding:
    """[CLS] text [SEP], or [CLS] text [SEP] pair [SEP] (Devlin et al. 2019, section 3).

    Args:
        max_length: most tokens, special tokens included.
        truncation: cut an input that is too long, token by token, at the end of the part that is longer ("longest first");
            where both are equally long, at the part that was shorter at first (A if neither was), as `transformers` does.
    Raises:
        ValueError: if the input is too long and `truncation` is False, or `max_length` has no room for text.
    """
    a = pieces(tokenizer, text)
    b = None if pair is None else pieces(tokenizer, pair)
    special = 2 if b is None else 3
    if max_length <= special:
        raise ValueError(f"max_length {max_length} leaves no room beside the {special} special tokens.")
    surplus = len(a) + len(b or []) + special - max_length
    if surplus > 0 and not truncation:
        raise ValueError(
            f"the input has {max_length + surplus} tokens, but max_length is {max_length}. "
            "Cut it on purpose (truncation=True), or read it in windows (bert_course.inputs.windows)."
        )
    shorter, longer = (a, b or []) if len(a) <= len(b or []) else (b or [], a)
    for _ in range(surplus):
        (longer if len(longer) > len(shorter) else shorter).pop()
    return join(tokenizer, a, b)


def windows(
    tokenizer: WordPieceTokenizer, text: str, question: str | None = None, max_length: int = 512, stride: int = 128
) -> list[Encoding]:
    """A long text in overlapping windows, each [CLS] window [SEP] or [CLS] question [SEP] window [SEP].

    Args:
        stride: tokens that one window shares with the next (as in `transformers`; the original code counts the step).
    Raises:
        ValueError: if the text needs several windows and the question leaves no room in them for more than the overlap.
    """
    a = None if question is None else pieces(tokenizer, question)
    tokens = pieces(tokenizer, text)
    room = max_length - (2 if a is None else len(a) + 3)
    if stride < 0:
        raise ValueError(f"stride {stride} would skip text between two windows; it must be 0 or more.")
    if len(tokens) > room <= stride:
        raise ValueError(f"max_length {max_length} leaves {max(0, room)} tokens for a window, and {stride} of them would repeat.")
    starts = range(0, len(tokens) - stride, room - stride) if len(tokens) > room else [0]
    parts = (tokens[start : start + room] for start in starts)
    return [join(tokenizer, part) if a is None else join(tokenizer, a, part) for part in parts]


def batch(encodings: Sequence[Encoding], pad_id: int = 0) -> dict[str, Tensor]:
    """Pad to the longest of these inputs ("dynamic padding").

    Returns:
        input_ids, token_type_ids and attention_mask (1: token, 0: padding), each (B, S) int64.
    Raises:
        ValueError: if there is nothing to batch.
    """
    if not encodings:
        raise ValueError("a batch needs at least one input.")
    width = max(map(len, encodings))

    def padded(rows, filler):
        return torch.tensor([list(row) + [filler] * (width - len(row)) for row in rows])

    return {
        "input_ids": padded((e.input_ids for e in encodings), pad_id),
        "token_type_ids": padded((e.token_type_ids for e in encodings), 0),
        "attention_mask": padded(([1] * len(e) for e in encodings), 0),
    }


Piece = tuple[int, tuple[int, int]]  # a token id and its place in the text


def pieces(tokenizer: WordPieceTokenizer, text: str) -> list[Piece]:
    return list(zip(*tokenizer.encode_with_offsets(text)))


def join(tokenizer: WordPieceTokenizer, a: list[Piece], b: list[Piece] | None = None) -> Encoding:
    end = (tokenizer.sep_id, (0, 0))
    first = [(tokenizer.cls_id, (0, 0)), *a, end]
    second = [] if b is None else [*b, end]
    ids, offsets = zip(*(first + second))
    return Encoding(list(ids), [0] * len(first) + [1] * len(second), list(offsets))
