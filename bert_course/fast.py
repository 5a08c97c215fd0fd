"""The fast path of pretraining: the scores of `BertForPreTraining`, without the work that no loss asks for.

`model.py` is the reference, and these are its parameters. `tests/test_fast.py` compares scores, losses and gradients.

The losses look at [CLS] and at the tokens to be predicted; five in six tokens are neither. In the last layer all tokens are
heard, but only those listen: queries, projection, feed-forward block and vocabulary are computed for them alone.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .model import BertForPreTraining, BertSelfAttention


def pretraining_logits(
    model: BertForPreTraining, input_ids: Tensor, attention_mask: Tensor | None, token_type_ids: Tensor | None, predicted: Tensor
) -> tuple[Tensor, Tensor]:
    """What `model` says where something is asked.

    Args:
        predicted: (B, S) bool, True at the N tokens to be predicted. The others are as for `BertModel`; attention_mask (B, S).
    Returns:
        (N, V) scores of the word pieces, row after row, and (B, 2) scores for next sentence prediction.
    """
    hidden = model.bert.embeddings(input_ids, token_type_ids)  # (B, S, D)
    mask = None
    if attention_mask is not None:
        mask = (1 - attention_mask[:, None, None].to(hidden.dtype)) * torch.finfo(hidden.dtype).min  # (B, 1, 1, S)
    explicit = hidden.device.type == "cpu"  # there the fused attention has the slower backward pass
    *layers, last = model.bert.encoder.layer
    for layer in layers:
        hidden, _ = layer(hidden, mask, explicit)

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


def select(x: Tensor, chosen: Tensor) -> Tensor:
    """`x[chosen.flatten()]` for x (M, D) and M bools, with a backward pass that adds whole rows, not number by number."""
    return x.index_select(0, chosen.flatten().nonzero()[:, 0])


def attention(block: BertSelfAttention, listening: Tensor, heard: Tensor, mask: Tensor | None, explicit: bool) -> Tensor:
    """`block` with queries of the tokens `listening` (B, Q, D), keys and values of those `heard` (B, S, D); to (B, Q, D)."""
    projected = block.query(listening), block.key(heard), block.value(heard)
    q, k, v = map(block.split_heads, projected)  # (B, H, Q, W), 2 x (B, H, S, W)
    dropout = block.dropout if block.training else 0.0
    if explicit:
        scores = q @ k.transpose(2, 3) / q.shape[-1] ** 0.5  # (B, H, Q, S)
        weights = (scores if mask is None else scores + mask.to(scores.dtype)).softmax(-1)
        context = F.dropout(weights, dropout) @ v
    else:
        context = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
    return context.transpose(1, 2).flatten(2)  # (B, H, Q, W) -> (B, Q, D)
