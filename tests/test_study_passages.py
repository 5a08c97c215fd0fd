"""What the study of lesson 15 asks its models about."""

import pytest

from bert_course import data_path, studies, tasks


@pytest.fixture(scope="module")
def rows():
    return tasks.read("passages", data_path("passages") / "test.json")


def test_an_excerpt_keeps_every_answer_at_its_place(rows):
    for row in studies.excerpts(rows):
        for text, start in zip(row["answers"]["text"], row["answers"]["answer_start"], strict=True):
            assert row["context"][start:][: len(text)] == text


def test_an_excerpt_is_a_part_of_its_passage_and_shorter(rows):
    for row, part in zip(rows, studies.excerpts(rows), strict=True):
        assert part["context"] in row["context"] and len(part["context"]) < len(row["context"])


def test_another_question_comes_from_the_same_passage_and_changes_nothing_else(rows):
    for row, other in zip(rows, studies.other_questions(rows), strict=True):
        assert other["question"] != row["question"] and other | {"question": ""} == row | {"question": ""}
        assert other["question"] in {r["question"] for r in rows if r["context"] == row["context"]}


def test_another_question_is_asked_about_the_same_excerpt(rows):
    parts, others = studies.excerpts(rows), studies.excerpts(studies.other_questions(rows))
    assert [row["context"] for row in parts] == [row["context"] for row in others]


def test_a_span_below_the_threshold_is_not_given():
    row = {"context": "A vet lives here.", "question": "Who?", "answers": {"text": ["A vet"], "answer_start": [0]}}
    silent, said = (studies.answer_scores([row], [(0, 5, -1.0)], threshold) for threshold in (0.0, 1.0))
    assert (silent["f1"], said["f1"]) == (0, 1) and silent["pointing"] == said["pointing"] == 1
