"""Recall over a distance: the task of lesson 01, its four contenders and their training.

One input: [CLS], `distance` noise tokens, one or two notes (a key and the value that follows it), `distance` noise tokens, and
a question: the key whose value is asked. So the notes are equally far from both ends, and no reading direction is favoured.
"""

import time
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from .baselines.rnn import BiLSTMForSequenceClassification, LSTMForSequenceClassification
from .config import BertConfig
from .model import BertForSequenceClassification

CLS, NOISE, KEYS, VALUES = 2, range(4, 20), range(20, 22), range(22, 30)
CONTENDERS = ("encoder", "LSTM", "BiLSTM", "LSTM, patient")
RATES = (1e-3, 3e-3, 1e-2)


def batch(distance: int, notes: int, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Token ids (B, 2 * distance + 2 * notes + 2) and labels (B,): which of the eight values follows the key that is asked."""
    ids = torch.randint(NOISE.start, NOISE.stop, (size, 2 * distance + 2 * notes + 2), generator=generator)
    keys = torch.rand(size, len(KEYS), generator=generator).argsort(1)[:, :notes]
    values = torch.randint(len(VALUES), (size, notes), generator=generator)
    asked = torch.randint(notes, (size, 1), generator=generator)
    ids[:, 0] = CLS
    ids[:, distance + 1 : -distance - 1] = torch.stack([keys + KEYS.start, values + VALUES.start], -1).flatten(1)
    ids[:, -1] = keys.gather(1, asked)[:, 0] + KEYS.start
    return ids, values.gather(1, asked)[:, 0]


def contender(name: str, length: int) -> nn.Module:
    """A fresh encoder of two layers, or an LSTM of one with at least as many parameters (a few more: 72 units, or 48 in each
    direction; the encoder's grow with its table of positions).

    "LSTM, patient" starts with forget gates that keep the state for 1 to `length` steps, and input gates closed to match
    (Tallec and Ollivier 2018, "chrono initialization"). The others' forget gates start with a bias of 1. The encoder's weights
    start as large as BERT's, relative to its width: 0.02 is for 768.
    """
    config = BertConfig(
        vocab_size=VALUES.stop, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128,
        max_position_embeddings=length, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        id2label={i: str(i) for i in range(len(VALUES))},
    )
    if name == "encoder":
        return BertForSequenceClassification(replace(config, initializer_range=0.02 * (768 / config.hidden_size) ** 0.5))
    if name == "BiLSTM":
        return BiLSTMForSequenceClassification(replace(config, num_hidden_layers=1, intermediate_size=48))
    model = LSTMForSequenceClassification(replace(config, num_hidden_layers=1, intermediate_size=72))
    if name == "LSTM, patient":
        units = model.lstm.hidden_size
        with torch.no_grad():
            model.lstm.bias_hh_l0.zero_()
            model.lstm.bias_ih_l0.zero_()
            model.lstm.bias_ih_l0[units : 2 * units] = torch.empty(units).uniform_(1, length - 1).log()
            model.lstm.bias_ih_l0[:units] = -model.lstm.bias_ih_l0[units : 2 * units]
    return model


@dataclass
class Trained:
    model: nn.Module
    accuracy: float  # on 512 inputs that were not trained on
    steps: int
    seconds: float
    history: list[tuple[int, float]] = field(default_factory=list)  # (steps, accuracy)


def train(name: str, distance: int, notes: int, rate: float, steps: int, seed: int, device="cpu") -> Trained:
    """Train a contender on fresh batches of 32, until it is right in 99 of 100 or `steps` are over."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    test_ids, test_labels = (x.to(device) for x in batch(distance, notes, 512, torch.Generator().manual_seed(10_000 + seed)))
    model = contender(name, test_ids.shape[1]).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), rate)
    started, history = time.perf_counter(), []
    for step in range(1, steps + 1):
        optimizer.param_groups[0]["lr"] = rate * min(1, step / 30)
        ids, labels = batch(distance, notes, 32, generator)
        loss = model(ids.to(device), labels=labels.to(device)).loss
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 50 == 0 or step == steps:
            with torch.no_grad():
                history.append((step, (model(test_ids).logits.argmax(-1) == test_labels).float().mean().item()))
            if history[-1][1] >= 0.99:
                break
    return Trained(model, history[-1][1], step, time.perf_counter() - started, history)


def influence_on_answer(model: nn.Module, ids: Tensor, labels: Tensor) -> Tensor:
    """How strongly each token's embedding moves the right answer: |d logit / d embedding|, (S,), the mean over a batch."""
    kept = []
    hook = model.get_submodule("bert.embeddings" if hasattr(model, "bert") else "embeddings").register_forward_hook(
        lambda module, inputs, output: kept.append(output)
    )
    with torch.backends.cudnn.flags(enabled=False):  # its LSTM has no backward pass in eval mode
        logits = model(ids).logits.gather(1, labels[:, None]).sum()
    hook.remove()
    return torch.autograd.grad(logits, kept[0])[0].norm(dim=-1).mean(0)
