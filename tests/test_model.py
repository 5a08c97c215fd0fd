"""The BERT of the course against `transformers`, number for number, on random configurations."""

import random
from dataclasses import replace

import pytest
import torch
import transformers
from torch.testing import assert_close

from bert_course import model as ours
from bert_course.config import BertConfig
from bert_course.pretraining import pretraining_losses

HEADS = [
    "BertModel",
    "BertForPreTraining",
    "BertForMaskedLM",
    "BertForSequenceClassification",
    "BertForTokenClassification",
    "BertForQuestionAnswering",
]
CONFIGURATIONS = 60


@pytest.fixture(autouse=True)
def one_thread():
    """Tensors this small are slower on several."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def random_config(rng: random.Random, **changes) -> BertConfig:
    heads = rng.randint(1, 4)
    labels = rng.randint(1, 5)
    return BertConfig(**{
        "vocab_size": rng.randint(30, 200),
        "hidden_size": heads * rng.choice([4, 8, 16]),
        "num_hidden_layers": rng.randint(1, 4),
        "num_attention_heads": heads,
        "intermediate_size": rng.randint(8, 96),
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "max_position_embeddings": rng.randint(16, 40),
        "type_vocab_size": rng.randint(2, 3),
        "initializer_range": rng.choice([0.02, 0.2]),
        "layer_norm_eps": rng.choice([1e-12, 1e-5]),
        "id2label": {i: f"LABEL_{i}" for i in range(labels)},
    } | changes)


def random_batch(config: BertConfig, head: str, rng: random.Random) -> dict:
    rows, length = rng.randint(1, 5), rng.randint(2, 16)
    real = [length] + [rng.randint(1, length) for _ in range(rows - 1)]
    mask = torch.tensor([[int(s < n) for s in range(length)] for n in real])
    if rng.random() < 0.3:
        mask = mask.flip(1)  # padding on the left
    batch = {
        "input_ids": torch.randint(config.vocab_size, (rows, length)),
        "attention_mask": None if rng.random() < 0.2 else mask,
        "token_type_ids": None if rng.random() < 0.2 else torch.randint(config.type_vocab_size, (rows, length)),
    }

    def token_labels(classes):
        labels = torch.randint(classes, (rows, length)).masked_fill(torch.rand(rows, length) < 0.5, -100)
        labels[0, 0] = 0
        return labels

    if head in ("BertForPreTraining", "BertForMaskedLM"):
        batch["labels"] = token_labels(config.vocab_size)
    if head == "BertForPreTraining":
        batch["next_sentence_label"] = torch.randint(2, (rows,))
    if head == "BertForTokenClassification":
        batch["labels"] = token_labels(config.num_labels)
    if head == "BertForSequenceClassification":
        batch["labels"] = torch.rand(rows) if config.num_labels == 1 else torch.randint(config.num_labels, (rows,))
    if head == "BertForQuestionAnswering":
        batch["start_positions"], batch["end_positions"] = torch.randint(length + 2, (2, rows))
        batch["start_positions"][0] = batch["end_positions"][0] = 0
    return batch


def pair_of_models(head: str, config: BertConfig, dtype: torch.dtype):
    """The course's model and the one of `transformers`, with the same weights."""
    mine = getattr(ours, head)(config).to(dtype).eval()
    settings = transformers.BertConfig(**config.to_dict(), attn_implementation="eager")
    theirs = getattr(transformers, head)(settings).to(dtype).eval()
    theirs.load_state_dict(mine.state_dict(), strict=True)
    return mine, theirs


def differences(mine, theirs, batch: dict, with_attentions: bool):
    """(what, our tensor, theirs) for every output and for the gradient of every parameter."""
    if mine.config.num_labels == 1 and batch.get("labels") is not None and batch["labels"].is_floating_point():
        batch["labels"] = batch["labels"].to(next(mine.parameters()).dtype)
    a = mine(**batch, output_hidden_states=True, output_attentions=with_attentions)
    b = theirs(**batch, output_hidden_states=True, output_attentions=True)
    for name, value in a.items():
        if isinstance(value, tuple):
            assert len(value) == len(b[name])
            yield from ((f"{name} {i}", x, y) for i, (x, y) in enumerate(zip(value, b[name])))
        else:
            yield name, value, b[name]
    for output in (a, b):
        loss = output["loss"] if "loss" in output else output["last_hidden_state"].pow(2).mean() + output["pooler_output"].sum()
        loss.backward()
    grads = dict(theirs.named_parameters())
    for name, parameter in mine.named_parameters():
        if parameter.grad is None or grads[name].grad is None:
            assert parameter.grad is None and grads[name].grad is None, name
        else:
            yield f"gradient of {name}", parameter.grad, grads[name].grad


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-10), (torch.float32, 1e-5)], ids=["float64", "float32"])
def test_equals_transformers(dtype, tolerance, capsys, record_property):
    """Every hidden state, attention map, logit, loss and gradient, relative to the largest value of its tensor.

    In float32 a gradient counts relative to the largest gradient of its model: the small ones are sums of terms that
    cancel, and there the float64 run is the judge.
    """
    worst, where, compared = 0.0, "", 0
    for number in range(CONFIGURATIONS):
        rng = random.Random(number)
        torch.manual_seed(number)
        config = random_config(rng)
        for head in HEADS:
            if head == "BertForQuestionAnswering":  # there, num_labels of `transformers` is the width of the answer head: 2
                config = replace(config, id2label={0: "start", 1: "end"})
            mine, theirs = pair_of_models(head, config, dtype)
            batch = random_batch(config, head, rng)
            rows = list(differences(mine, theirs, batch, with_attentions=bool(number % 2)))
            steepest = max(b.abs().max().item() for name, _, b in rows if name.startswith("gradient"))
            for name, a, b in rows:
                assert a.shape == b.shape and a.dtype == b.dtype, name
                scale = b.abs().max().item()
                if name.startswith("gradient") and (dtype == torch.float32 or scale < 1e-9 * steepest):
                    scale = steepest  # the key bias has no gradient in theory, only rounding
                difference = (a - b).abs().max().item() / (scale or 1.0)
                compared += 1
                if difference > worst:
                    worst, where = difference, f"{head}, {name}, configuration {number}"
    record_property("worst", worst)
    with capsys.disabled():
        print(f"\n{dtype}: {compared} tensors compared, worst relative difference {worst:.1e} ({where})")
    assert compared > 50 * CONFIGURATIONS
    assert worst < tolerance, where


def tanh_gelu(model, monkeypatch):
    gelu = ours.F.gelu
    monkeypatch.setattr(ours.F, "gelu", lambda x: gelu(x, approximate="tanh"))


def pre_norm(model, monkeypatch):
    monkeypatch.setattr(ours.ResidualNorm, "forward", lambda self, inner, residual: residual + self.LayerNorm(self.dense(inner)))


def forgotten_mask(model, monkeypatch):
    encode = model.bert.encoder.forward
    monkeypatch.setattr(model.bert.encoder, "forward", lambda hidden, mask, need_weights: encode(hidden, None, need_weights))


@pytest.mark.parametrize("fault", [None, tanh_gelu, pre_norm, forgotten_mask])
def test_parity_sees_a_fault(fault, monkeypatch):
    """The comparison above is not blind."""
    torch.manual_seed(0)
    rng = random.Random(0)
    config = random_config(rng, initializer_range=0.2, num_hidden_layers=2)
    batch = random_batch(config, "BertForMaskedLM", rng)
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    batch["attention_mask"][:, -1] = 0
    mine, theirs = pair_of_models("BertForMaskedLM", config, torch.float64)
    if fault:
        fault(mine, monkeypatch)
    worst = max((a - b).abs().max().item() for _, a, b in differences(mine, theirs, batch, False))
    assert worst > 1e-6 if fault else worst < 1e-10


@pytest.mark.parametrize("head", HEADS)
def test_dropout_is_on_in_training(head):
    torch.manual_seed(0)
    config = random_config(random.Random(1), hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5)
    model = getattr(ours, head)(config).train()
    ids = torch.randint(config.vocab_size, (2, 8))

    def first(output):
        return next(iter(output.values()))

    assert not torch.equal(first(model(ids)), first(model(ids)))
    model.eval()
    assert torch.equal(first(model(ids)), first(model(ids)))


def test_attention_dropout_alone_is_on_in_training():
    torch.manual_seed(0)
    config = random_config(random.Random(1), hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.5)
    model = ours.BertModel(config).train()
    ids = torch.randint(config.vocab_size, (2, 8))
    for explicit in (True, False):
        a, b = (model(ids, output_attentions=explicit).last_hidden_state for _ in range(2))
        assert not torch.equal(a, b)


def test_padding_never_changes_a_real_token():
    torch.manual_seed(0)
    model = ours.BertModel(random_config(random.Random(2), max_position_embeddings=32)).double().eval()
    ids = torch.randint(model.config.vocab_size, (1, 16))
    mask = torch.tensor([[1] * 7 + [0] * 9])
    assert_close(model(ids, mask).last_hidden_state[:, :7], model(ids[:, :7]).last_hidden_state)


def test_a_mask_of_who_listens_to_whom_equals_transformers():
    """(B, S, S), any pattern in which everyone may listen to someone; with and without attention weights, gradients too."""
    torch.manual_seed(0)
    config = random_config(random.Random(6), initializer_range=0.2, num_hidden_layers=3)
    mine, theirs = pair_of_models("BertModel", config, torch.float64)
    ids = torch.randint(config.vocab_size, (4, 9))
    allowed = (torch.rand(4, 9, 9) < 0.4) | torch.eye(9, dtype=torch.bool)
    additive = (~allowed[:, None]).double() * torch.finfo(torch.float64).min  # theirs takes such a mask as (B, 1, S, S)
    expected = theirs(ids, attention_mask=additive).last_hidden_state
    for explicit in (True, False):
        assert_close(mine(ids, allowed.long(), output_attentions=explicit).last_hidden_state, expected)
    attentions = mine(ids, allowed.long(), output_attentions=True).attentions
    assert all((weights[~allowed[:, None].expand_as(weights)] == 0).all() for weights in attentions)
    expected.square().mean().backward()
    mine(ids, allowed.long()).last_hidden_state.square().mean().backward()
    other = dict(theirs.named_parameters())
    for name, parameter in mine.named_parameters():
        if parameter.grad is not None:
            assert_close(parameter.grad, other[name].grad)


def test_equal_rows_of_a_mask_are_a_mask_of_tokens():
    model = ours.BertModel(random_config(random.Random(7))).double().eval()
    ids, real = torch.randint(model.config.vocab_size, (2, 6)), torch.tensor([[1] * 6, [1] * 4 + [0] * 2])
    rows = real[:, None, :].expand(-1, 6, -1)
    assert torch.equal(model(ids, rows).last_hidden_state, model(ids, real).last_hidden_state)


def test_scores_only_where_something_is_predicted_give_the_same_losses():
    torch.manual_seed(0)
    rng = random.Random(3)
    config = random_config(rng)
    model = ours.BertForPreTraining(config).double().eval()
    batch = random_batch(config, "BertForPreTraining", rng)
    mlm, nsp, *_ = pretraining_losses(model, batch)
    assert_close(mlm + nsp, model(**batch).loss, check_dtype=False, atol=1e-6, rtol=1e-6)


def test_initial_weights_follow_the_paper():
    torch.manual_seed(0)
    config = BertConfig.preset("mini", vocab_size=1000, initializer_range=0.05)
    for name, parameter in ours.BertForSequenceClassification(config).named_parameters():
        if "LayerNorm.weight" in name:
            assert (parameter == 1).all()
        elif name.endswith("bias"):
            assert (parameter == 0).all()
        else:
            assert parameter.abs().max() <= 0.1 and abs(parameter.mean()) < 0.01, name
            if parameter.numel() > 1000:
                assert parameter.std().item() == pytest.approx(0.05 * 0.88, rel=0.05), name  # cut at two deviations


def test_weight_decay_spares_biases_and_layer_norms():
    model = ours.BertForPreTraining(BertConfig.preset("tiny", vocab_size=100))
    decay, plain = ours.parameter_groups(model, 0.01)
    names = {id(p): n for n, p in model.named_parameters()}
    assert (decay["weight_decay"], plain["weight_decay"]) == (0.01, 0.0)
    assert all(names[id(p)].endswith("weight") and "LayerNorm" not in names[id(p)] for p in decay["params"])
    assert all(names[id(p)].endswith("bias") or "LayerNorm" in names[id(p)] for p in plain["params"])
    assert len(decay["params"]) + len(plain["params"]) == len(names)
    assert [names[id(p)] for p in decay["params"]] == [n for n in names.values() if "bias" not in n and "LayerNorm" not in n]


def test_the_output_layer_is_the_embedding_table():
    model = ours.BertForMaskedLM(BertConfig.preset("tiny", vocab_size=100))
    assert model.cls.predictions.decoder.weight is model.bert.embeddings.word_embeddings.weight


@pytest.mark.parametrize(
    "preset, millions", [("tiny", 4.4), ("mini", 11.2), ("small", 28.8), ("medium", 41.4), ("base", 109.5), ("large", 335.1)]
)
def test_presets_have_the_published_sizes(preset, millions):
    """Millions of parameters of the encoder with pooler (google-research/bert README; Turc et al. 2019, table 1)."""
    with torch.device("meta"):
        model = ours.BertModel(BertConfig.preset(preset))
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.06)


def test_too_long_and_unknown_ids_are_refused():
    model = ours.BertModel(random_config(random.Random(4), max_position_embeddings=16, vocab_size=50))
    with pytest.raises(ValueError, match="17 tokens, but this model has positions for 16"):
        model(torch.ones(1, 17, dtype=torch.long))
    with pytest.raises(ValueError, match="token id 50 is outside the model's vocabulary of 50"):
        model(torch.tensor([[1, 50]]))
    with pytest.raises(ValueError, match="token id -100 is outside"):
        model(torch.tensor([[1, -100]]))


def test_output_says_what_it_holds():
    model = ours.BertModel(random_config(random.Random(5)))
    with pytest.raises(AttributeError, match="no 'logits' in this output; it has last_hidden_state, pooler_output"):
        _ = model(torch.ones(1, 4, dtype=torch.long)).logits


def test_config_refuses_what_is_not_bert():
    with pytest.raises(ValueError, match="hidden_size 10 is not a multiple of num_attention_heads 3"):
        BertConfig(hidden_size=10, num_attention_heads=3)
    with pytest.raises(ValueError, match="model_type = 'roberta'"):
        BertConfig.from_dict({"model_type": "roberta"})
    with pytest.raises(ValueError, match="no preset 'huge'"):
        BertConfig.preset("huge")
