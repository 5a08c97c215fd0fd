"""GPT (Radford et al. 2018): the course's own encoder, reading from left to right, asked for the next token.

Parameters and their names are those of `BertForMaskedLM`; the mask is the only difference. What is saved opens with
`transformers.BertLMHeadModel.from_pretrained(folder, is_decoder=True)` and gives the same numbers.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..config import BertConfig
from ..model import BertModel, BertPreTrainingHeads, Output, classifier_dropout, init_weights
from ..objectives import Objective
from ..wordpiece import WordPieceTokenizer
from .rnn import classified, next_token_output, next_tokens, scored


class CausalModel(BertModel):
    """`BertModel`, but a token listens only to itself and to the tokens before it."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, *args, **kwargs) -> Output:
        """Arguments and results as for `BertModel`; attention_mask (B, S)."""
        rows, length = input_ids.shape
        causal = torch.ones(length, length, device=input_ids.device).tril().expand(rows, -1, -1)  # 1 where j <= i
        if attention_mask is not None:
            causal = causal * attention_mask[:, None, :]
        return super().forward(input_ids, causal, *args, **kwargs)


class CausalLM(nn.Module):
    """`BertForMaskedLM` with a causal mask, asked for the next token."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.config = config
        self.bert = CausalModel(config, add_pooling_layer=False)
        self.cls = BertPreTrainingHeads(config, self.bert.embeddings.word_embeddings, next_sentence=False)
        init_weights(self.cls, config)

    def forward(self, input_ids, attention_mask=None, token_type_ids=None, labels=None, **kwargs) -> Output:
        """logits (B, S, V): entry i is about token i + 1. `labels` (B, S): the input ids, -100 where nothing is asked."""
        return next_token_output(self, self.bert(input_ids, attention_mask, token_type_ids, **kwargs), labels)


class CausalForSequenceClassification(nn.Module):
    """One label for the whole input, from the state of its last token: the only one that has read everything.

    Radford et al. 2018, section 3.2. Padding stands on the right.
    """

    def __init__(self, config: BertConfig):
        super().__init__()
        self.config = config
        self.bert = CausalModel(config, add_pooling_layer=False)
        self.dropout = classifier_dropout(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        init_weights(self.classifier, config)

    def forward(self, input_ids, attention_mask=None, token_type_ids=None, labels=None) -> Output:
        """`labels` (B,): class ids."""
        states = self.bert(input_ids, attention_mask, token_type_ids).last_hidden_state
        rows = torch.arange(len(states), device=states.device)
        last = -1 if attention_mask is None else attention_mask.sum(1) - 1
        return classified(self.classifier(self.dropout(states[rows, last])), labels)


def causal_losses(model: CausalLM, batch: dict) -> dict[str, Tensor]:
    ids = batch["input_ids"]
    explicit = ids.device.type == "cpu"  # as in `fast.pretraining_logits`
    states = model.bert(ids, batch["attention_mask"], output_attentions=explicit).last_hidden_state
    return {"next_loss": scored(model.cls.predictions, states[:, :-1], batch["labels"][:, 1:])}


CAUSAL = Objective("causal", CausalLM, next_tokens, causal_losses, {"next_loss": 1.0})


@torch.no_grad()
def sentence_scores(
    model: nn.Module, tokenizer: WordPieceTokenizer, left: Sequence[int], pieces: Sequence[int], right: Sequence[int]
) -> Tensor:
    """Log-probability (P,) of the whole sentence with each of P `pieces` in the gap between `left` and `right`, [SEP] included:
    how a model that reads from left to right can take note of the right side, at the price of one pass for each piece."""
    rows = [[tokenizer.cls_id, *left, piece, *right, tokenizer.sep_id] for piece in pieces]
    ids = torch.tensor(rows, device=next(model.parameters()).device)
    found = model.eval()(ids).logits[:, :-1].log_softmax(-1)
    return found.gather(-1, ids[:, 1:, None])[..., 0].sum(-1).cpu()
