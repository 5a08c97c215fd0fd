"""The fast path of pretraining and of classification: the scores of `model.py`, without the work that nothing asks for.

`model.py` is the reference, and these are its parameters. `tests/test_fast.py` compares scores, losses and gradients.

What pretraining looks at is [CLS] and the tokens to be predicted; five in six tokens are neither. In the last layer all tokens
are heard, but only those listen: queries, projection, feed-forward block and vocabulary are computed for them alone. A
classifier looks at [CLS].
"""

import torch
from torch import Tensor

from .model import BertForPreTraining, BertForSequenceClassification, BertLayer, BertModel, BertSelfAttention


def pretraining_logits(
    model: BertForPreTraining, input_ids: Tensor, attention_mask: Tensor | None, token_type_ids: Tensor | None, predicted: Tensor
) -> tuple[Tensor, Tensor]:
    """What `model` says where something is asked.

    Args:
        predicted: (B, S) bool, True at the N tokens to be predicted. The others are as for `BertModel`; attention_mask (B, S).
    Returns:
        (N, V) scores of the word pieces, row after row, and (B, 2) scores for next sentence prediction.
    Raises:
        ValueError: as `BertModel` does.
    """
    explicit = input_ids.device.type == "cpu"  # there the fused attention has the slower backward pass
    hidden, mask, last = before_last(model.bert, input_ids, attention_mask, token_type_ids, explicit)

    wanted = predicted.clone()
    wanted[:, 0] = True  # [CLS]
    counts = wanted.sum(1, keepdim=True)  # (B, 1)
    places = wanted.int().argsort(dim=1, descending=True, stable=True)[:, : counts.max()]  # (B, Q), the wanted ones first
    kept = torch.arange(places.shape[1], device=places.device) < counts  # (B, Q), False where a row has fewer than Q
    starts = torch.arange(0, wanted.numel(), wanted.shape[1], device=places.device)  # (B,), of the rows among all tokens
    listening = hidden.flatten(0, 1).index_select(0, (places + starts[:, None]).flatten()).unflatten(0, places.shape)
    context = attention(last.attention.self, listening, hidden, mask, explicit)
    hidden = last.attention.output(select(context.flatten(0, 1), kept), select(listening.flatten(0, 1), kept))
    hidden = last.output(last.intermediate(hidden), hidden)  # (M, D): of each row [CLS] and the tokens to be predicted

    pooled = model.bert.pooler(select(hidden, places[kept] == 0)[:, None])  # (B, D)
    return model.cls.predictions(select(hidden, predicted[wanted])), model.cls.seq_relationship(pooled)


def classification_logits(
    model: BertForSequenceClassification, input_ids: Tensor, attention_mask: Tensor | None, token_type_ids: Tensor | None
) -> Tensor:
    """What `model` says in evaluation mode. In training, dropout would draw other numbers than `model` does.

    Args:
        attention_mask: (B, S) or None. The others are as for `BertModel`.
    Returns:
        (B, labels) scores.
    Raises:
        ValueError: as `BertModel` does.
    """
    hidden, mask, last = before_last(model.bert, input_ids, attention_mask, token_type_ids, False)
    first = hidden[:, :1]  # [CLS]
    first = last.attention.output(attention(last.attention.self, first, hidden, mask, False), first)
    first = last.output(last.intermediate(first), first)
    return model.classifier(model.bert.pooler(first))


def before_last(
    bert: BertModel, input_ids: Tensor, attention_mask: Tensor | None, token_type_ids: Tensor | None, explicit: bool
) -> tuple[Tensor, Tensor | None, BertLayer]:
    """What the last layer reads, (B, S, D) and (B, 1, 1, S), and the last layer."""
    hidden, mask = bert.embed(input_ids, attention_mask, token_type_ids)
    *layers, last = bert.encoder.layer
    for layer in layers:
        hidden, _ = layer(hidden, mask, explicit)
    return hidden, mask, last


def select(x: Tensor, chosen: Tensor) -> Tensor:
    """`x[chosen.flatten()]` for x (M, D) and M bools, with a backward pass that adds whole rows, not number by number."""
    return x.index_select(0, chosen.flatten().nonzero()[:, 0])


def attention(block: BertSelfAttention, listening: Tensor, heard: Tensor, mask: Tensor | None, explicit: bool) -> Tensor:
    """`block` with queries of the tokens `listening` (B, Q, D), keys and values of those `heard` (B, S, D); to (B, Q, D)."""
    context, _ = block.attend(block.query(listening), block.key(heard), block.value(heard), mask, explicit)
    return context
