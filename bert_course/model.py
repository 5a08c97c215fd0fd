"""BERT from scratch (Devlin et al. 2019): embeddings, encoder, pooler and the five heads of the course.

Module and parameter names are those of `transformers`, so that checkpoints pass between the two unchanged, and the
numbers are equal too: `tests/test_model.py` compares every hidden state, loss and gradient.

Leaves out: decoder mode, cross-attention, relative positions, caching. BERT needs none of them.

Shapes: B batch, S sequence, D hidden size, H heads, W = D / H head width, V vocabulary, L layers.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import BertConfig


class Output(dict):
    """What a model returns: a dict whose entries are attributes too, `output.logits`. Holds only what was asked for."""

    def __getattr__(self, name):
        if name in self:
            return self[name]
        raise AttributeError(f"no '{name}' in this output; it has {', '.join(self)}.")


class BertEmbeddings(nn.Module):
    """Token + position + segment, each looked up in a learned table, then LayerNorm (section 3, figure 2)."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, input_ids: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)  # (S,)
        if token_type_ids is None:
            token_type_ids = torch.zeros_like(input_ids)
        total = self.word_embeddings(input_ids) + self.token_type_embeddings(token_type_ids)  # (B, S, D)
        total = total + self.position_embeddings(positions)
        return self.dropout(self.LayerNorm(total))


class BertSelfAttention(nn.Module):
    """Multi-head scaled dot-product attention (Vaswani et al. 2017, section 3.2), both directions at once."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = config.attention_probs_dropout_prob

    def forward(self, hidden: Tensor, mask: Tensor | None, need_weights: bool) -> tuple[Tensor, Tensor | None]:
        return self.attend(self.query(hidden), self.key(hidden), self.value(hidden), mask, need_weights)

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, need_weights: bool
    ) -> tuple[Tensor, Tensor | None]:
        """The tokens of `query` (B, Q, D) listen to those of `key` and `value` (B, S, D); in `forward` all to all."""
        q, k, v = map(self.split_heads, (query, key, value))  # (B, H, Q, W), 2 x (B, H, S, W)
        dropout = self.dropout if self.training else 0.0
        if need_weights:  # the formula, step by step; the other branch is the same in one fused operation
            scores = q @ k.transpose(2, 3) / q.shape[-1] ** 0.5  # (B, H, Q, S)
            weights = (scores if mask is None else scores + mask.to(scores.dtype)).softmax(-1)
            context = F.dropout(weights, dropout) @ v
        else:
            weights = None
            context = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)  # (B, H, Q, W)
        return context.transpose(1, 2).flatten(2), weights  # (B, H, Q, W) -> (B, Q, D)

    def split_heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, S, D) -> (B, H, S, W)


class ResidualNorm(nn.Module):
    """How each block of a layer ends: project, add what came in, normalise the sum (post-norm)."""

    def __init__(self, width: int, config: BertConfig):
        super().__init__()
        self.dense = nn.Linear(width, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, inner: Tensor, residual: Tensor) -> Tensor:
        return self.LayerNorm(residual + self.dropout(self.dense(inner)))


class BertAttention(nn.Module):
    """First block of a layer: tokens listen to each other."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.self = BertSelfAttention(config)
        self.output = ResidualNorm(config.hidden_size, config)

    def forward(self, hidden: Tensor, mask: Tensor | None, need_weights: bool) -> tuple[Tensor, Tensor | None]:
        context, weights = self.self(hidden, mask, need_weights)
        return self.output(context, hidden), weights


class BertIntermediate(nn.Module):
    """Widen to the intermediate size, then GELU (Hendrycks and Gimpel 2016)."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)

    def forward(self, hidden: Tensor) -> Tensor:
        return F.gelu(self.dense(hidden))


class BertLayer(nn.Module):
    """Attention block, then feed-forward block."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.attention = BertAttention(config)
        self.intermediate = BertIntermediate(config)
        self.output = ResidualNorm(config.intermediate_size, config)

    def forward(self, hidden: Tensor, mask: Tensor | None, need_weights: bool) -> tuple[Tensor, Tensor | None]:
        hidden, weights = self.attention(hidden, mask, need_weights)
        return self.output(self.intermediate(hidden), hidden), weights


class BertEncoder(nn.Module):
    """L layers, one after the other."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.layer = nn.ModuleList(BertLayer(config) for _ in range(config.num_hidden_layers))

    def forward(self, hidden: Tensor, mask: Tensor | None, need_weights: bool) -> tuple[list[Tensor], list[Tensor]]:
        states, attentions = [hidden], []
        for layer in self.layer:
            hidden, weights = layer(hidden, mask, need_weights)
            states.append(hidden)
            attentions.append(weights)
        return states, attentions


class BertPooler(nn.Module):
    """The vector of [CLS] through one more dense layer and tanh: the whole input in one vector."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden: Tensor) -> Tensor:
        return torch.tanh(self.dense(hidden[:, 0]))  # (B, S, D) -> (B, D)


class BertModel(nn.Module):
    """Embeddings, encoder and, where a head needs it, pooler."""

    def __init__(self, config: BertConfig, add_pooling_layer: bool = True):
        super().__init__()
        self.config = config
        self.embeddings = BertEmbeddings(config)
        self.encoder = BertEncoder(config)
        self.pooler = BertPooler(config) if add_pooling_layer else None
        init_weights(self, config)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> Output:
        """Run the encoder.

        Args:
            input_ids: (B, S) int64 ids, S at most `max_position_embeddings`.
            attention_mask: (B, S), 1 for real tokens, 0 for padding; None if there is no padding. Or (B, S, S): entry
                [b, i, j] is 1 where token i may listen to token j.
            token_type_ids: (B, S), 0 in segment A, 1 in segment B; None if all are A.
        Returns:
            last_hidden_state (B, S, D); pooler_output (B, D) if there is a pooler; on request
            hidden_states, L + 1 tensors (B, S, D), embeddings first, and attentions, L tensors (B, H, S, S).
        Raises:
            ValueError: if the input is longer than the position table or an id is not in the vocabulary.
        """
        hidden, mask = self.embed(input_ids, attention_mask, token_type_ids)
        states, attentions = self.encoder(hidden, mask, output_attentions)
        output = Output(last_hidden_state=states[-1])
        if self.pooler is not None:
            output["pooler_output"] = self.pooler(states[-1])
        if output_hidden_states:
            output["hidden_states"] = tuple(states)
        if output_attentions:
            output["attentions"] = tuple(attentions)
        return output

    def embed(
        self, input_ids: Tensor, attention_mask: Tensor | None, token_type_ids: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """What the first layer reads: vectors (B, S, D), and the mask as numbers that are added to the scores, (B, 1, 1, S) or
        (B, 1, S, S), or None if there is none. Arguments and errors are those of `forward`."""
        config = self.config
        if input_ids.shape[1] > config.max_position_embeddings:
            raise ValueError(
                f"{input_ids.shape[1]} tokens, but this model has positions for {config.max_position_embeddings}. "
                "Truncate, or read the text in windows (bert_course.inputs.windows)."
            )
        if input_ids.device.type == "cpu" and input_ids.numel():  # on a GPU this look would wait for it
            low, high = input_ids.aminmax()
            if low < 0 or high >= config.vocab_size:
                raise ValueError(
                    f"token id {low if low < 0 else high} is outside the model's vocabulary of {config.vocab_size}. "
                    "Is the tokenizer the one that the model was trained with?"
                )
        hidden = self.embeddings(input_ids, token_type_ids)
        mask = None
        if attention_mask is not None:  # 1 and 0 -> 0 and the most negative number, (B, 1, 1, S) or (B, 1, S, S)
            allowed = attention_mask if attention_mask.dim() == 3 else attention_mask[:, None, :]
            mask = (1 - allowed[:, None].to(hidden.dtype)) * torch.finfo(hidden.dtype).min
        return hidden, mask


class BertPredictionHeadTransform(nn.Module):
    """Dense, GELU, LayerNorm before the vocabulary."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.LayerNorm(F.gelu(self.dense(hidden)))


class BertLMPredictionHead(nn.Module):
    """A score for every word piece. The output weights *are* the token embeddings (tied); only the bias is new."""

    def __init__(self, config: BertConfig, word_embeddings: nn.Embedding):
        super().__init__()
        self.transform = BertPredictionHeadTransform(config)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)
        self.decoder.weight, self.decoder.bias = word_embeddings.weight, self.bias

    def forward(self, hidden: Tensor) -> Tensor:
        return self.decoder(self.transform(hidden))  # (..., D) -> (..., V)


class BertPreTrainingHeads(nn.Module):
    """The masked language model's head and, for pretraining, the next-sentence head."""

    def __init__(self, config: BertConfig, word_embeddings: nn.Embedding, next_sentence: bool):
        super().__init__()
        self.predictions = BertLMPredictionHead(config, word_embeddings)
        if next_sentence:
            self.seq_relationship = nn.Linear(config.hidden_size, 2)


class BertForPreTraining(nn.Module):
    """Masked language model + next sentence prediction; the loss is the sum of both (appendix A.2)."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.config = config
        self.bert = BertModel(config)
        self.cls = BertPreTrainingHeads(config, self.bert.embeddings.word_embeddings, next_sentence=True)
        init_weights(self.cls, config)

    def forward(self, input_ids, attention_mask=None, token_type_ids=None, labels=None, next_sentence_label=None, **kwargs):
        """`labels` (B, S): token ids, -100 where nothing is predicted. `next_sentence_label` (B,): 0 next, 1 random."""
        output = self.bert(input_ids, attention_mask, token_type_ids, **kwargs)
        mlm = self.cls.predictions(output.last_hidden_state)  # (B, S, V)
        nsp = self.cls.seq_relationship(output.pooler_output)  # (B, 2)
        loss = None
        if labels is not None and next_sentence_label is not None:
            loss = F.cross_entropy(mlm.flatten(0, 1), labels.flatten()) + F.cross_entropy(nsp, next_sentence_label)
        return head_output(loss, output, prediction_logits=mlm, seq_relationship_logits=nsp)


class BertForMaskedLM(nn.Module):
    """Masked language model alone."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.config = config
        self.bert = BertModel(config, add_pooling_layer=False)
        self.cls = BertPreTrainingHeads(config, self.bert.embeddings.word_embeddings, next_sentence=False)
        init_weights(self.cls, config)

    def forward(self, input_ids, attention_mask=None, token_type_ids=None, labels=None, **kwargs):
        """`labels` (B, S): token ids, -100 where nothing is predicted."""
        output = self.bert(input_ids, attention_mask, token_type_ids, **kwargs)
        logits = self.cls.predictions(output.last_hidden_state)  # (B, S, V)
        loss = None if labels is None else F.cross_entropy(logits.flatten(0, 1), labels.flatten())
        return head_output(loss, output, logits=logits)


class BertForSequenceClassification(nn.Module):
    """One label for the whole input, from the pooled [CLS] (section 4.1). With a single label: a number (regression)."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.config = config
        self.bert = BertModel(config)
        self.dropout = classifier_dropout(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        init_weights(self.classifier, config)

    def forward(self, input_ids, attention_mask=None, token_type_ids=None, labels=None, **kwargs):
        """`labels` (B,): class ids, or floats for regression."""
        output = self.bert(input_ids, attention_mask, token_type_ids, **kwargs)
        logits = self.classifier(self.dropout(output.pooler_output))  # (B, labels)
        loss = None
        if labels is not None:
            regression = self.config.num_labels == 1
            loss = F.mse_loss(logits.squeeze(1), labels) if regression else F.cross_entropy(logits, labels)
        return head_output(loss, output, logits=logits)


class BertForTokenClassification(nn.Module):
    """One label for every token (section 5.3)."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.config = config
        self.bert = BertModel(config, add_pooling_layer=False)
        self.dropout = classifier_dropout(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        init_weights(self.classifier, config)

    def forward(self, input_ids, attention_mask=None, token_type_ids=None, labels=None, **kwargs):
        """`labels` (B, S): class ids, -100 where a token has none."""
        output = self.bert(input_ids, attention_mask, token_type_ids, **kwargs)
        logits = self.classifier(self.dropout(output.last_hidden_state))  # (B, S, labels)
        loss = None if labels is None else F.cross_entropy(logits.flatten(0, 1), labels.flatten())
        return head_output(loss, output, logits=logits)


class BertForQuestionAnswering(nn.Module):
    """Where an answer starts and where it ends: two scores for every token (section 4.2)."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.config = config
        self.bert = BertModel(config, add_pooling_layer=False)
        self.qa_outputs = nn.Linear(config.hidden_size, 2)
        init_weights(self.qa_outputs, config)

    def forward(
        self, input_ids, attention_mask=None, token_type_ids=None, start_positions=None, end_positions=None, **kwargs
    ):
        """`start_positions`, `end_positions` (B,): token indices; S or more means "outside this window", not scored."""
        output = self.bert(input_ids, attention_mask, token_type_ids, **kwargs)
        start, end = self.qa_outputs(output.last_hidden_state).unbind(-1)  # 2 x (B, S)
        loss = None
        if start_positions is not None and end_positions is not None:
            outside = start.shape[1]
            loss = sum(
                F.cross_entropy(scores, where.clamp(0, outside), ignore_index=outside)
                for scores, where in ((start, start_positions), (end, end_positions))
            ) / 2
        return head_output(loss, output, start_logits=start, end_logits=end)


def head_output(loss: Tensor | None, encoder_output: Output, **logits: Tensor) -> Output:
    extras = {k: v for k, v in encoder_output.items() if k in ("hidden_states", "attentions")}
    return Output(({} if loss is None else {"loss": loss}) | logits | extras)


def classifier_dropout(config: BertConfig) -> nn.Dropout:
    p = config.hidden_dropout_prob if config.classifier_dropout is None else config.classifier_dropout
    return nn.Dropout(p)


def init_weights(module: nn.Module, config: BertConfig) -> None:
    """Matrices: truncated normal, standard deviation `initializer_range`. Biases: zero (google-research/bert modeling.py)."""
    std = config.initializer_range
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Embedding):
            nn.init.trunc_normal_(part.weight, std=std, a=-2 * std, b=2 * std)
        if isinstance(part, nn.Linear):
            nn.init.zeros_(part.bias)


def parameter_groups(model: nn.Module, weight_decay: float = 0.01) -> list[dict]:
    """Weight decay for matrices, none for vectors and numbers: in BERT biases and LayerNorm (google-research/bert
    optimization.py)."""
    decay, plain = [], []
    for parameter in model.parameters():
        (decay if parameter.dim() > 1 else plain).append(parameter)
    return [{"params": decay, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
