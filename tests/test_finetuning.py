"""Fine-tuning learns, repeats itself exactly, keeps the order of rows, and refuses what it cannot learn from."""

import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from bert_course import data_path, finetuning, tasks
from bert_course.checkpoint import save_pretrained
from bert_course.config import BertConfig
from bert_course.finetuning import align, answer_f1, best_spans, evaluate, exact_match, fine_tune, predict, score, windows_of
from bert_course.model import BertForPreTraining, parameter_groups
from bert_course.studies import study_entities, study_reviews
from bert_course.studies.nsp import answer_pairs
from bert_course.wordpiece import WordPieceTokenizer

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
NOUNS = ["lamp", "kettle", "tent", "shoe", "chair", "radio"]
NAMES = ["ada", "bo", "rome", "oslo"]
REVIEWS = "sentiment"


def small_config(tokenizer, **changes):
    shape = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, max_position_embeddings=24)
    return BertConfig(vocab_size=tokenizer.vocab_size, **(shape | changes))


WORDS = [*SPECIAL, *NOUNS, "the", "is", "good", "bad", "not"]


@pytest.fixture
def tokenizer():
    return WordPieceTokenizer([*WORDS, *NAMES, "met", "in", "where", "who", "?", ".", "##s", "##ville", "new"])


def new_model(tokenizer, task=REVIEWS, seed=0, **changes):
    torch.manual_seed(seed)
    labels = {"id2label": dict(enumerate(tasks.LABELS[task]))} if task in tasks.LABELS else {}
    return finetuning.HEADS[task](small_config(tokenizer, **(labels | changes)))


@pytest.fixture
def model(tokenizer):
    return new_model(tokenizer)


def toy(count, seed):
    """Every word says nothing by itself: "good" is positive, "not good" negative, "bad" negative, "not bad" positive."""
    rng = random.Random(seed)
    rows = []
    for _ in range(count):
        good, negated = rng.random() < 0.5, rng.random() < 0.5
        text = " ".join(["the", rng.choice(NOUNS), "is", *["not"] * negated, "good" if good else "bad"])
        rows.append({"text": text, "label": int(good != negated)})
    return rows


def toy_pairs(count, seed):
    """The same with its words in two texts."""
    return [row | dict(zip(("text", "text_pair"), row["text"].split(" is "))) for row in toy(count, seed)]


def toy_names(count, seed):
    """Persons meet in places: Ada and Bo are persons, New Rome and New Oslo are places."""
    rng = random.Random(seed)
    rows = []
    for _ in range(count):
        tokens = [rng.choice(NAMES[:2]), "met", rng.choice(NAMES[:2]), "in", "new", rng.choice(NAMES[2:]), "."]
        rows.append({"tokens": tokens, "ner_tags": [1, 0, 1, 0, 5, 6, 0]})
    return rows


def toy_questions(count, seed):
    """Where? The place. Who? The person. "Not?" has no answer."""
    rng = random.Random(seed)
    rows = []
    for i in range(count):
        who, place = rng.choice(NAMES[:2]), rng.choice(NAMES[2:])
        word = rng.choice(["who", "where", "not"])
        context = f"the good {who} is in {place} ."
        answer = {"who": [who], "where": [place], "not": []}[word]
        answers = {"text": answer, "answer_start": [context.index(text) for text in answer]}
        rows.append({"id": str(i), "title": "", "context": context, "question": f"{word} ?", "answers": answers})
    return rows


TOYS = {"sentiment": toy, "paraphrase": toy_pairs, "entities": toy_names, "passages": toy_questions}


def weights(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def theirs_of(model):
    """The same network and weights in transformers."""
    copy = getattr(transformers, type(model).__name__)(transformers.BertConfig(**model.config.to_dict()))
    copy.load_state_dict(model.state_dict())
    return copy


def test_it_learns_what_a_bag_of_words_cannot():
    tokenizer = WordPieceTokenizer(WORDS)
    model = new_model(tokenizer)
    train, test = toy(400, 0), toy(100, 1)
    before = evaluate(REVIEWS, model, tokenizer, test)["accuracy"]
    history = fine_tune(REVIEWS, model, tokenizer, train, test, epochs=12, learning_rate=3e-3)
    assert before < 0.8
    assert history[-1]["accuracy"] == evaluate(REVIEWS, model, tokenizer, test)["accuracy"] > 0.95
    assert history[-1]["loss"] < 0.2 < history[0]["loss"]
    assert [epoch["epoch"] for epoch in history] == list(range(1, 13))
    words = finetuning.bag_of_words().fit([row["text"] for row in train], [row["label"] for row in train])
    assert words.score([row["text"] for row in test], [row["label"] for row in test]) < 0.8


@pytest.mark.parametrize("task", TOYS)
def test_every_task_is_learned_by_our_model_and_by_theirs_step_for_step(tokenizer, task):
    train, test = TOYS[task](240, 0), TOYS[task](60, 1)
    without = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    ours = new_model(tokenizer, task, num_hidden_layers=2, initializer_range=0.1, **without)
    theirs = theirs_of(ours)
    a, b = (fine_tune(task, model, tokenizer, train, test, epochs=8, learning_rate=3e-3) for model in (ours, theirs))
    assert [x["loss"] for x in a] == pytest.approx([x["loss"] for x in b], abs=1e-3)
    assert a[-1][finetuning.MAIN_METRIC[task]] > 0.95 and b[-1][finetuning.MAIN_METRIC[task]] > 0.95


@pytest.mark.parametrize("whose", ["ours", "theirs"])
def test_a_model_with_one_label_learns_a_number(tokenizer, whose):
    def rows(count, seed):  # as in STS-B: how alike are the two?
        return [row | {"label": 2.5 * row["label"] + 1} for row in toy_pairs(count, seed)]

    model = new_model(tokenizer, id2label={0: "likeness"}, num_hidden_layers=2, initializer_range=0.1)
    model = model if whose == "ours" else theirs_of(model)
    history = fine_tune("paraphrase", model, tokenizer, rows(240, 0), rows(60, 1), epochs=8, learning_rate=3e-3, patience=8)
    assert set(history[-1]) == {"epoch", "loss", "pearson", "spearman"}
    assert max(epoch["spearman"] for epoch in history) > 0.8
    assert predict("paraphrase", model, tokenizer, rows(3, 2)).shape == (3, 1)


def test_a_seed_repeats_itself_exactly_and_another_does_not(tokenizer):
    def run(seed):
        model = new_model(tokenizer, seed=5)
        history = fine_tune(REVIEWS, model, tokenizer, toy(60, 0), toy(20, 1), epochs=2, seed=seed)
        return history, predict(REVIEWS, model, tokenizer, [{"text": "the lamp is good"}])

    (first, a), (second, b), (other, c) = run(3), run(3), run(4)
    assert first == second and np.array_equal(a, b)
    assert first != other and not np.array_equal(a, c)


def test_the_rate_rises_to_its_peak_and_falls_to_zero(model, tokenizer, monkeypatch):
    rates = []
    step = torch.optim.AdamW.step

    def spy(self, *args, **kwargs):
        rates.append(self.param_groups[0]["lr"])
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", spy)
    fine_tune(REVIEWS, model, tokenizer, toy(80, 0), toy(4, 1), epochs=5, batch_size=4, learning_rate=1e-3, warmup=0.1)
    assert len(rates) == 100 and rates.index(max(rates)) in (9, 10)
    assert max(rates) == pytest.approx(1e-3) and rates[0] == pytest.approx(1e-4) and rates[-1] < 2e-5


def test_the_steps_are_those_of_a_plain_loop(tokenizer):
    model, plain = new_model(tokenizer), new_model(tokenizer)
    fine_tune(REVIEWS, model, tokenizer, toy(64, 0), toy(4, 1), epochs=1, learning_rate=1e-3, seed=7)

    data = finetuning.examples(REVIEWS, plain, tokenizer, toy(64, 0))
    optimizer = torch.optim.AdamW(parameter_groups(plain), lr=1e-3)
    torch.manual_seed(7)  # what dropout drops
    for rate, chosen in zip([1, 1, 2 / 3, 1 / 3], finetuning.similar_lengths(data, 16, random.Random(7)), strict=True):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * rate
        plain.train()(**finetuning.collate(chosen, tokenizer.pad_id)).loss.backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    torch.testing.assert_close(weights(model), weights(plain), atol=1e-6, rtol=0)


def test_weight_decay_is_for_matrices_only(model):
    decay, plain = parameter_groups(model)
    assert decay["weight_decay"] == 0.01 and plain["weight_decay"] == 0
    assert len(decay["params"]) + len(plain["params"]) == len(list(model.parameters()))
    assert all(parameter.dim() == 2 for parameter in decay["params"])
    assert all(parameter.dim() == 1 for parameter in plain["params"])


def test_predictions_come_in_the_order_of_the_texts(tokenizer):
    model = new_model(tokenizer, initializer_range=0.3)
    texts = [{"text": "the lamp is " + "not " * n + "good"} for n in (7, 0, 12, 3, 1, 9)]
    together = predict(REVIEWS, model, tokenizer, texts, batch_size=2)
    alone = np.concatenate([predict(REVIEWS, model, tokenizer, [text]) for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-6)
    assert len({round(p, 6) for p in together[:, 0].tolist()}) == len(texts)  # so that a wrong order would show
    np.testing.assert_allclose(together.sum(-1), 1, atol=1e-6)


def test_predicting_switches_dropout_off(model, tokenizer):
    model.train()
    first, second = (predict(REVIEWS, model, tokenizer, [{"text": "the lamp is bad"}]) for _ in range(2))
    assert np.array_equal(first, second)


def test_nothing_to_predict_is_nothing(model, tokenizer):
    assert predict(REVIEWS, model, tokenizer, []).shape == (0, 2)


def test_an_unknown_label_is_refused(model, tokenizer):
    with pytest.raises(ValueError, match=r"labels \[7\] are not among the model's \{0: 'negative', 1: 'positive'\}"):
        fine_tune(REVIEWS, model, tokenizer, [*toy(4, 0), {"text": "the lamp", "label": 7}], toy(4, 1))


def test_no_epochs_are_refused(model, tokenizer):
    with pytest.raises(ValueError, match="epochs is 0, but it takes at least 1"):
        fine_tune(REVIEWS, model, tokenizer, toy(2, 0), toy(2, 1), epochs=0)


@pytest.mark.parametrize("size", [0, -4])
def test_batches_of_nothing_are_refused(model, tokenizer, size):
    with pytest.raises(ValueError, match=f"batch_size is {size}, but it takes at least 1"):
        fine_tune(REVIEWS, model, tokenizer, toy(2, 0), toy(2, 1), batch_size=size)


@pytest.mark.parametrize("train, validation, complaint", [([], toy(2, 0), "to train on"), (toy(2, 0), [], "to validate with")])
def test_no_rows_are_refused(model, tokenizer, train, validation, complaint):
    with pytest.raises(ValueError, match=f"no rows {complaint}"):
        fine_tune(REVIEWS, model, tokenizer, train, validation)


def test_a_text_that_is_too_long_is_refused_before_training(model, tokenizer):
    before = [parameter.clone() for parameter in model.parameters()]
    too_long = {"text": "good " * 30, "label": 1}
    with pytest.raises(ValueError, match="32 tokens, but max_length is 24"):
        fine_tune(REVIEWS, model, tokenizer, [*toy(40, 0), too_long], toy(4, 1))
    with pytest.raises(ValueError, match="32 tokens, but max_length is 24"):
        fine_tune(REVIEWS, model, tokenizer, toy(40, 0), [too_long])
    with pytest.raises(ValueError) as error:
        predict(REVIEWS, model, tokenizer, [*toy(1, 0), too_long])
    assert str(error.value) == (
        "row 2: the input has 32 tokens, but max_length is 24. Shorten the text in that row, or split it."
    )
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
    read = tasks.read
    monkeypatch.setattr(tasks, "read", lambda task, path: finetuning.sample_pairs(read(task, path), 12, seed=0))
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
    train = finetuning.fine_tune

    def stopping(*args, seed, **kwargs):
        if len(trained) == 3:
            raise KeyboardInterrupt
        trained.append(seed)
        return train(*args, seed=seed, **kwargs)

    monkeypatch.setattr(finetuning, "fine_tune", stopping)
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


def test_the_stored_runs_of_entities_are_of_the_data_and_rates_of_today(tmp_path, monkeypatch):
    monkeypatch.setattr(finetuning, "fine_tune", None)  # nothing is left to train
    stored = tmp_path / "entities.json"
    stored.write_bytes((data_path("studies") / "entities.json").read_bytes())
    assert {run["seed"] for run in study_entities(stored, 3)["runs"]} == {0, 1, 2}
    monkeypatch.setitem(finetuning.LEARNING_RATES, "entities", {"pretrained": 1e-3, "random": 6e-4})
    with pytest.raises(ValueError, match="another checkpoint, data or settings"):
        study_entities(stored, 3)


def test_every_answer_stands_in_its_sentence_and_not_in_the_other():
    path = data_path("passages") / "test.json"
    passages = [p for entry in json.loads(path.read_text(encoding="utf-8"))["data"] for p in entry["paragraphs"]]
    answers = {qa["question"]: qa["answers"][0] for p in passages for qa in p["qas"] if qa["answers"]}
    rows = answer_pairs(path)
    assert [row["label"] for row in rows] == [1, 0] * len(answers)
    for yes, no in zip(rows[::2], rows[1::2], strict=True):
        question, sentence = yes["text"], yes["text_pair"]
        assert answers[question]["text"][:20] in sentence and no["text"] == question and no["text_pair"] != sentence


def test_a_pair_is_read_as_two_segments(model, tokenizer):
    row = {"text": "the lamp", "text_pair": "is bad", "label": 0}
    [(encoding, _)] = finetuning.examples("paraphrase", model, tokenizer, [row])
    assert encoding.token_type_ids == [0, 0, 0, 0, 1, 1, 1]


# Checkpoints


class Stop(Exception):
    """In the place of a killed process: all that a second run has is what is on the disk."""


def measured(monkeypatch, values):
    """Let the epochs have these accuracies; where a value is None the process dies before it is measured."""
    values = iter(values)

    def evaluate(*args):
        if (value := next(values)) is None:
            raise Stop
        return {"accuracy": value}

    monkeypatch.setattr(finetuning, "evaluate", evaluate)


def tuned(tokenizer, *args, epochs=4, **settings):
    model = new_model(tokenizer)
    history = fine_tune(REVIEWS, model, tokenizer, toy(48, 0), toy(8, 1), *args, epochs=epochs, **settings)
    return model, history


def test_without_output_nothing_is_left_on_the_disk_and_nothing_is_printed(tokenizer, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(finetuning.tempfile, "tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    tuned(tokenizer)
    fine_tune(REVIEWS, theirs_of(new_model(tokenizer)), tokenizer, toy(48, 0), toy(8, 1), epochs=2, patience=2)
    assert list(tmp_path.iterdir()) == [] and capfd.readouterr() == ("", "")


def test_patience_stops_and_returns_to_the_best_epoch(tokenizer, monkeypatch):
    measured(monkeypatch, [0.5, 0.7, 0.6, 0.7, 0.9])
    model, history = tuned(tokenizer, epochs=5, patience=2)
    assert [epoch["accuracy"] for epoch in history] == [0.5, 0.7, 0.6, 0.7]  # an equal score is not a better one
    states = []
    monkeypatch.setattr(finetuning, "evaluate", lambda task, model, *rest: states.append(weights(model)) or {"accuracy": 0.0})
    tuned(tokenizer, epochs=5)
    assert torch.equal(weights(model), states[1])


@pytest.mark.parametrize("patience", [None, 3])
def test_a_run_that_was_killed_goes_on_to_the_same_weights(tokenizer, tmp_path, monkeypatch, patience):
    scores = [0.6, 0.5, 0.55, 0.58, 0.9]
    measured(monkeypatch, scores)
    whole, expected = tuned(tokenizer, tmp_path / "whole", epochs=5, patience=patience)
    measured(monkeypatch, [*scores[:2], None])
    with pytest.raises(Stop):
        tuned(tokenizer, tmp_path / "killed", epochs=5, patience=patience)
    half = tmp_path / "killed" / "checkpoint-99"  # the process died while it wrote this one
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"...")
    measured(monkeypatch, scores[2:])
    again, history = tuned(tokenizer, tmp_path / "killed", epochs=5, patience=patience, resume=True)
    assert history == expected and len(history) == (5 if patience is None else 4)
    assert torch.equal(weights(again), weights(whole))
    saved = finetuning.start_from(REVIEWS, tmp_path / "killed")
    assert torch.equal(weights(saved), weights(whole))


def test_what_is_in_the_folder_is_neither_overwritten_nor_trained_twice(tokenizer, tmp_path):
    with pytest.raises(ValueError, match="holds no checkpoint to resume"):
        tuned(tokenizer, tmp_path, resume=True)
    tuned(tokenizer, tmp_path, epochs=1)
    assert {path.name for path in tmp_path.iterdir()} == {
        "config.json", "model.safetensors", "tokenizer_config.json", "vocab.txt"
    }  # no checkpoints any more
    with pytest.raises(FileExistsError, match="already holds a run or a model; resume it, or choose another folder"):
        tuned(tokenizer, tmp_path)
    with pytest.raises(ValueError, match="training is done: there is nothing to resume"):
        tuned(tokenizer, tmp_path, resume=True)


FULL_DISK = """
import os, resource, sys
sys.path.insert(0, sys.argv[2])
import test_finetuning as tests
from pathlib import Path
from bert_course import finetuning
output = Path(sys.argv[1])
tokenizer = tests.WordPieceTokenizer(tests.WORDS)
evaluate, calls = finetuning.evaluate, []
def filling(*args):  # the disk is full when the second epoch ends: enough for the weights, not for the optimizer
    calls.append(1)
    if len(calls) == 2:
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, resource.RLIM_INFINITY))
    return evaluate(*args)
finetuning.evaluate = filling
try:
    tests.tuned(tokenizer, output, epochs=3)
except OSError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
finetuning.evaluate = evaluate
model, history = tests.tuned(tokenizer, output, epochs=3, resume=True)
whole, expected = tests.tuned(tokenizer, epochs=3)
print(history == expected and tests.torch.equal(tests.weights(model), tests.weights(whole)))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX resource limits")
def test_a_full_disk_is_said_and_the_run_goes_on_from_the_checkpoint_before(tmp_path):
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path / "run"), str(Path(__file__).parent)]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    message, resumed = run.stdout.splitlines()
    assert str(tmp_path / "run") in message and "not saved (" in message and "Is the disk full?" in message
    assert resumed == "True"


def test_a_saved_classifier_opens_in_a_pipeline(tokenizer, tmp_path):
    model, _ = tuned(tokenizer, tmp_path, epochs=1)
    [said] = transformers.pipeline("text-classification", str(tmp_path), device="cpu")("the lamp is not good")
    [ours] = predict(REVIEWS, model, tokenizer, [{"text": "the lamp is not good"}])
    assert said["label"] == tasks.LABELS[REVIEWS][ours.argmax()] and said["score"] == pytest.approx(ours.max(), abs=1e-5)
    assert finetuning.task_of(tmp_path) == "sentiment"


def test_a_saved_tagger_opens_in_a_pipeline(tokenizer, tmp_path):
    model = new_model(tokenizer, "entities")
    fine_tune("entities", model, tokenizer, toy_names(200, 0), toy_names(20, 1), tmp_path, epochs=3, learning_rate=1e-2)
    pipe = transformers.pipeline("token-classification", str(tmp_path), aggregation_strategy="simple", device="cpu")
    text = "ada met bo in new oslo ."
    [tags] = predict("entities", model, tokenizer, [{"tokens": text.split()}])
    ours = [(name["type"], name["start"], name["end"]) for name in finetuning.names_in(text, text.split(), tags)]
    assert ours == [("PER", 0, 3), ("PER", 8, 10), ("LOC", 14, 22)]
    assert [(found["entity_group"], found["start"], found["end"]) for found in pipe(text)] == ours
    assert finetuning.task_of(tmp_path) == "entities"


def test_a_saved_reader_opens_in_transformers(tokenizer, tmp_path):  # which dropped its pipeline for answers in version 5
    model = new_model(tokenizer, "passages")
    fine_tune("passages", model, tokenizer, toy_questions(48, 0), toy_questions(8, 1), tmp_path, epochs=1)
    theirs = transformers.AutoModelForQuestionAnswering.from_pretrained(tmp_path).eval()
    rows = toy_questions(5, 2)
    ours, same = (predict("passages", reader, tokenizer, rows) for reader in (model, theirs))
    assert [[span["text"] for span in found] for found in ours] == [[span["text"] for span in found] for found in same]
    assert finetuning.task_of(tmp_path) == "passages"


def test_a_new_head_for_sentiment_brings_a_new_pooler_and_a_trained_one_is_kept(tokenizer, tmp_path):
    pretrained = BertForPreTraining(small_config(tokenizer))
    save_pretrained(pretrained, tmp_path / "pretrained")
    heads = {task: finetuning.start_from(task, tmp_path / "pretrained") for task in ("sentiment", "paraphrase")}
    kept = {task: torch.equal(head.bert.pooler.dense.weight, pretrained.bert.pooler.dense.weight) for task, head in heads.items()}
    assert kept == {"sentiment": False, "paraphrase": True}
    assert all(torch.equal(head.bert.encoder.layer[0].output.dense.weight, pretrained.bert.encoder.layer[0].output.dense.weight)
               for head in heads.values())
    save_pretrained(heads["sentiment"], tmp_path / "tuned")
    assert torch.equal(weights(finetuning.start_from("sentiment", tmp_path / "tuned")), weights(heads["sentiment"]))


def test_a_model_of_another_kind_has_no_task(tokenizer, tmp_path):
    save_pretrained(BertForPreTraining(small_config(tokenizer)), tmp_path)
    with pytest.raises(ValueError, match=r"holds a BertForPreTraining\. Fine-tune it first: bert-course finetune"):
        finetuning.task_of(tmp_path)


def test_a_wide_model_gets_a_rate_of_the_paper(tokenizer, monkeypatch):
    rates = []
    optimizer = torch.optim.AdamW
    monkeypatch.setattr(torch.optim, "AdamW", lambda *args, lr, **kw: rates.append(lr) or optimizer(*args, lr=lr, **kw))
    for width in (32, 768):
        model = new_model(tokenizer, hidden_size=width)
        fine_tune(REVIEWS, model, tokenizer, toy(4, 0), toy(2, 1), epochs=1)
    assert rates == [finetuning.LEARNING_RATES[REVIEWS]["pretrained"], 3e-5]


# Words and their pieces


def pieces(tokenizer, encoding):
    return [tokenizer.tokens[i] for i in encoding.input_ids]


def test_the_first_piece_of_a_word_carries_its_label(tokenizer):
    encoding, labels, first = align(tokenizer, ["the", "lamps", "in", "oslo"], [0, 7, 0, 5])
    assert pieces(tokenizer, encoding) == ["[CLS]", "the", "lamp", "##s", "in", "oslo", "[SEP]"]
    assert labels == [-100, 0, 7, -100, 0, 5, -100]
    assert first == [1, 2, 4, 5]
    assert encoding.offsets == [(0, 0), (0, 3), (4, 8), (8, 9), (10, 12), (13, 17), (0, 0)]  # in "the lamps in oslo"


def test_a_word_of_punctuation_and_letters_is_one_word(tokenizer):
    encoding, labels, first = align(tokenizer, ["oslo?", "is"], [5, 0])
    assert pieces(tokenizer, encoding)[1:-1] == ["oslo", "?", "is"] and labels == [-100, 5, -100, 0, -100] and first == [1, 3]


def test_a_word_without_a_piece_keeps_its_place(tokenizer):
    encoding, labels, first = align(tokenizer, ["the", "\u200d", "lamp"], [0, 3, 4])
    assert pieces(tokenizer, encoding) == ["[CLS]", "the", "[UNK]", "lamp", "[SEP]"] and labels == [-100, 0, 3, 4, -100]
    assert first == [1, 2, 3]


def test_tags_and_words_must_be_as_many(tokenizer):
    with pytest.raises(ValueError):
        align(tokenizer, ["the", "lamp"], [0])


def test_a_sentence_that_is_too_long_is_refused_with_its_length(tokenizer):
    with pytest.raises(ValueError, match="7 words are 9 tokens, but max_length is 8"):
        align(tokenizer, ["the"] * 7, max_length=8)
    assert len(align(tokenizer, ["the"] * 6, max_length=8)[0]) == 8


def test_predicted_tags_are_one_a_word_and_words_cut_in_pieces_count_once(tokenizer):
    model = new_model(tokenizer, "entities")
    rows = [{"tokens": ["the", "lamps", "is", "newville"]}, {"tokens": ["bo"]}, {"tokens": []}]
    assert list(map(len, predict("entities", model, tokenizer, rows))) == [4, 1, 0]


def test_entities_count_only_whole_and_of_the_right_type():
    truth = [["B-PER", "I-PER", "O", "B-LOC"], ["O", "B-ORG", "O", "O"]]
    guess = [["B-PER", "O", "O", "B-LOC"], ["O", "B-LOC", "O", "I-PER"]]  # cut short; right; wrong type; not IOB2
    scores = finetuning.score_entities(truth, guess)
    assert scores == pytest.approx({"precision": 1 / 3, "recall": 1 / 3, "f1": 1 / 3, "token_accuracy": 5 / 8})


def test_the_names_in_a_text_are_those_that_are_scored():
    rng, names = random.Random(0), tasks.LABELS["entities"]
    for _ in range(50):
        words = [str(i) for i in range(100, 112)]
        tags = rng.choices(names, k=len(words))
        text, strict = " ".join(words), ["O"] * len(words)
        for name in finetuning.names_in(text, words, tags):
            first, *rest = (words.index(word) for word in name["text"].split())
            strict[first] = f"B-{name['type']}"
            for i in rest:
                strict[i] = f"I-{name['type']}"
        scores = finetuning.score_entities([strict], [tags])
        assert scores["precision"] == scores["recall"] == float(strict != ["O"] * len(words))


def test_an_inside_without_its_beginning_is_no_name():
    assert finetuning.names_in("a b c d", list("abcd"), ["I-LOC", "B-PER", "I-LOC", "I-PER"]) == [
        {"type": "PER", "text": "b", "start": 2, "end": 3}
    ]


def test_no_entity_found_is_no_warning_and_zero(recwarn):
    scores = finetuning.score_entities([["B-PER"]], [["O"]])
    assert scores == {"precision": 0, "recall": 0, "f1": 0, "token_accuracy": 0} and not recwarn.list


# Passages and answers


def test_a_window_has_the_offsets_of_the_passage_only(tokenizer):
    [window] = windows_of(tokenizer, "who ?", "the  lamp is", max_length=24)
    assert pieces(tokenizer, window) == ["[CLS]", "who", "?", "[SEP]", "the", "lamp", "is", "[SEP]"]
    assert window.offsets == [(0, 0)] * 4 + [(0, 3), (5, 9), (10, 12), (0, 0)]


def test_an_answer_is_a_target_only_in_windows_that_hold_it_whole(tokenizer):
    context = "the lamp is good the kettle is bad"
    found = windows_of(tokenizer, "who", context, max_length=8, stride=2)  # windows of 4 tokens
    assert [window.offsets[3][0] for window in found] == [0, 9, 17]
    answers = {"text": ["good the kettle"], "answer_start": [12]}
    assert [finetuning.place_of(answers, window) for window in found] == [
        {"start_positions": 0, "end_positions": 0},  # it is cut at the right edge
        {"start_positions": 4, "end_positions": 6},
        {"start_positions": 0, "end_positions": 0},  # and here at the left edge
    ]
    assert finetuning.place_of({"text": [], "answer_start": []}, found[0]) == {"start_positions": 0, "end_positions": 0}


OFFSETS = [(0, 0), (0, 0), (0, 0), (0, 3), (4, 8), (9, 11), (0, 0)]  # [CLS] who [SEP] the lamp is [SEP]


def test_the_best_span_maximises_start_plus_end():
    found = best_spans([[1, 9, 0, 2.5, 5, 0, 9]], [[1, 9, 9, 0, 1, 4, 9]], [OFFSETS], n_best=3)
    assert found == [
        {"start": 4, "end": 11, "score": 9},
        {"start": 0, "end": 11, "score": 6.5},
        {"start": 4, "end": 8, "score": 6},
        {"start": 0, "end": 0, "score": 2},  # [CLS] with itself; the question and [SEP] are never answers
    ]


def test_an_answer_never_ends_before_it_starts():
    found = best_spans([[0, 0, 0, 0, 0, 9, 0]], [[0, 0, 0, 9, 0, 0, 0]], [OFFSETS], n_best=99)
    assert len(found) == 1 + 6 and all(span["start"] < span["end"] for span in found if span["end"])
    assert max(span["score"] for span in found) == 9


def test_an_answer_has_at_most_so_many_tokens():
    start, end = [[0, 0, 0, 9, 0, 0, 0]], [[0, 0, 0, 0, 0, 9, 0]]
    assert best_spans(start, end, [OFFSETS], n_best=1)[0] == {"start": 0, "end": 11, "score": 18}
    shorter = best_spans(start, end, [OFFSETS], n_best=9, max_answer_tokens=2)
    assert {"start": 0, "end": 11} not in [{"start": span["start"], "end": span["end"]} for span in shorter]


def test_no_answer_is_first_where_cls_scores_higher_than_every_span():
    assert best_spans([[5, 0, 0, 1, 1, 1, 0]], [[5, 0, 0, 1, 1, 1, 0]], [OFFSETS])[0] == {"start": 0, "end": 0, "score": 10}


def test_of_several_windows_the_best_span_wins_and_the_lowest_no_answer_counts():
    second = [(0, 0), (0, 0), (0, 0), (9, 11), (12, 16), (0, 0)]
    starts = [[8, 0, 0, 0, 0, 1, 0], [1, 0, 0, 1, 4, 0, 99]]  # 99 is padding of the shorter window
    ends = [[8, 0, 0, 0, 0, 1, 0], [2, 0, 0, 1, 4, 0, 99]]
    found = best_spans(starts, ends, [OFFSETS, second], n_best=50)
    assert found[0] == {"start": 12, "end": 16, "score": 8}
    assert {"start": 0, "end": 0, "score": 3} in found
    assert [span["score"] for span in found if span["start"] == 9 and span["end"] == 11] == [2]  # in both windows, listed once


def test_an_answer_found_is_the_text_of_the_context(tokenizer):
    model = new_model(tokenizer, "passages", max_position_embeddings=12)
    context = "The  Lamp is in Oslo. " * 6
    [candidates] = predict("passages", model, tokenizer, [{"question": "where?", "context": context}])
    assert len(candidates) == 6 and sum(span["text"] == "" for span in candidates) == 1
    assert all(span["text"] == context[span["start"] : span["end"]] for span in candidates)


@pytest.mark.parametrize("prediction, golds, exact, f1", [
    ("The Eiffel Tower!", ["eiffel tower"], 1, 1),  # case, articles and punctuation do not count
    ("a the an", ["."], 1, 1),  # nothing is left of either: both are "no answer"
    ("", [], 1, 1),
    ("no", [], 0, 0),
    ("", ["no"], 0, 0),
    ("state-of-the-art", ["state of the art"], 0, 0),  # a hyphen disappears: one word, stateoftheart
    ("in 1921 in May", ["in 1921"], 0, 2 * 0.5 * 1 / 1.5),  # "in" counts once
    ("two fields", ["sold two fields", "fields"], 0, 0.8),  # the best of the answers
    ("the the cat", ["cat"], 1, 1),
    ("cat\u00a0 sat", ["cat sat"], 1, 1),
    ("Theatre", ["atre"], 0, 0),  # "the" is an article only as a word
    ("5,000", ["5000"], 1, 1),
])
def test_answers_are_compared_as_the_official_script_does(prediction, golds, exact, f1):
    assert exact_match(prediction, golds) == exact and answer_f1(prediction, golds) == pytest.approx(f1)


def test_scores_of_questions_with_and_without_an_answer_are_told_apart():
    rows = [{"answers": {"text": text}} for text in (["red"], ["dark red"], [], [], [])]
    scores = finetuning.score_answers(rows, ["red", "red", "", "red", ""])
    assert scores == pytest.approx({
        "exact_match": 3 / 5, "f1": (1 + 2 / 3 + 2) / 5, "has_answer_f1": (1 + 2 / 3) / 2, "no_answer_accuracy": 2 / 3,
    })
    assert "no_answer_accuracy" not in finetuning.score_answers(rows[:2], ["", ""])


def test_bootstrap_brackets_the_mean_and_narrows_with_more_values():
    rng = np.random.default_rng(0)
    few, many = rng.random(50) < 0.7, rng.random(5000) < 0.7
    (a, b), (c, d) = finetuning.bootstrap(few), finetuning.bootstrap(many)
    assert a < few.mean() < b and c < many.mean() < d and d - c < (b - a) / 5
    assert d - c == pytest.approx(2 * 1.96 * many.std() / 5000**0.5, rel=0.1)  # as the normal distribution has it
    assert finetuning.bootstrap(few) == (a, b) and finetuning.bootstrap([1, 1, 1]) == (1, 1)
