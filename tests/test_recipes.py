"""The study of recipes: a tiny model on a few documents."""

import json

import pytest

from bert_course import data_path
from bert_course.config import BertConfig
from bert_course.pretraining import Recipe
from bert_course.studies import recipes


def test_a_stopped_study_goes_on_and_the_best_recipe_comes_first(tmp_path, monkeypatch):
    config = BertConfig(vocab_size=8192, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)
    monkeypatch.setattr(recipes.BertConfig, "preset", lambda name, **changes: config)
    phases = ((1.0, 32, 0.15, 256),)
    monkeypatch.setattr(recipes, "RECIPES", {
        recipes.FIRST_RUN: {"phases": phases, "warm_start": False},
        "all zero": {"phases": phases, "warm_start": False, "learning_rate": 0.0},
    })
    corpus, output = tmp_path / "text.txt", tmp_path / "recipes.json"
    corpus.write_text("\n\n".join(f"The cat of house {n} sleeps.\nThe dog barks at the cat.\nNobody sleeps." for n in range(500)))
    trained = []
    pretrain = recipes.pretrain
    monkeypatch.setattr(recipes, "pretrain", lambda *args, **kwargs: trained.append(args[4].seed) or pretrain(*args, **kwargs))
    recipes.study_recipes(output, 1, corpus, tokens=4000)
    result = recipes.study_recipes(output, 2, corpus, tokens=4000)
    assert trained == [0, 0, 1] and [run["seed"] for run in result["runs"]] == trained
    first_run, zero = ([run["mlm_loss"] for run in result["runs"] if run["recipe"] == name] for name in recipes.RECIPES)
    assert max(first_run) < zero[0] - 0.1 and zero[0] > 8.9  # ln 8192 = 9.01: it has learned nothing
    first, second = recipes.table(result).splitlines()[2:]
    assert first.startswith(f"| {recipes.FIRST_RUN} | {sum(first_run) / 2:.2f} ({min(first_run):.2f}–{max(first_run):.2f}) |")
    assert second.startswith(f"| all zero | {zero[0]:.2f} |")
    with pytest.raises(ValueError, match="recipes.json was made with another checkpoint, data or settings"):
        recipes.study_recipes(output, 1, corpus, tokens=4001)


def test_each_recipe_differs_from_that_of_the_first_run():
    made = [Recipe(tokens=1, **changes) for changes in recipes.RECIPES.values()]
    assert all(made.count(recipe) == 1 for recipe in made) and made[0] == Recipe(tokens=1)


def test_the_card_shows_the_table_of_the_stored_runs():
    result = json.loads((data_path("studies") / "recipes.json").read_text(encoding="utf-8"))
    assert recipes.table(result) in (data_path("bert-course-mini") / "README.md").read_text(encoding="utf-8")
