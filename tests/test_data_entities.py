"""data/entities keeps what its card promises."""

import re
from collections import Counter

import pytest

from bert_course import data_path

SPLITS = ("train", "validation", "test")
TYPES = ("PER", "ORG", "LOC", "MISC")
TAGS = {"O", *(f"{place}-{kind}" for place in "BI" for kind in TYPES)}
NEAR_DUPLICATE = 0.5  # share of common words
AT_LEAST = {"train": 800, "validation": 120, "test": 280}


def read(split):
    """[[(token, tag), ...], ...], one inner list a sentence."""
    text = (data_path("entities") / f"{split}.conll").read_text(encoding="utf-8")
    return [[tuple(line.split(" ")) for line in block.split("\n")] for block in text.removesuffix("\n").split("\n\n")]


def names(sentence):
    """(name, type) of every entity of a sentence, the name in lower case."""
    found = []
    for token, tag in sentence:
        if tag.startswith("B-"):
            found.append(([token.lower()], tag[2:]))
        elif tag.startswith("I-"):
            found[-1][0].append(token.lower())
    return [(" ".join(tokens), kind) for tokens, kind in found]


def text(sentence):
    return " ".join(token for token, _ in sentence)


def words(sentence):
    return frozenset(re.findall(r"\w+", text(sentence).lower()))


def is_lower_case(sentence):
    return bool(names(sentence)) and text(sentence).islower()


@pytest.fixture(scope="module")
def splits():
    return {split: read(split) for split in SPLITS}


@pytest.fixture(scope="module")
def sentences(splits):
    return [sentence for split in SPLITS for sentence in splits[split]]


def test_every_line_is_a_token_and_one_of_nine_tags(sentences):
    assert [line for sentence in sentences for line in sentence if len(line) != 2 or not line[0] or line[1] not in TAGS] == []
    assert {tag for sentence in sentences for _, tag in sentence} == TAGS
    assert all(token.split() == [token] for sentence in sentences for token, _ in sentence)


def test_an_entity_begins_with_b_and_keeps_its_type(sentences):
    broken = []
    for sentence in sentences:
        tags = ["O", *(tag for _, tag in sentence)]
        broken += [text(sentence) for before, tag in zip(tags, tags[1:]) if tag[0] == "I" and before[2:] != tag[2:]]
    assert broken == []


def test_the_counts_are_those_of_the_card(splits, sentences):
    card = (data_path("entities") / "README.md").read_text(encoding="utf-8")
    table = {
        cells[0]: [int(cell.replace(",", "")) for cell in cells[1:]]
        for cells in ([cell.strip() for cell in line.strip("|").split("|")] for line in card.splitlines())
        if cells[0] in {*SPLITS, "all"}
    }
    counted = {}
    for split, rows in {**splits, "all": sentences}.items():
        kinds = Counter(kind for sentence in rows for _, kind in names(sentence))
        counted[split] = [
            len(rows),
            sum(map(len, rows)),
            *(kinds[kind] for kind in TYPES),
            sum(not names(sentence) for sentence in rows),
            sum(map(is_lower_case, rows)),
        ]
    assert table == counted


def test_there_are_enough_sentences(splits, sentences):
    assert len(sentences) >= 1_200
    assert {split: len(splits[split]) for split in SPLITS if len(splits[split]) < AT_LEAST[split]} == {}


def test_no_sentence_occurs_twice(sentences):
    texts = Counter(text(sentence).lower() for sentence in sentences)
    assert [sentence for sentence, count in texts.items() if count > 1] == []


@pytest.mark.parametrize("one, other", [("train", "validation"), ("train", "test"), ("validation", "test")])
def test_no_sentence_is_nearly_one_of_another_split(splits, one, other):
    others = [words(sentence) for sentence in splits[other]]
    near = [
        (text(sentence), sorted(there))
        for sentence in splits[one]
        for here in [words(sentence)]
        for there in others
        if len(here & there) >= NEAR_DUPLICATE * len(here | there)
    ]
    assert near == []


def test_no_entity_of_test_is_one_in_training(splits):
    seen, unseen = (
        {name for split in group for sentence in splits[split] for name, _ in names(sentence)}
        for group in (("train", "validation"), ("test",))
    )
    assert sorted(seen & unseen) == []


@pytest.mark.parametrize("split", SPLITS)
def test_capitals_do_not_give_the_entities_away(splits, split):
    rows = splits[split]
    assert 0.12 < sum(map(is_lower_case, rows)) / len(rows) < 0.20
    capitalised = [tag for sentence in rows for token, tag in sentence if token[0].isupper()]
    assert capitalised.count("O") > 0.25 * len(capitalised)
    inside = [tag for sentence in rows for token, tag in sentence[1:] if token[0].isupper()]
    assert inside.count("O") > 0.05 * len(inside)


@pytest.mark.parametrize("split, at_least", [("train", 40), ("test", 25)])
def test_some_names_have_several_types(splits, split, at_least):
    kinds = {}
    for sentence in splits[split]:
        for name, kind in names(sentence):
            kinds.setdefault(name, set()).add(kind)
    assert sum(len(several) > 1 for several in kinds.values()) >= at_least
