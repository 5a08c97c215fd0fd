"""What BERT is trained to do: guess hidden tokens, and tell whether two pieces of text belong together (Devlin et al. 2019,
section 3.1 and appendix A). From documents of token ids to pairs, batches, masks and losses.
"""

import itertools
import random
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .fast import pretraining_logits
from .model import BertForPreTraining
from .wordpiece import WordPieceTokenizer


@dataclass(frozen=True)
class Objective:
    """What `pretrain` trains and by what loss. All of them go through the same loop."""

    name: str  # "mlm+nsp" reads pairs of segments, any other one segment at a time (see `pair_batches`)
    model: type[nn.Module]  # made of a BertConfig; its head, tied to the token embeddings, is `cls.predictions`
    prepare: Callable[[dict, WordPieceTokenizer, float, torch.Generator], dict]  # a batch of text, as `masked_batch` takes it
    losses: Callable[[nn.Module, dict], dict[str, Tensor]]  # of what `prepare` returned; all of them are logged
    weights: dict[str, float]  # of the losses in the sum that is minimised


def sentence_pairs(
    documents: list[list[list[int]]], max_tokens: int, rng: random.Random, short: float = 0.1
) -> Iterator[tuple[list[int], list[int], int]]:
    """Pairs for next sentence prediction (appendix A.2; google-research/bert create_pretraining_data.py).

    Sentences are gathered up to `max_tokens` (for one pair in ten, a random shorter length) and cut in two at random. For
    half of the pairs the second part is replaced by whole sentences of another document, about as many tokens, so that neither
    its length nor its end gives the label away. A sentence too long to leave room for a second part is first cut into even
    pieces.

    As in the original, a random part may open its document; a true second part never does. A book is several documents here
    (`corpora.LONGEST`): the other one may be of the same book.

    Args:
        documents: for each document its sentences, for each sentence its token ids.
        max_tokens: most tokens in both parts together, that is the sequence length less three.
    Returns:
        (A, B, label) for each pair; label 0: B follows A, 1: B is from another document.
    Raises:
        ValueError: if there are fewer than two documents to draw from.
    """
    if len(documents) < 2:
        raise ValueError("next sentence prediction needs at least two documents.")
    most = max(1, max_tokens // 4)
    documents = [
        [s[len(s) * i // n : len(s) * (i + 1) // n] for s in document for n in [-(-len(s) // most)] for i in range(n)]  # n parts
        for document in documents
    ]
    left = [list(itertools.accumulate(map(len, reversed(document)))) for document in documents]  # tokens in its last sentences
    for number, document in enumerate(documents):
        start = 0
        while start < len(document):
            target = rng.randint(2, max_tokens) if rng.random() < short else max_tokens
            end, length = start, 0
            while end < len(document) and (length < target or end - start < 2):
                length += len(document[end])
                end += 1
            cut = rng.randint(start + 1, end - 1) if end - start > 1 else end
            a = [t for s in document[start:cut] for t in s]
            is_random = cut == end or rng.random() < 0.5
            if is_random:
                other = rng.randrange(len(documents) - 1)
                other += other >= number
                room = max(1, (target if cut == end else min(target, length)) - len(a))  # as for the true second part
                latest = max(0, len(left[other]) - 1 - bisect_left(left[other], room))  # where enough is left to fill the room
                b = []
                for sentence in documents[other][rng.randint(0, latest) :]:
                    if len(b) >= room:
                        break
                    b += sentence
                start = cut  # the unused sentences open the next pair
            else:
                b = [t for s in document[cut:end] for t in s]
                start = end
            while len(a) + len(b) > max_tokens:  # cut the longer one, at either end, as the original does
                longer = a if len(a) > len(b) else b
                longer.pop(0 if rng.random() < 0.5 else -1)
            if a and b:
                yield a, b, int(is_random)


def single_segments(documents: list[list[list[int]]], max_tokens: int) -> Iterator[tuple[list[int], list[int], int]]:
    """Text for the masked language model alone: up to `max_tokens` tokens of one document in a row, no second part.

    This is RoBERTa's DOC-SENTENCES (Liu et al. 2019, section 4.2), but for cutting inside sentences.
    """
    for document in documents:
        tokens = [t for sentence in document for t in sentence]
        for start in range(0, len(tokens), max_tokens):
            yield tokens[start : start + max_tokens], [], 0


def pair_batches(
    documents: list,
    tokenizer: WordPieceTokenizer,
    length: int,
    batch_tokens: int,
    rng: random.Random,
    objective: str = "mlm+nsp",
) -> list[dict[str, Tensor]]:
    """Unmasked batches (B, S) from one chunk, similar lengths together, in random order."""
    parts = sentence_pairs(documents, length - 3, rng) if objective == "mlm+nsp" else single_segments(documents, length - 2)
    pairs = sorted(parts, key=lambda p: len(p[0]) + len(p[1]))
    size = max(1, batch_tokens // length)
    batches = []
    for i in range(0, len(pairs), size):
        rows = pairs[i : i + size]
        longest = max(len(a) + len(b) + (3 if b else 2) for a, b, _ in rows)
        width = min(-(-longest // 16) * 16, length)  # a multiple of 16 suits the matrix units
        ids = torch.full((len(rows), width), tokenizer.pad_id)
        segments = torch.zeros_like(ids)
        for row, (a, b, _) in enumerate(rows):
            tokens = [tokenizer.cls_id, *a, tokenizer.sep_id, *b, *([tokenizer.sep_id] if b else [])]
            ids[row, : len(tokens)] = torch.tensor(tokens)
            segments[row, len(a) + 2 : len(tokens)] = 1
        batch = {"input_ids": ids, "token_type_ids": segments, "next_sentence_label": torch.tensor([r for _, _, r in rows])}
        batches.append(batch)
    rng.shuffle(batches)
    return batches


def mask_tokens(
    ids: Tensor,
    special: Tensor,
    vocab_size: int,
    mask_id: int,
    rate: float = 0.15,
    generator: torch.Generator | None = None,
    continues: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Hide tokens for masked language modelling (Devlin et al. 2019, section 3.1 and appendix A.1).

    Of the chosen positions 80% become [MASK], 10% a random token, 10% stay as they are.

    Args:
        ids: (B, S) int64 token ids.
        special: (B, S) bool, True where a token must not be chosen ([CLS], [SEP], padding).
        continues: (B, S) bool, True where a token goes on with the word of the token before it: words are then chosen whole,
            as in the later release of google-research/bert. What a piece becomes is still decided piece by piece.
    Returns:
        (masked ids, labels), both (B, S); labels are -100 where nothing is predicted.
    Raises:
        ValueError: if a row has no token that may be chosen.
    """
    if special.all(dim=1).any():
        raise ValueError("a row holds special tokens only: nothing in it can be masked.")
    dice, fate = torch.rand(2, *ids.shape, generator=generator)
    if continues is not None:
        first = ~continues
        first[:, 1:] |= special[:, :-1]  # after [SEP] a word begins, even one that was cut
        first[:, 0] = True
        places = torch.arange(ids.shape[1]).expand_as(ids)
        dice = dice.gather(1, places.masked_fill(~first, 0).cummax(dim=1).values)  # all pieces get their first one's
    dice = dice.masked_fill(special, 2.0)
    chosen = (dice < rate) | (dice == dice.min(dim=1, keepdim=True).values)  # at least one a row
    labels = ids.masked_fill(~chosen, -100)
    anything = torch.randint(vocab_size, ids.shape, generator=generator)
    masked = torch.where(chosen & (fate < 0.8), mask_id, ids)
    masked = torch.where(chosen & (fate >= 0.9), anything, masked)
    return masked, labels


def masked_batch(
    batch: dict[str, Tensor], tokenizer: WordPieceTokenizer, rate: float, generator: torch.Generator, whole_words: bool = False
) -> dict:
    """A batch ready for the model: masked, with labels, and with an attention mask if there is padding."""
    ids = batch["input_ids"]
    special = torch.isin(ids, torch.tensor([tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id]))
    continues = word_continues(tokenizer)[ids] if whole_words else None
    masked, labels = mask_tokens(ids, special, tokenizer.vocab_size, tokenizer.mask_id, rate, generator, continues)
    real = (ids != tokenizer.pad_id).long()
    return batch | {"input_ids": masked, "labels": labels, "attention_mask": None if real.all() else real}


@lru_cache(maxsize=1)
def word_continues(tokenizer: WordPieceTokenizer) -> Tensor:
    """(V,) bool, True for the pieces that go on with a word: ##ing."""
    return torch.tensor([token.startswith("##") for token in tokenizer.tokens])


def pretraining_losses(model: BertForPreTraining, batch: dict) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The two losses of `model(**batch)`, by way of `fast`, which computes only what they ask for.

    Returns:
        MLM loss, NSP loss, share of masked tokens guessed right, share of pairs guessed right.
    """
    predicted = batch["labels"] != -100
    targets = batch["labels"][predicted]  # (N,)
    logits = pretraining_logits(model, batch["input_ids"], batch["attention_mask"], batch["token_type_ids"], predicted)
    mlm, nsp = (scores.to(torch.promote_types(scores.dtype, torch.float32)) for scores in logits)  # (N, V), (B, 2)
    answer = batch["next_sentence_label"]
    return (
        F.cross_entropy(mlm, targets),
        F.cross_entropy(nsp, answer),
        (mlm.argmax(-1) == targets).float().mean(),
        (nsp.argmax(-1) == answer).float().mean(),
    )


def both_losses(model: BertForPreTraining, batch: dict) -> dict[str, Tensor]:
    return dict(zip(("mlm_loss", "nsp_loss", "mlm_accuracy", "nsp_accuracy"), pretraining_losses(model, batch)))


def mlm_losses(model: BertForPreTraining, batch: dict) -> dict[str, Tensor]:
    """Pooler and NSP head get a gradient of zero: optimizer and `DistributedDataParallel` expect one of every parameter."""
    mlm, nsp, right, _ = pretraining_losses(model, batch)
    return {"mlm_loss": mlm + 0 * nsp, "mlm_accuracy": right}


OBJECTIVES = {
    "mlm+nsp": Objective("mlm+nsp", BertForPreTraining, masked_batch, both_losses, {"mlm_loss": 1.0, "nsp_loss": 1.0}),
    "mlm": Objective("mlm", BertForPreTraining, masked_batch, mlm_losses, {"mlm_loss": 1.0}),
}
