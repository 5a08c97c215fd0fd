"""data/passages keeps what its card promises."""

import json
import re
from collections import Counter

import pytest

from bert_course import data_path

SPLITS = ("train", "validation", "test")
SHARED = 0.25  # of the words of a question, at most this share is in the sentence of its answer, on average
NEAR_DUPLICATE = 0.3  # share of common words of two passages


def read(split):
    """The SQuAD file of a split, flat: [(title, context, questions), ...]."""
    data = json.loads((data_path("passages") / f"{split}.json").read_text(encoding="utf-8"))["data"]
    return [(a["title"], p["context"], p["qas"]) for a in data for p in a["paragraphs"]]


def words(text):
    return frozenset(re.findall(r"\w+", text.lower()))


def sentences(text):
    return re.split(r"(?<=[.!?])\s+(?=[A-Z0-9\"])", text)


def sentence_of(context, start):
    """The sentence in which the character `start` lies."""
    end = 0
    for sentence in sentences(context):
        end = context.index(sentence, end) + len(sentence)
        if start < end:
            return sentence
    raise ValueError(f"{start} lies behind the end of the text")


@pytest.fixture(scope="module")
def splits():
    return {split: read(split) for split in SPLITS}


@pytest.fixture(scope="module")
def passages(splits):
    return [passage for split in SPLITS for passage in splits[split]]


@pytest.fixture(scope="module")
def questions(passages):
    """[(context, question), ...]"""
    return [(context, question) for _, context, questions in passages for question in questions]


def test_offsets_point_at_the_answers(questions):
    for context, question in questions:
        assert question["is_impossible"] == (question["answers"] == []), question["id"]
        for answer in question["answers"]:
            start, text = answer["answer_start"], answer["text"]
            assert context[start : start + len(text)] == text != "", question["id"]


def test_answers_are_whole_words_and_short(questions):
    for context, question in questions:
        for answer in question["answers"]:
            start, end = answer["answer_start"], answer["answer_start"] + len(answer["text"])
            assert not re.match(r"\w\w", context[max(start - 1, 0) : start + 1]), question["id"]
            assert not re.match(r"\w\w", context[end - 1 : end + 1]), question["id"]
            assert len(answer["text"].split()) <= 8, question["id"]
            assert answer["text"].lower() not in question["question"].lower(), question["id"]


def test_ids_questions_and_passages_are_unique(passages, questions):
    for values in (
        [question["id"] for _, question in questions],
        [question["question"].lower() for _, question in questions],
        [context for _, context, _ in passages],
        [title for title, _, _ in passages],
    ):
        assert [value for value, count in Counter(values).items() if count > 1] == []
    assert all(question["question"].endswith("?") for _, question in questions)


def test_there_are_enough_passages_and_questions(passages, questions):
    assert len(passages) >= 120
    assert len(questions) >= 600


def test_passages_have_80_to_250_words_and_five_or_more_questions(passages):
    assert [title for title, context, _ in passages if not 80 <= len(context.split()) <= 250] == []
    assert [title for title, _, questions in passages if len(questions) < 5] == []


@pytest.mark.parametrize("split", SPLITS)
def test_about_one_question_in_five_has_no_answer(splits, split):
    impossible = [question["is_impossible"] for _, _, questions in splits[split] for question in questions]
    assert 0.15 <= sum(impossible) / len(impossible) <= 0.25


@pytest.mark.parametrize("one, other", [("train", "validation"), ("train", "test"), ("validation", "test")])
def test_no_passage_is_nearly_one_of_another_split(splits, one, other):
    others = [(title, words(context)) for title, context, _ in splits[other]]
    near = [
        (title, there)
        for title, context, _ in splits[one]
        for there, theirs in others
        if len(words(context) & theirs) >= NEAR_DUPLICATE * len(words(context) | theirs)
    ]
    assert near == []


@pytest.mark.parametrize("split", SPLITS)
def test_questions_are_worded_differently_from_the_text(splits, split):
    shares = []
    for _, context, questions in splits[split]:
        for question in questions:
            asked = words(question["question"])
            for answer in question["answers"][:1]:
                shares.append(len(asked & words(sentence_of(context, answer["answer_start"]))) / len(asked))
    assert sum(shares) / len(shares) < SHARED


@pytest.mark.parametrize("split", ["validation", "test"])
def test_many_answers_have_a_second_wording(splits, split):
    answers = [question["answers"] for _, _, questions in splits[split] for question in questions if question["answers"]]
    assert sum(len(texts) > 1 for texts in answers) > 0.4 * len(answers)


def test_the_counts_are_those_of_the_card(splits, passages):
    card = (data_path("passages") / "README.md").read_text(encoding="utf-8")
    table = {
        cells[0]: [int(cell.replace(",", "")) for cell in cells[1:]]
        for cells in ([cell.strip() for cell in line.strip("|").split("|")] for line in card.splitlines())
        if cells[0] in {*SPLITS, "all"}
    }
    counted = {}
    for split, rows in {**splits, "all": passages}.items():
        questions = [question for _, _, questions in rows for question in questions]
        counted[split] = [
            len(rows),
            sum(len(context.split()) for _, context, _ in rows),
            len(questions),
            sum(question["is_impossible"] for question in questions),
            sum(len(question["answers"]) > 1 for question in questions),
        ]
    assert table == counted
