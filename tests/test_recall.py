"""The recall task of lesson 01 asks what it says, and its contenders are of equal size."""

import pytest
import torch

from bert_course import recall, studies


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("notes", [1, 2])
def test_the_label_is_the_value_that_follows_the_key_that_is_asked(notes):
    ids, labels = recall.batch(distance=5, notes=notes, size=50, generator=seeded())
    for row, label in zip(ids.tolist(), labels.tolist()):
        assert row.count(row[-1]) == 2  # in the note and in the question
        assert row[row.index(row[-1]) + 1] - recall.VALUES.start == label


def test_the_notes_are_equally_far_from_both_ends():
    ids, _ = recall.batch(distance=5, notes=2, size=50, generator=seeded())
    noise = (ids >= recall.NOISE.start) & (ids < recall.NOISE.stop)
    assert noise[:, 1:6].all() and noise[:, -6:-1].all() and noise.sum(1).eq(10).all()


def test_the_contenders_are_of_equal_size_and_the_encoder_is_the_smallest():
    sizes = {name: sum(p.numel() for p in recall.contender(name, 68).parameters()) for name in recall.CONTENDERS}
    assert min(sizes, key=sizes.get) == "encoder" and max(sizes.values()) < 1.2 * sizes["encoder"]


def test_patience_keeps_a_cell_for_up_to_the_length_of_the_text():
    lstm = recall.contender("LSTM, patient", 100).lstm
    units = lstm.hidden_size
    keeps = 1 / (1 - (lstm.bias_ih_l0 + lstm.bias_hh_l0)[units : 2 * units].sigmoid())  # steps, if only the bias speaks
    assert 2 <= keeps.min() and 50 < keeps.max() <= 100


@pytest.mark.parametrize("name", recall.CONTENDERS)
def test_influence_is_the_change_of_the_answer_with_an_embedding(name):
    torch.manual_seed(0)
    model = recall.contender(name, 12).double()
    ids, labels = recall.batch(4, 1, 1, seeded())
    embeddings = model.get_submodule("bert.embeddings" if name == "encoder" else "embeddings")

    def answer(change):
        hook = embeddings.register_forward_hook(lambda module, inputs, output: output + change)
        with torch.no_grad():
            logit = model(ids).logits[0, labels[0]]
        hook.remove()
        return logit

    direction = torch.zeros(1, 12, 32, dtype=torch.double)
    slopes = []
    for unit in range(32):
        direction.zero_()[0, 7, unit] = 1e-6
        slopes.append((answer(direction) - answer(-direction)) / 2e-6)
    found = recall.influence_on_answer(model, ids, labels)[7]
    torch.testing.assert_close(found, torch.stack(slopes).norm(), rtol=1e-4, atol=1e-9)


def test_influence_runs_without_cudnn_which_cannot_go_back_through_an_lstm_in_eval_mode():
    model, seen = recall.contender("LSTM", 12).eval(), []
    model.lstm.register_forward_hook(lambda *args: seen.append(torch.backends.cudnn.enabled))
    recall.influence_on_answer(model, *recall.batch(4, 1, 1, seeded()))
    assert seen == [False] and torch.backends.cudnn.enabled


def test_training_is_repeatable():
    first, second = (recall.train("LSTM", 2, 1, 1e-2, steps=5, seed=1).model.state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_study_goes_on_where_it_stopped(tmp_path, monkeypatch):
    asked = []

    def train(*settings):
        asked.append(settings)
        return recall.Trained(torch.nn.Linear(1, 1), accuracy=1.0 if settings[3] == 3e-3 else 0.5, steps=50, seconds=0.1)

    monkeypatch.setattr(recall, "train", train)
    result = studies.study_recall(tmp_path / "recall.json", seeds=1, distances=(4,))
    assert len(result["runs"]) == len(asked) == 2 * len(recall.CONTENDERS) * (len(recall.RATES) + 1)
    assert {run["rate"] for run in result["runs"] if run["seed"] == 0} == {3e-3}
    assert len(studies.study_recall(tmp_path / "recall.json", seeds=2, distances=(4,))["runs"]) == len(asked)
    assert len(asked) == 2 * len(recall.CONTENDERS) * (len(recall.RATES) + 2)
