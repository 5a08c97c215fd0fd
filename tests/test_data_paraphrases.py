"""data/paraphrases keeps what its card promises."""

import csv
import re
from collections import Counter

import numpy as np
import pytest
from sklearn.tree import DecisionTreeClassifier

from bert_course import data_path, finetuning

SPLITS = ("train", "validation", "test")
KINDS = {
    "minimal": "paraphrase", "close": "paraphrase", "far": "paraphrase",
    "hard": "different", "reworded": "different", "topical": "different",
}
REASONS = {"roles", "number", "negation", "time", "antonym", "place", "quantity", "modality", "cause", "detail"}
NEAR_DUPLICATE = 0.5  # share of common words of two sentences


def words(text):
    return frozenset(re.findall(r"[\w']+", text.lower()))


def share(one, other):
    """Common words of two sentences, of all of their words."""
    return len(words(one) & words(other)) / len(words(one) | words(other))


def overlap(row):
    return share(row["text"], row["text_pair"])


def sentences(rows):
    return {row[side] for row in rows for side in ("text", "text_pair")}


@pytest.fixture(scope="module")
def splits():
    found = {}
    for split in SPLITS:
        with open(data_path("paraphrases") / f"{split}.csv", encoding="utf-8", newline="") as file:
            found[split] = list(csv.DictReader(file))
    return found


@pytest.fixture(scope="module")
def rows(splits):
    return [row for split in SPLITS for row in splits[split]]


def test_every_group_has_one_pair_of_each_kind(rows):
    kinds = Counter((row["group"], row["kind"]) for row in rows)
    groups = {row["group"] for row in rows}
    assert kinds == Counter((group, kind) for group in groups for kind in KINDS)


def test_the_kind_decides_the_label(rows):
    assert {(row["kind"], row["label"]) for row in rows} == set(KINDS.items())


def test_the_counts_are_those_of_the_card(splits, rows):
    card = (data_path("paraphrases") / "README.md").read_text(encoding="utf-8")
    table = {
        cells[0]: [int(cell.replace(",", "")) for cell in cells[1:]]
        for cells in ([cell.strip() for cell in line.strip("|").split("|")] for line in card.splitlines())
        if cells[0] in {*SPLITS, "all"}
    }
    counted = {
        split: [len({row["group"] for row in found}), len(found), sum(row["label"] == "paraphrase" for row in found)]
        for split, found in {**splits, "all": rows}.items()
    }
    assert table == counted
    assert len(rows) >= 1500


@pytest.mark.parametrize("one, other", [("train", "validation"), ("train", "test"), ("validation", "test")])
def test_no_group_and_no_sentence_is_in_two_splits(splits, one, other):
    assert not {row["group"] for row in splits[one]} & {row["group"] for row in splits[other]}
    assert not sentences(splits[one]) & sentences(splits[other])


@pytest.mark.parametrize("one, other", [("train", "validation"), ("train", "test"), ("validation", "test")])
def test_no_sentence_is_nearly_one_of_another_split(splits, one, other):
    theirs = [(text, words(text)) for text in sentences(splits[other])]
    near = [
        (text, there)
        for text in sentences(splits[one])
        for ours in [words(text)]
        for there, found in theirs
        if len(ours & found) >= NEAR_DUPLICATE * len(ours | found)
    ]
    assert near == []


def test_a_group_has_six_different_sentences_and_no_other_group_has_them(rows):
    groups = {row["group"] for row in rows}
    of_group = {group: sentences(row for row in rows if row["group"] == group) for group in groups}
    assert {len(found) for found in of_group.values()} == {6}
    assert len(sentences(rows)) == 6 * len(groups)


def test_sentences_are_whole_and_of_8_to_24_words(rows):
    assert [text for text in sentences(rows) if not re.fullmatch(r"\S.*\S\.", text) or "  " in text] == []
    assert [text for text in sentences(rows) if not 8 <= len(text.split()) <= 24] == []


def test_hard_and_reworded_pairs_name_their_reason(rows):
    assert [row for row in rows if row["kind"] in ("hard", "reworded") and row["reason"] not in REASONS] == []
    assert [row for row in rows if row["kind"] not in ("hard", "reworded") and row["reason"]] == []


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("paraphrase, different", [("minimal", "hard"), ("close", "reworded")])
def test_overlap_does_not_tell_these_kinds_apart(splits, split, paraphrase, different):
    mean = {kind: np.mean([overlap(row) for row in splits[split] if row["kind"] == kind]) for kind in KINDS}
    assert abs(mean[paraphrase] - mean[different]) < 0.08


def test_far_paraphrases_share_fewer_words_than_topical_pairs(rows):
    mean = {kind: np.mean([overlap(row) for row in rows if row["kind"] == kind]) for kind in KINDS}
    assert mean["far"] < mean["topical"] < mean["close"] < mean["minimal"]


def accuracy(model, splits, features):
    labels = {split: [row["label"] for row in splits[split]] for split in ("train", "test")}
    return model.fit([features(row) for row in splits["train"]], labels["train"]).score(
        [features(row) for row in splits["test"]], labels["test"]
    )


@pytest.mark.parametrize("depth", [1, 3, 5])
def test_a_tree_on_the_overlap_of_words_stays_weak(splits, depth):
    tree = DecisionTreeClassifier(max_depth=depth, min_samples_leaf=20, random_state=0)
    assert accuracy(tree, splits, lambda row: [overlap(row)]) < 0.68


@pytest.mark.parametrize("longest", [1, 2])
def test_a_bag_of_the_words_of_both_stays_weak(splits, longest):
    both = finetuning.bag_of_words(longest)
    assert accuracy(both, splits, lambda row: f"{row['text']} {row['text_pair']}") < 0.66


@pytest.mark.parametrize("side", ["text", "text_pair"])
def test_one_sentence_alone_does_not_tell(splits, side):
    assert accuracy(finetuning.bag_of_words(1), splits, lambda row: row[side]) < 0.6
