"""Two sentences: read apart by the bi-encoder, looked across by attention, marked by segments, studied with resuming."""

import json

import numpy as np
import pytest
import torch

from bert_course import data_path, finetuning, studies
from bert_course.baselines.bi_encoder import BiEncoder
from bert_course.config import BertConfig
from bert_course.inputs import batch, encode
from bert_course.model import BertForSequenceClassification, BertModel
from bert_course.wordpiece import WordPieceTokenizer

PAIRS = [("the lamp is good", "the lamp is bad"), ("the tent", "the old tent is not good"), ("good", "bad lamp")]


@pytest.fixture
def tokenizer():
    return WordPieceTokenizer(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"the old lamp tent is not good bad".split()])


@pytest.fixture
def config(tokenizer):
    return BertConfig(vocab_size=tokenizer.vocab_size, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
                      intermediate_size=64, max_position_embeddings=24)


@pytest.fixture
def bi_encoder(config):
    torch.manual_seed(0)
    return BiEncoder(BertModel(config)).eval()


def rows(pairs=PAIRS):
    return [{"text": a, "text_pair": b, "label": i % 2, "kind": "hard"} for i, (a, b) in enumerate(pairs)]


@torch.no_grad()
def test_the_bi_encoder_reads_each_sentence_as_if_it_were_alone(bi_encoder, tokenizer):
    together = bi_encoder(**batch([encode(tokenizer, *pair) for pair in PAIRS])).logits
    for pair, logits in zip(PAIRS, together):
        u, v = (bi_encoder.bert(**batch([encode(tokenizer, text)])).last_hidden_state[0].mean(0) for text in pair)
        torch.testing.assert_close(bi_encoder.classifier(torch.cat([u, v, (u - v).abs()])), logits)


def test_the_bi_encoder_answers_for_pairs_of_equal_length_too(bi_encoder, tokenizer):
    row = {"text": PAIRS[0][0], "text_pair": PAIRS[0][1]}
    one, two = (finetuning.predict("paraphrase", bi_encoder, tokenizer, rows) for rows in ([row], [row, row]))
    assert one.shape == (1, 2) and (abs(two - one) < 1e-5).all()


def test_the_bi_encoder_is_fine_tuned_as_any_model(bi_encoder, tokenizer):
    before = bi_encoder.classifier.weight.clone()
    [epoch] = finetuning.fine_tune("paraphrase", bi_encoder, tokenizer, rows(), rows(), epochs=1, learning_rate=1e-2)
    assert np.isfinite(epoch["loss"]) and not torch.equal(bi_encoder.classifier.weight, before)


def test_across_is_the_share_of_others_when_all_tokens_are_listened_to_equally(config, tokenizer):
    bert = BertModel(config)
    for layer in bert.encoder.layer:
        torch.nn.init.zeros_(layer.attention.self.query.weight)
    [pair] = rows([("good lamp", "bad old tent")])  # [CLS] 2 [SEP] 3 [SEP]: two words see 3 of 8 tokens across, three see 2
    assert studies.across(bert, tokenizer, [pair]) == [pytest.approx((2 * 3 / 8 + 3 * 2 / 8) / 5, abs=1e-4)] * 2


def test_segments_are_changed_only_within(config, tokenizer):
    torch.manual_seed(0)
    model = BertForSequenceClassification(config)
    torch.nn.init.normal_(model.bert.embeddings.token_type_embeddings.weight)
    right = finetuning.predict("paraphrase", model, tokenizer, rows())
    with studies.segments(model, torch.zeros_like):
        zero = finetuning.predict("paraphrase", model, tokenizer, rows())
    assert not np.allclose(zero, right)
    with studies.segments(model, None):
        assert np.array_equal(finetuning.predict("paraphrase", model, tokenizer, rows()), right)
    assert np.array_equal(finetuning.predict("paraphrase", model, tokenizer, rows()), right)


def test_by_kind_counts_right_answers():
    pairs = [row | {"kind": kind} for row, kind in zip(rows(), ["hard", "close", "hard"])]
    assert studies.by_kind(pairs, np.array([0, 0, 1])) == {"all": 0.3333, "hard": 0.5, "close": 0.0}


def test_the_stored_study_has_three_seeds_of_every_kind():
    runs = json.loads((data_path("studies") / "paraphrases.json").read_text(encoding="utf-8"))["runs"]
    kinds = ["pretrained", "random", "no segments", "bi-encoder"]
    assert sorted((run["seed"], run["kind"]) for run in runs) == sorted((seed, kind) for seed in range(3) for kind in kinds)


def test_the_bi_encoder_reads_a_pair_that_fills_all_positions(config):
    model = BiEncoder(BertModel(config, add_pooling_layer=False))
    length = config.max_position_embeddings
    segments = (torch.arange(length)[None] >= length // 2).long()
    assert torch.isfinite(model(torch.ones(1, length, dtype=torch.long), torch.ones_like(segments), segments).logits).all()
