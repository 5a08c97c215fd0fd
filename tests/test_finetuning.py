"""Fine-tuning learns, repeats itself exactly, keeps the order of texts, and refuses what it cannot learn from."""

import json
import random

import pytest
import torch

from bert_course import data_path, finetuning, tasks
from bert_course.checkpoint import save_pretrained
from bert_course.config import BertConfig
from bert_course.finetuning import accuracy, predict, score, train_classifier
from bert_course.model import BertForPreTraining, BertForSequenceClassification, parameter_groups
from bert_course.studies import answer_pairs, study_reviews
from bert_course.wordpiece import WordPieceTokenizer

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
NOUNS = ["lamp", "kettle", "tent", "shoe", "chair", "radio"]


def small_config(tokenizer, **changes):
    shape = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, max_position_embeddings=24)
    return BertConfig(vocab_size=tokenizer.vocab_size, **(shape | changes))


@pytest.fixture
def tokenizer():
    return WordPieceTokenizer([*SPECIAL, *NOUNS, "the", "is", "good", "bad", "not"])


@pytest.fixture
def model(tokenizer):
    torch.manual_seed(0)
    return BertForSequenceClassification(small_config(tokenizer))


def toy(count, seed):
    """Every word says nothing by itself: "good" is positive, "not good" negative, "bad" negative, "not bad" positive."""
    rng = random.Random(seed)
    rows = []
    for _ in range(count):
        good, negated = rng.random() < 0.5, rng.random() < 0.5
        text = " ".join(["the", rng.choice(NOUNS), "is", *["not"] * negated, "good" if good else "bad"])
        rows.append({"text": text, "label": int(good != negated)})
    return rows


def test_it_learns_what_a_bag_of_words_cannot(model, tokenizer):
    train, test = toy(400, 0), toy(100, 1)
    before = accuracy(model, tokenizer, test)
    history = train_classifier(model, tokenizer, train, test, epochs=12, learning_rate=3e-3)
    assert before < 0.8
    assert history[-1]["accuracy"] == accuracy(model, tokenizer, test) > 0.95
    assert history[-1]["loss"] < 0.2 < history[0]["loss"]
    words = finetuning.bag_of_words().fit([row["text"] for row in train], [row["label"] for row in train])
    assert words.score([row["text"] for row in test], [row["label"] for row in test]) < 0.8


def test_a_seed_repeats_itself_exactly_and_another_does_not(tokenizer):
    def run(seed):
        torch.manual_seed(5)
        model = BertForSequenceClassification(small_config(tokenizer))
        history = train_classifier(model, tokenizer, toy(60, 0), toy(20, 1), epochs=2, seed=seed)
        return history, predict(model, tokenizer, ["the lamp is good"])

    (first, a), (second, b), (other, c) = run(3), run(3), run(4)
    assert first == second and torch.equal(a, b)
    assert first != other and not torch.equal(a, c)


def test_the_rate_rises_to_its_peak_and_falls_to_zero(model, tokenizer, monkeypatch):
    rates = []
    step = torch.optim.AdamW.step

    def spy(self, *args, **kwargs):
        rates.append(self.param_groups[0]["lr"])
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", spy)
    train_classifier(model, tokenizer, toy(80, 0), toy(4, 1), epochs=5, batch_size=4, learning_rate=1e-3, warmup=0.1)
    assert len(rates) == 100 and rates.index(max(rates)) in (9, 10)
    assert max(rates) == pytest.approx(1e-3) and rates[0] == pytest.approx(1e-4) and rates[-1] < 2e-5


def test_weight_decay_is_for_matrices_only(model):
    decay, plain = parameter_groups(model)
    assert decay["weight_decay"] == 0.01 and plain["weight_decay"] == 0
    assert len(decay["params"]) + len(plain["params"]) == len(list(model.parameters()))
    assert all(parameter.dim() == 2 for parameter in decay["params"])
    assert all(parameter.dim() == 1 for parameter in plain["params"])


def test_predictions_come_in_the_order_of_the_texts(model, tokenizer):
    texts = [("the lamp is " + "not " * n + "good").strip() for n in (7, 0, 12, 3, 1, 9)]
    together = predict(model, tokenizer, texts, batch_size=2)
    alone = torch.cat([predict(model, tokenizer, [text]) for text in texts])
    torch.testing.assert_close(together, alone)
    assert len({round(p, 6) for p in together[:, 0].tolist()}) == len(texts)  # so that a wrong order would show
    torch.testing.assert_close(together.sum(-1), torch.ones(len(texts)))


def test_predicting_switches_dropout_off(model, tokenizer):
    model.train()
    assert torch.equal(predict(model, tokenizer, ["the lamp is bad"]), predict(model, tokenizer, ["the lamp is bad"]))


def test_nothing_to_predict_is_nothing(model, tokenizer):
    assert predict(model, tokenizer, []).shape == (0, 2)


def test_an_unknown_label_is_refused(model, tokenizer):
    with pytest.raises(ValueError, match=r"labels \[7\] are not among the model's \{0: 'LABEL_0', 1: 'LABEL_1'\}"):
        train_classifier(model, tokenizer, [*toy(4, 0), {"text": "the lamp", "label": 7}], toy(4, 1))


@pytest.mark.parametrize("train, validation, complaint", [([], toy(2, 0), "to train on"), (toy(2, 0), [], "to validate with")])
def test_no_rows_are_refused(model, tokenizer, train, validation, complaint):
    with pytest.raises(ValueError, match=f"no rows {complaint}"):
        train_classifier(model, tokenizer, train, validation)


def test_a_text_that_is_too_long_is_refused_before_training(model, tokenizer):
    before = [parameter.clone() for parameter in model.parameters()]
    too_long = {"text": "good " * 30, "label": 1}
    with pytest.raises(ValueError, match="32 tokens, but max_length is 24"):
        train_classifier(model, tokenizer, [*toy(40, 0), too_long], toy(4, 1))
    with pytest.raises(ValueError, match="32 tokens, but max_length is 24"):
        train_classifier(model, tokenizer, toy(40, 0), [too_long])
    with pytest.raises(ValueError, match="32 tokens, but max_length is 24"):
        predict(model, tokenizer, [too_long["text"]])
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters()))


def test_scores_are_counted_by_case_domain_and_pair():
    def row(label, case, domain, pair):
        return {"label": label, "case": case, "domain": domain, "pair": pair}

    rows = [row(label, *twin) for twin in (("plain", "audio", "1"), ("mixed", "books", "2")) for label in (1, 0)]
    scores = {"all": 0.75, "plain": 1.0, "in domain": 1.0, "mixed": 0.5, "shifted": 0.5}
    assert score(rows, [1, 0, 1, 1]) == scores | {"both twins": 0.0}  # plain reviews have no twins
    assert "both twins" not in score(rows[:2], [1, 0])


def test_pairs_with_both_twins_right_are_counted():
    rows = [{"label": label, "case": case, "domain": "audio", "pair": case} for case in tasks.TWINS for label in (1, 0)]
    assert score(rows, [1, 0, 1, 1, 0, 1])["both twins"] == pytest.approx(1 / 3)


def test_a_sample_has_whole_pairs():
    rows = [{"pair": str(i // 2), "label": i % 2} for i in range(40)]
    sample = finetuning.sample_pairs(rows, 12, seed=0)
    assert len(sample) == 12 and sum(row["label"] for row in sample) == 6
    assert sample != finetuning.sample_pairs(rows, 12, seed=1)


@pytest.fixture
def study(tmp_path, monkeypatch):
    """The study in small: 12 reviews of each split, a tiny checkpoint."""
    read = tasks.read_reviews
    monkeypatch.setattr(tasks, "read_reviews", lambda path: finetuning.sample_pairs(read(path), 12, seed=0))
    texts = {letter for letter in "abcdefghijklmnopqrstuvwxyz'.,:;!?-0123456789"}
    tokenizer = WordPieceTokenizer([*SPECIAL, *sorted(texts), *sorted("##" + letter for letter in texts)])
    tokenizer.save_pretrained(tmp_path / "tiny")
    save_pretrained(BertForPreTraining(small_config(tokenizer, max_position_embeddings=512)), tmp_path / "tiny")
    return lambda seeds, epochs=None: study_reviews(tmp_path / "s.json", seeds, tmp_path / "tiny", epochs or {4: 1, 12: 1})


def test_the_study_writes_what_the_lesson_plots(study, tmp_path):
    result = study(1)
    assert result == json.loads((tmp_path / "s.json").read_text())
    assert {(run["size"], run["kind"]) for run in result["runs"]} == {
        (size, kind) for size in (4, 12) for kind in ("pretrained", "random", "bag of words", "bag of 1-2 words")
    }
    assert all({"all", "in domain", "both twins", "challenge"} <= set(run["scores"]) for run in result["runs"])
    bags = [run["scores"] for run in result["runs"] if "bag" in run["kind"]]
    assert any(scores["challenge"] != scores["all"] for scores in bags)  # two splits, not one twice
    assert all(len(run["history"]) == 1 for run in result["runs"] if run["kind"] in ("pretrained", "random"))
    assert {"date", "hardware", "torch"} <= set(result)


def test_a_stopped_study_goes_on_where_it_stopped(study, monkeypatch):
    whole = study(1)
    trained = []
    train = finetuning.train_classifier

    def stopping(*args, seed, **kwargs):
        if len(trained) == 3:
            raise KeyboardInterrupt
        trained.append(seed)
        return train(*args, seed=seed, **kwargs)

    monkeypatch.setattr(finetuning, "train_classifier", stopping)
    with pytest.raises(KeyboardInterrupt):
        study(2)
    trained.append("again")
    result = study(2)
    assert trained == [1, 1, 1, "again", 1]  # nothing of seed 0, and nothing twice
    assert result["runs"][: len(whole["runs"])] == whole["runs"]
    assert len(result["runs"]) == 2 * len(whole["runs"])


def test_a_study_of_something_else_is_not_mixed_in(study, tmp_path):
    study(1)
    with pytest.raises(ValueError, match="another checkpoint, data or settings"):
        study(1, {4: 2})
    (tmp_path / "s.json").write_text('{"runs": [')
    with pytest.raises(ValueError, match="s.json is not JSON"):
        study(1)


def test_every_answer_stands_in_its_sentence_and_not_in_the_other():
    path = data_path("passages") / "test.json"
    passages = [p for entry in json.loads(path.read_text(encoding="utf-8"))["data"] for p in entry["paragraphs"]]
    answers = {qa["question"]: qa["answers"][0] for p in passages for qa in p["qas"] if qa["answers"]}
    rows = answer_pairs(path)
    assert [row["label"] for row in rows] == [1, 0] * len(answers)
    for yes, no in zip(rows[::2], rows[1::2], strict=True):
        question, sentence = yes["text"]
        assert answers[question]["text"][:20] in sentence and no["text"][0] == question and no["text"][1] != sentence


def test_a_pair_is_read_as_two_segments(model, tokenizer):
    one, two = finetuning.encode_all(model, tokenizer, ["the lamp is bad", ("the lamp", "is bad")])
    assert sum(one.token_type_ids) == 0 and two.token_type_ids == [0, 0, 0, 0, 1, 1, 1]
    rows = [{"text": ("the lamp", "is bad"), "label": 0}, {"text": "the lamp", "label": 1}]
    train_classifier(model, tokenizer, rows, rows, epochs=1)
    assert predict(model, tokenizer, [("the lamp", "is bad"), "the lamp"]).shape == (2, 2)
