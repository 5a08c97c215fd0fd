"""ELMo (Peters et al. 2018, arXiv:1802.05365): two language models that never meet, and a learned mix of their layers.

One LSTM stack reads from left to right and guesses the next token, the other reads from right to left and guesses the one
before; they share token embeddings and output head. Unlike ELMo's, the tokens are BERT's word pieces, not characters, and
the output layer is tied to the embeddings, so that the two are comparable. Sizes as in `rnn`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..config import BertConfig
from ..model import BertPreTrainingHeads, Output, classifier_dropout, init_weights
from ..objectives import Objective
from ..wordpiece import WordPieceTokenizer
from .rnn import LSTMLayers, TokenEmbeddings, body_output, classified, next_tokens, scored


class ElmoModel(nn.Module):
    """Both stacks, their states side by side: the first D numbers of a state have read what is left, the others what is right.

    Called as `BertModel` is.
    """

    def __init__(self, config: BertConfig):
        super().__init__()
        self.config = config
        self.embeddings = TokenEmbeddings(config)
        self.forwards = LSTMLayers(config)
        self.backwards = LSTMLayers(config)

    def forward(self, input_ids, attention_mask=None, token_type_ids=None, output_hidden_states=False) -> Output:
        """last_hidden_state (B, S, 2D); on request hidden_states, L + 1 of them; the first is the embeddings, twice."""
        hidden = self.embeddings(input_ids)
        turned = turn_around(hidden, attention_mask)
        backwards = (turn_around(state, attention_mask) for state in self.backwards(turned))
        states = [torch.cat(pair, dim=-1) for pair in ((hidden, hidden), *zip(self.forwards(hidden), backwards))]
        return body_output(states, output_hidden_states)


def turn_around(states: Tensor, attention_mask: Tensor | None) -> Tensor:
    """The real tokens of each row (B, S, D) in reverse order; padding stays at the end. Twice: as before."""
    if attention_mask is None:
        return states.flip(1)
    places = torch.arange(states.shape[1], device=states.device)
    mirrored = attention_mask.sum(1, keepdim=True) - 1 - places  # (B, S)
    return states.gather(1, torch.where(mirrored < 0, places, mirrored)[:, :, None].expand_as(states))


class BiLM(nn.Module):
    """The bidirectional language model: the sum of both directions' losses (Peters et al. 2018, section 3.1)."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.config = config
        self.elmo = ElmoModel(config)
        self.cls = BertPreTrainingHeads(config, self.elmo.embeddings.word_embeddings, next_sentence=False)
        init_weights(self, config)

    def forward(self, input_ids, attention_mask=None, token_type_ids=None) -> Output:
        """Two tensors (B, S, V): entry i of forward_logits is about token i + 1, of backward_logits about token i - 1."""
        states = self.elmo(input_ids, attention_mask).last_hidden_state
        ahead, back = map(self.cls.predictions, states.chunk(2, dim=-1))
        return Output(forward_logits=ahead, backward_logits=back)


def bilm_losses(model: BiLM, batch: dict) -> dict[str, Tensor]:
    states = model.elmo(batch["input_ids"], batch["attention_mask"]).last_hidden_state
    ahead, back = states.chunk(2, dim=-1)
    head, labels = model.cls.predictions, batch["labels"]
    return {
        "forward_loss": scored(head, ahead[:, :-1], labels[:, 1:]),
        "backward_loss": scored(head, back[:, 1:], labels[:, :-1]),
    }


BILM = Objective("bilm", BiLM, next_tokens, bilm_losses, {"forward_loss": 1.0, "backward_loss": 1.0})


class LayerMix(nn.Module):
    """gamma * sum_j softmax(s)_j h_j over the layers h_j, s and gamma learned (Peters et al. 2018, equation 1)."""

    def __init__(self, layers: int):
        super().__init__()
        self.s = nn.Parameter(torch.zeros(layers))
        self.gamma = nn.Parameter(torch.ones(()))

    def forward(self, hidden_states: Sequence[Tensor]) -> Tensor:
        return self.gamma * torch.einsum("l,l...->...", self.s.softmax(0), torch.stack(tuple(hidden_states)))


class ElmoForSequenceClassification(nn.Module):
    """One label for the whole input: layers mixed, the mean over the tokens, a linear layer."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.config = config
        self.elmo = ElmoModel(config)
        self.dropout = classifier_dropout(config)
        self.classifier = nn.ModuleDict({
            "mix": LayerMix(config.num_hidden_layers + 1),
            "dense": nn.Linear(2 * config.hidden_size, config.num_labels),
        })
        init_weights(self, config)

    def forward(self, input_ids, attention_mask=None, token_type_ids=None, labels=None) -> Output:
        """`labels` (B,): class ids."""
        mixed = self.classifier["mix"](self.elmo(input_ids, attention_mask, output_hidden_states=True).hidden_states)
        real = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        mean = (mixed * real[:, :, None]).sum(1) / real.sum(1, keepdim=True)
        return classified(self.classifier["dense"](self.dropout(mean)), labels)


@torch.no_grad()
def gap_scores(
    model: BiLM, tokenizer: WordPieceTokenizer, left: Sequence[int], right: Sequence[int], sides: str = "both"
) -> Tensor:
    """Log-probabilities (V,) of the token in a gap, by both models, added ("both"), or by one ("left", "right")."""
    device = next(model.parameters()).device
    model.eval()
    before = model(torch.tensor([[tokenizer.cls_id, *left]], device=device)).forward_logits[0, -1].log_softmax(-1)
    after = model(torch.tensor([[*right, tokenizer.sep_id]], device=device)).backward_logits[0, 0].log_softmax(-1)
    return {"both": before + after, "left": before, "right": after}[sides].cpu()
