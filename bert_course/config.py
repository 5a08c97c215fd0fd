"""Every hyperparameter of a BERT and what it means (Devlin et al. 2019, section 3; Turc et al. 2019 for the small sizes)."""

from dataclasses import asdict, dataclass, field, fields

PRESETS = {  # layers, hidden size; every head is 64 wide, every feed-forward layer four times the hidden size
    "tiny": (2, 128),
    "mini": (4, 256),
    "small": (4, 512),
    "medium": (8, 512),
    "base": (12, 768),
    "large": (24, 1024),
}


@dataclass
class BertConfig:
    """Names and defaults are those of `transformers.BertConfig`; the defaults are BERT-base, uncased.

    >>> BertConfig.preset("mini", vocab_size=8192).num_attention_heads
    4
    """

    vocab_size: int = 30522  # V: word pieces in the vocabulary
    hidden_size: int = 768  # D: width of every token's vector
    num_hidden_layers: int = 12  # encoder layers
    num_attention_heads: int = 12  # H: heads per layer, each D / H wide
    intermediate_size: int = 3072  # width inside the feed-forward block
    hidden_act: str = "gelu"  # exact GELU, x * Phi(x), not the tanh approximation
    hidden_dropout_prob: float = 0.1  # after the embeddings and each block's output projection
    attention_probs_dropout_prob: float = 0.1  # on the attention weights
    max_position_embeddings: int = 512  # longest sequence, [CLS] and [SEP] included
    type_vocab_size: int = 2  # segments A and B
    initializer_range: float = 0.02  # standard deviation of the initial weights
    layer_norm_eps: float = 1e-12
    pad_token_id: int = 0
    id2label: dict[int, str] = field(default_factory=lambda: {0: "LABEL_0", 1: "LABEL_1"})  # classes of a classification head
    classifier_dropout: float | None = None  # before a classification head; None: hidden_dropout_prob

    def __post_init__(self):
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.num_attention_heads}; "
                "every head needs the same width."
            )
        if self.hidden_act != "gelu":
            raise ValueError(f"hidden_act '{self.hidden_act}' is not supported; BERT uses 'gelu', the exact one.")

    @classmethod
    def preset(cls, name: str, **changes) -> "BertConfig":
        """One of the published sizes: tiny, mini, small, medium, base, large. `changes` override fields."""
        if name not in PRESETS:
            raise ValueError(f"no preset '{name}'; choose one of {', '.join(PRESETS)}.")
        layers, width = PRESETS[name]
        shape = dict(num_hidden_layers=layers, hidden_size=width, num_attention_heads=width // 64, intermediate_size=4 * width)
        return cls(**(shape | changes))

    @classmethod
    def from_dict(cls, values: dict) -> "BertConfig":
        """Read a Hugging Face config.json. Fields that do not change the network are passed over.

        Raises:
            ValueError: if the file describes a network that this BERT is not.
        """
        required = {
            "model_type": "bert",
            "position_embedding_type": "absolute",
            "is_decoder": False,
            "add_cross_attention": False,
            "tie_word_embeddings": True,
        }
        for key, expected in required.items():
            if values.get(key, expected) != expected:
                raise ValueError(f"config.json says {key} = {values[key]!r}; this BERT knows only {expected!r}.")
        known = {f.name: values[f.name] for f in fields(cls) if f.name in values}
        if "id2label" in known:
            known["id2label"] = {int(i): label for i, label in known["id2label"].items()}
        return cls(**known)

    @property
    def num_labels(self) -> int:
        return len(self.id2label)

    def to_dict(self) -> dict:
        """What goes into config.json, readable by `transformers.AutoConfig`."""
        return {"model_type": "bert", "label2id": {label: i for i, label in self.id2label.items()}} | asdict(self)
