"""The studies of recipes: a tiny model on a few documents."""

import json
import random
from types import SimpleNamespace

import pytest
import torch

from bert_course import corpora, data_path, pretraining
from bert_course.config import BertConfig
from bert_course.pretraining import Recipe
from bert_course.studies import plateau, recipes
from bert_course.wordpiece import train_wordpiece


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


def test_the_study_of_lesson_11_sets_the_exam_of_the_lesson(tmp_path):
    lines = [f"The cat of house {n} sleeps, and the dog barks at {n} cats." for n in range(90)]
    file = tmp_path / "held out.txt"
    file.write_text("\n\n".join("\n".join(lines[i : i + 3]) for i in range(0, 90, 3)))
    tokenizer = train_wordpiece(lines, 300)
    cells = json.loads(next(data_path().parent.glob("notebooks/11_*.ipynb")).read_text(encoding="utf-8"))["cells"]
    lesson = {"random": random, "torch": torch, "pretraining": pretraining, "tokenizer": tokenizer, "files": {"held out": file}}
    code = next(code for code in ("".join(cell["source"]) for cell in cells) if "def exam(" in code)
    exec(code.split("sheets = exam()")[0], lesson)
    for length in plateau.LENGTHS:
        batches, sheets = plateau.exam(file, tokenizer, length), lesson["exam"](length)
        assert len(batches) == len(sheets) > 0
        for batch, sheet in zip(batches, sheets):
            assert all(torch.equal(value, sheet[name]) for name, value in batch.items())


def test_the_study_of_lesson_11_differs_from_its_recipe_in_one_choice_each():
    made = [Recipe(steps=1, **plateau.LESSON | changes) for changes in plateau.CHANGES.values()]
    assert all(made.count(recipe) == 1 for recipe in made)
    assert made[0] == Recipe(steps=1, phases=((1.0, 32, 0.3, 2048),), learning_rate=3e-3, warmup=0.05)


def test_the_study_of_lesson_11_trains_on_other_documents_than_it_examines(tmp_path, monkeypatch):
    documents = [[f"The cat of house {n} sleeps.", "The dog barks at the cat.", "Nobody sleeps."] for n in range(300)]
    monkeypatch.setattr(plateau, "corpora", SimpleNamespace(documents=lambda name: documents, write=corpora.write))
    phases = ((1.0, 32, 0.15, 256),)
    monkeypatch.setattr(plateau, "CHANGES", {name: {"phases": phases, "warm_start": False, "learning_rate": rate}
                                             for name, rate in (("as in the lesson", 3e-3), ("all zero", 0.0))})
    read = {"pretrain": set(), "exam": set()}

    def noting(name, function):
        def noted(file, *args, **kwargs):
            read[name].update(line for line in file.read_text().splitlines() if "house" in line)
            return function(file, *args, **kwargs)

        monkeypatch.setattr(plateau, name, noted)

    noting("pretrain", plateau.pretrain)
    noting("exam", plateau.exam)
    output = tmp_path / "plateau.json"
    plateau.study_plateau(output, 1, steps=40)
    result = plateau.study_plateau(output, 2, steps=40)
    assert not read["pretrain"] & read["exam"] and len(read["pretrain"] | read["exam"]) == len(documents)
    assert [(run["change"], run["seed"]) for run in result["runs"]] == [(c, s) for s in range(2) for c in plateau.CHANGES]
    for learned, zero in zip(result["runs"][::2], result["runs"][1::2]):
        for length in ("32", "64"):
            assert learned[length][0] < zero[length][0] - 0.1
    with pytest.raises(ValueError, match="plateau.json was made with another checkpoint, data or settings"):
        plateau.study_plateau(output, 1, steps=41)
    documents.append(["One more."])
    with pytest.raises(ValueError, match="plateau.json was made with another checkpoint, data or settings"):
        plateau.study_plateau(output, 1, steps=40)
