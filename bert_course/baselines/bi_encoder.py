"""Two sentences read apart and compared at the end, as Sentence-BERT does (Reimers and Gurevych 2019, section 3)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..model import BertModel, Output, init_weights


class BiEncoder(nn.Module):
    """Mean vectors u and v of the two sentences; a label from (u, v, |u - v|).

    It takes the same batches as `BertForSequenceClassification`, [CLS] A [SEP] B [SEP], and reads [CLS] A [SEP] and
    [CLS] B [SEP], each from position 0 and in segment 0.
    """

    def __init__(self, bert: BertModel):
        super().__init__()
        self.config = bert.config
        self.bert = bert
        self.classifier = nn.Linear(3 * bert.config.hidden_size, bert.config.num_labels)
        init_weights(self.classifier, bert.config)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor, labels: Tensor | None = None) -> Output:
        u = self.sentence(input_ids, attention_mask * (1 - token_type_ids))
        second = attention_mask * token_type_ids
        front = second.argsort(dim=1, descending=True, stable=True)[:, :-1]  # B, then the others
        v = self.sentence(
            torch.cat([input_ids[:, :1], input_ids.gather(1, front)], 1), F.pad(second.gather(1, front), (1, 0), value=1)
        )
        logits = self.classifier(torch.cat([u, v, (u - v).abs()], -1))  # (B, labels)
        return Output(({} if labels is None else {"loss": F.cross_entropy(logits, labels)}) | {"logits": logits})

    def sentence(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """The mean of the tokens' vectors, (B, D)."""
        states = self.bert(input_ids, attention_mask).last_hidden_state
        weights = attention_mask[:, :, None].to(states.dtype)
        return (states * weights).sum(1) / weights.sum(1)
