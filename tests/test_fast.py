"""The fast path against `model.py`."""

import random

import pytest
import torch
import torch.nn.functional as F
from test_model import random_batch, random_config
from torch.testing import assert_close

from bert_course.fast import attention, classification_logits, pretraining_logits
from bert_course.model import BertForPreTraining, BertForSequenceClassification
from bert_course.objectives import pretraining_losses


def logits_and_gradients(model, batch, fast: bool):
    """Scores where something is predicted, NSP scores, the sum of both losses, and the gradient of each parameter."""
    model.zero_grad()
    predicted = batch["labels"] != -100
    if fast:
        mlm, nsp = pretraining_logits(model, batch["input_ids"], batch["attention_mask"], batch["token_type_ids"], predicted)
        loss = F.cross_entropy(mlm, batch["labels"][predicted]) + F.cross_entropy(nsp, batch["next_sentence_label"])
    else:
        output = model(**batch)
        mlm, nsp, loss = output.prediction_logits[predicted], output.seq_relationship_logits, output.loss
    loss.backward()
    return [mlm, nsp, loss, *(parameter.grad.clone() for parameter in model.parameters())]


@pytest.mark.parametrize("seed", range(20))
def test_equals_the_reference(seed):
    """One to four layers, padding on either side or none, predictions at [CLS], at padding, in some rows not at all."""
    torch.manual_seed(seed)
    rng = random.Random(seed)
    config = random_config(rng)
    model = BertForPreTraining(config).double()
    batch = random_batch(config, "BertForPreTraining", rng)
    if seed % 2:
        batch["labels"][1:, :2] = -100
    assert_close(logits_and_gradients(model, batch, True), logits_and_gradients(model, batch, False), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("seed", range(10))
def test_a_classifier_says_the_same(seed):
    torch.manual_seed(seed)
    rng = random.Random(seed)
    config = random_config(rng)
    model = BertForSequenceClassification(config).double().eval()
    batch = random_batch(config, "BertForSequenceClassification", rng)
    given = [batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")]
    assert_close(classification_logits(model, *given), model(*given).logits, rtol=1e-10, atol=1e-10)
    with pytest.raises(ValueError, match="outside the model's vocabulary"):
        classification_logits(model, torch.tensor([[config.vocab_size]]), None, None)


def test_drops_what_the_reference_drops(monkeypatch):
    """With a dropout that scales instead of drawing at random."""
    monkeypatch.setattr(F, "dropout", lambda x, p=0.5, training=True, inplace=False: x * (1 - p) ** 0.5 if training else x)
    torch.manual_seed(0)
    rng = random.Random(0)
    config = random_config(rng, num_hidden_layers=3, hidden_dropout_prob=0.3, attention_probs_dropout_prob=0.6)
    model, batch = BertForPreTraining(config).double().train(), random_batch(config, "BertForPreTraining", rng)
    monkeypatch.setattr(F, "scaled_dot_product_attention", scaling_attention)
    found = logits_and_gradients(model, batch, True)
    assert_close(found, logits_and_gradients(model, batch, False), rtol=1e-10, atol=1e-10)
    without = logits_and_gradients(model.eval(), batch, True)
    assert_close(without, logits_and_gradients(model, batch, False), rtol=1e-10, atol=1e-10)
    assert abs(found[2] - without[2]) > 1e-4


def scaling_attention(q, k, v, attn_mask, dropout_p):
    scores = q @ k.transpose(2, 3) / q.shape[-1] ** 0.5
    return F.dropout((scores if attn_mask is None else scores + attn_mask).softmax(-1), dropout_p) @ v


def test_fused_attention_of_the_listening_tokens_is_the_explicit_one():
    """The branch that a GPU takes."""
    torch.manual_seed(0)
    block = BertForPreTraining(random_config(random.Random(0))).double().bert.encoder.layer[0].attention.self
    heard = torch.randn(3, 9, block.query.in_features, dtype=torch.double, requires_grad=True)
    hidden_by = torch.zeros(3, 1, 1, 9, dtype=torch.double)
    hidden_by[1:, ..., 6:] = torch.finfo(torch.double).min
    for mask in (None, hidden_by):
        results = [attention(block, heard[:, :4], heard, mask, explicit) for explicit in (True, False)]
        gradients = [torch.autograd.grad(result.square().sum(), heard)[0] for result in results]
        assert_close(results[1], results[0], rtol=1e-10, atol=1e-10)
        assert_close(gradients[1], gradients[0], rtol=1e-10, atol=1e-10)


def test_the_objective_takes_the_fast_path_in_bfloat16_too():
    """Losses and gradients near those of float32, and accuracies that count."""
    torch.manual_seed(0)
    rng = random.Random(1)
    config = random_config(rng, num_hidden_layers=2, hidden_size=32, num_attention_heads=2)
    model, batch = BertForPreTraining(config), random_batch(config, "BertForPreTraining", rng)
    exact = logits_and_gradients(model, batch, False)
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        mlm, nsp, mlm_right, nsp_right = pretraining_losses(model, batch)
    (mlm + nsp).backward()
    assert mlm.dtype == nsp.dtype == torch.float32
    assert abs(mlm + nsp - exact[2]) < 0.05
    assert_close([p.grad for p in model.parameters()], exact[3:], rtol=0.1, atol=0.02)
    targets = batch["labels"][batch["labels"] != -100]
    assert mlm_right == pytest.approx((exact[0].argmax(-1) == targets).float().mean().item(), abs=1.5 / len(targets))
    assert nsp_right == pytest.approx((exact[1].argmax(-1) == batch["next_sentence_label"]).float().mean().item(), abs=0.21)
