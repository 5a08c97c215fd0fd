"""Recurrent networks on torch's nn.LSTM (Hochreiter and Schmidhuber 1997): two classifiers and a language model.

They share BERT's tokens, embeddings (less positions and segments: an LSTM knows the order because it reads in it) and
output head. Their sizes stand in a `BertConfig`: hidden_size D is the width of a token's vector, intermediate_size U the
units of an LSTM, num_hidden_layers L; heads and positions play no part. `sized` finds the U that makes a model as large as
another.

Padding stands on the right, as `inputs.batch` puts it.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from ..config import BertConfig
from ..model import BertLMPredictionHead, BertPreTrainingHeads, Output, classifier_dropout, head_output, init_weights
from ..objectives import Objective
from ..wordpiece import WordPieceTokenizer


class TokenEmbeddings(nn.Module):
    """A vector for each token, then LayerNorm: (B, S) -> (B, S, D)."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.dropout(self.LayerNorm(self.word_embeddings(input_ids)))


class LSTMLayers(nn.Module):
    """L layers, each an LSTM of U units whose states are projected back to D numbers; from the second on, what came in is
    added. So are ELMo's (Peters et al. 2018, section 3.4). Gives the outputs of all layers, L tensors (B, S, D)."""

    def __init__(self, config: BertConfig):
        super().__init__()
        width, units = config.hidden_size, config.intermediate_size
        self.lstm = nn.ModuleList(nn.LSTM(width, units, batch_first=True) for _ in range(config.num_hidden_layers))
        self.dense = nn.ModuleList(nn.Linear(units, width) for _ in range(config.num_hidden_layers))
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        remember(*self.lstm)

    def forward(self, hidden: Tensor) -> list[Tensor]:
        states = []
        for lstm, dense in zip(self.lstm, self.dense):
            new = self.dropout(dense(lstm(hidden)[0]))
            hidden = hidden + new if states else new
            states.append(hidden)
        return states


def remember(*lstms: nn.LSTM) -> None:
    """Start with forget gates that are open: a bias of 1 (Jozefowicz et al. 2015)."""
    with torch.no_grad():
        for lstm in lstms:
            for name, bias in lstm.named_parameters():
                if name.startswith("bias_ih"):
                    bias[lstm.hidden_size : 2 * lstm.hidden_size] += 1  # torch's order: input, forget, cell, output


class RecurrentModel(nn.Module):
    """Token embeddings, then LSTMs from left to right; called as `BertModel` is."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.config = config
        self.embeddings = TokenEmbeddings(config)
        self.layers = LSTMLayers(config)

    def forward(self, input_ids, attention_mask=None, token_type_ids=None, output_hidden_states=False) -> Output:
        """last_hidden_state (B, S, D); on request hidden_states, L + 1 of them, embeddings first."""
        hidden = self.embeddings(input_ids)
        states = [hidden, *self.layers(hidden)]
        return body_output(states, output_hidden_states)


class RecurrentLM(nn.Module):
    """Next token from all before it (Mikolov et al. 2010), with LSTMs."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.config = config
        self.rnn = RecurrentModel(config)
        self.cls = BertPreTrainingHeads(config, self.rnn.embeddings.word_embeddings, next_sentence=False)
        init_weights(self, config)

    def forward(self, input_ids, attention_mask=None, token_type_ids=None, labels=None, **kwargs) -> Output:
        """logits (B, S, V): entry i is about token i + 1. `labels` (B, S): the input ids, -100 where nothing is asked."""
        return next_token_output(self, self.rnn(input_ids, **kwargs), labels)


class LSTMForSequenceClassification(nn.Module):
    """One label for the whole input, from the last state of the top layer; called as `BertForSequenceClassification` is.

    The states are not projected: layers of U units one above the other, as nn.LSTM has them.
    """

    bidirectional = False

    def __init__(self, config: BertConfig):
        super().__init__()
        self.config = config
        self.embeddings = TokenEmbeddings(config)
        layers, both = config.num_hidden_layers, self.bidirectional
        dropout = config.hidden_dropout_prob if layers > 1 else 0.0  # between layers
        shape = (config.hidden_size, config.intermediate_size, layers)
        self.lstm = nn.LSTM(*shape, batch_first=True, bidirectional=both, dropout=dropout)
        self.dropout = classifier_dropout(config)
        self.classifier = nn.Linear(config.intermediate_size * (1 + both), config.num_labels)
        init_weights(self, config)
        remember(self.lstm)

    def forward(self, input_ids, attention_mask=None, token_type_ids=None, labels=None) -> Output:
        """`labels` (B,): class ids."""
        hidden = self.embeddings(input_ids)
        if attention_mask is not None:  # so that no state comes from padding
            hidden = pack_padded_sequence(hidden, attention_mask.sum(1).cpu(), batch_first=True, enforce_sorted=False)
        _, (last, _) = self.lstm(hidden)  # (L * directions, B, U)
        final = torch.cat(list(last[-1 - self.bidirectional :]), dim=-1)
        return classified(self.classifier(self.dropout(final)), labels)


class BiLSTMForSequenceClassification(LSTMForSequenceClassification):
    """The same in both directions; each layer reads both directions of the one below (Graves and Schmidhuber 2005)."""

    bidirectional = True


def body_output(states: list[Tensor], output_hidden_states: bool) -> Output:
    hidden_states = {"hidden_states": tuple(states)} if output_hidden_states else {}
    return Output(last_hidden_state=states[-1], **hidden_states)


def classified(logits: Tensor, labels: Tensor | None) -> Output:
    return head_output(None if labels is None else F.cross_entropy(logits, labels), Output(), logits=logits)


def next_token_output(model: nn.Module, output: Output, labels: Tensor | None) -> Output:
    logits = model.cls.predictions(output.last_hidden_state)  # (B, S, V)
    loss = None if labels is None else F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    return head_output(loss, output, logits=logits)


def next_tokens(batch: dict, tokenizer: WordPieceTokenizer, rate: float, generator: torch.Generator) -> dict:
    """A batch ready for a language model: nothing is masked, every token is asked for but [CLS], [SEP] and padding."""
    ids = batch["input_ids"]
    never = torch.tensor([tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id])
    real = (ids != tokenizer.pad_id).long()
    labels = ids.masked_fill(torch.isin(ids, never), -100)
    return batch | {"labels": labels, "attention_mask": None if real.all() else real}


def scored(head: BertLMPredictionHead, states: Tensor, labels: Tensor) -> Tensor:
    """Mean loss of guessing `labels` (B, S) from `states` (B, S, D), scores computed only where something is asked."""
    chosen = (labels.flatten() != -100).nonzero()[:, 0]
    return F.cross_entropy(head(states.flatten(0, 1).index_select(0, chosen)).float(), labels.flatten()[chosen])


def recurrent_losses(model: RecurrentLM, batch: dict) -> dict[str, Tensor]:
    states = model.rnn(batch["input_ids"]).last_hidden_state
    return {"next_loss": scored(model.cls.predictions, states[:, :-1], batch["labels"][:, 1:])}


RECURRENT = Objective("recurrent", RecurrentLM, next_tokens, recurrent_losses, {"next_loss": 1.0})


@torch.no_grad()
def gap_scores(model: nn.Module, tokenizer: WordPieceTokenizer, left: Sequence[int], right: Sequence[int]) -> Tensor:
    """Log-probabilities (V,) of the token in a gap, from the state before it: `right` is not read. For any model whose
    logits are about the next token, GPT's too."""
    ids = torch.tensor([[tokenizer.cls_id, *left]], device=next(model.parameters()).device)
    return model.eval()(ids).logits[0, -1].log_softmax(-1).cpu()


def parameters(model_class: type[nn.Module], config: BertConfig) -> int:
    """Parameters of a model, counted without making it."""
    with torch.device("meta"):
        return sum(p.numel() for p in model_class(config).parameters())


def sized(model_class: type[nn.Module], config: BertConfig, size: int) -> BertConfig:
    """`config` with the LSTM units, a multiple of 8, with which `model_class` comes closest to `size` parameters."""

    def found(units: int) -> int:
        return parameters(model_class, replace(config, intermediate_size=units))

    units = range(8, 8192, 8)
    above = max(1, bisect_left(units, size, key=found))
    best = min(units[above - 1 : above + 1], key=lambda u: abs(found(u) - size))
    return replace(config, intermediate_size=best)
