"""data/cloze keeps what its card promises."""

import csv
import re
from collections import Counter, defaultdict

import pytest

from bert_course import data_path
from bert_course.wordpiece import WordPieceTokenizer

COLUMNS = ["text", "word", "other", "start", "side", "distance", "pair"]
SIDES = {"left": 80, "right": 80, "both": 60}  # at least so many pairs
DISTANCES = (range(2), range(2, 5), range(5, 20))


@pytest.fixture(scope="module")
def rows():
    with open(data_path("cloze") / "test.csv", encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        assert reader.fieldnames == COLUMNS
        return [row | {name: int(row[name]) for name in ("start", "distance", "pair")} for row in reader]


@pytest.fixture(scope="module")
def twins(rows):
    """[(row, row), ...]"""
    pairs = defaultdict(list)
    for row in rows:
        pairs[row["pair"]].append(row)
    return [tuple(pair) for pair in pairs.values()]


def sides(row):
    """The text on the left and on the right of the word."""
    return row["text"][: row["start"]], row["text"][row["start"] + len(row["word"]) :]


def until_they_differ(one, other):
    """How many words at the beginning of both lists are the same; None if the lists are."""
    if one == other:
        return None
    same = 0
    while one[same : same + 1] == other[same : same + 1]:
        same += 1
    return same


def distances(one, other):
    """From the word to the nearest one in which the twins differ, on the left and on the right."""
    (one_left, one_right), (other_left, other_right) = sides(one), sides(other)
    return (
        until_they_differ(one_left.split(" ")[-2::-1], other_left.split(" ")[-2::-1]),
        until_they_differ(one_right.split(" ")[1:], other_right.split(" ")[1:]),
    )


def test_twins_stand_below_each_other_and_swap_their_candidates(rows, twins):
    assert [row["pair"] for row in rows] == [number for number in range(1, len(twins) + 1) for _ in range(2)]
    for one, other in twins:
        assert (one["word"], one["other"]) == (other["other"], other["word"]), one["text"]
        assert one["word"] != one["other"], one["text"]
        assert (one["side"], one["distance"]) == (other["side"], other["distance"]), one["text"]


def test_there_are_enough_pairs_of_every_side(twins):
    counts = Counter(one["side"] for one, _ in twins)
    assert counts.keys() == SIDES.keys()
    assert {side: count for side, count in counts.items() if count < SIDES[side]} == {}


def test_the_word_stands_at_its_place(rows):
    for row in rows:
        left, right = sides(row)
        assert row["text"] == left + row["word"] + right, row["text"]
        assert re.fullmatch("[a-z]+", row["word"]) and left.endswith(" ") and re.match(r"\W", right), row["text"]


def test_the_side_that_does_not_decide_is_the_same(twins):
    for one, other in twins:
        (one_left, one_right), (other_left, other_right) = sides(one), sides(other)
        if one["side"] == "left":
            assert one_right == other_right and one_left != other_left, one["text"]
        elif one["side"] == "right":
            assert one_left == other_left and one_right != other_right, one["text"]
        else:
            assert (one_left, one_right) != (other_left, other_right), one["text"]


def test_the_distances_are_right(twins):
    for one, other in twins:
        assert one["distance"] == min(d for d in distances(one, other) if d is not None), one["text"]


@pytest.mark.parametrize("side", ["left", "right"])
def test_each_range_of_distances_has_about_a_third(twins, side):
    found = [one["distance"] for one, _ in twins if one["side"] == side]
    for some in DISTANCES:
        assert 0.3 <= sum(distance in some for distance in found) / len(found) <= 0.37, some


def test_both_candidates_are_single_pieces(rows):
    vocab = WordPieceTokenizer.from_pretrained(data_path("bert-course-mini")).vocab
    assert [row["word"] for row in rows if row["word"] not in vocab] == []


def test_candidates_do_not_come_back_often(twins):
    candidates = Counter(word for one, _ in twins for word in (one["word"], one["other"]))
    assert [word for word, count in candidates.items() if count > 4] == []
    pairs = Counter((one["side"], frozenset((one["word"], one["other"]))) for one, _ in twins)
    assert [pair for pair, count in pairs.items() if count > 1] == []


def test_no_sentence_is_there_twice_and_all_have_6_to_18_words(rows):
    assert [text for text, count in Counter(row["text"].lower() for row in rows).items() if count > 1] == []
    # with the word left out, too: else one text would have two right answers
    assert [text for text, count in Counter("_".join(sides(row)).lower() for row in rows).items() if count > 1] == []
    lengths = [len(row["text"].split()) for row in rows]
    assert (min(lengths), max(lengths)) == (6, 18)


def test_the_counts_are_those_of_the_card(rows, twins):
    card = (data_path("cloze") / "README.md").read_text(encoding="utf-8")
    table = next(part for part in card.split("\n\n") if part.startswith("| side |"))
    found = {
        cells[0]: [int(cell) for cell in cells[1:]]
        for cells in ([cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:])
    }
    vocab = WordPieceTokenizer.from_pretrained(data_path("bert-course-mini")).vocab
    counted = {}
    for side in (*SIDES, "all"):
        own = [row for row in rows if side in (row["side"], "all")]
        by_distance = [sum(row["distance"] in some for row in own) for some in DISTANCES]
        pieces = sum(row["word"] in vocab and row["other"] in vocab for row in own)
        counted[side] = [len(own) // 2, len(own), *by_distance, pieces]
    assert found == counted
    candidates = {row["word"] for row in rows}
    differ = Counter(tuple(d is not None for d in distances(*pair)) for pair in twins if pair[0]["side"] == "both")
    assert f"{len(rows)} English sentences in {len(twins)} pairs" in card
    assert f"{len(candidates)} different words are candidates" in card
    assert differ == {(True, False): 50, (False, True): 14}
    assert "50 pairs differ on the left and 14 on the right" in card
