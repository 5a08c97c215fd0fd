"""The probes, and data/senses, which they are used on."""

import re
from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from bert_course import data_path, probes, tasks
from bert_course.checkpoint import from_pretrained
from bert_course.model import BertForPreTraining
from bert_course.wordpiece import WordPieceTokenizer

SPLITS = {split: tasks.read_senses(data_path("senses") / f"{split}.csv") for split in ("train", "test")}
ROWS = SPLITS["train"] + SPLITS["test"]


def test_every_sense_has_twelve_sentences_eight_of_them_to_learn_from():
    for split, size in (("train", 8), ("test", 4)):
        counts = Counter((row["word"], row["sense"]) for row in SPLITS[split])
        assert set(counts.values()) == {size}
    assert len({row["word"] for row in ROWS}) >= 30
    assert {row["pos"] for row in ROWS} == {"noun", "verb", "adjective"}


def test_the_word_stands_once_in_its_sentence():
    for row in ROWS:
        assert [m.start() for m in re.finditer(rf"\b{row['word']}\b", row["text"], re.I)] == [row["start"]]


def test_no_two_sentences_are_alike():
    words = [frozenset(re.findall(r"\w+", row["text"].lower())) for row in ROWS]
    assert max(len(a & b) / len(a | b) for a, b in combinations(words, 2)) < 0.5


def test_counting_the_words_around_says_little_about_the_sense():
    right = 0
    for word in {row["word"] for row in ROWS}:
        train, test = ([row for row in rows if row["word"] == word] for rows in SPLITS.values())
        counting = make_pipeline(TfidfVectorizer(), LogisticRegression(C=10))
        counting.fit([row["text"] for row in train], [row["sense"] for row in train])
        right += sum(counting.predict([row["text"] for row in test]) == [row["sense"] for row in test])
    assert right / len(SPLITS["test"]) < 0.60


def test_a_word_at_the_wrong_place_is_named(tmp_path):
    path = tmp_path / "senses.csv"
    path.write_text("word,pos,sense,start,text\nbank,noun,river,4,On the bank of it.\n", encoding="utf-8")
    with pytest.raises(ValueError, match="senses.csv line 2: 'bank' does not begin at character 4"):
        tasks.read_senses(path)


@pytest.fixture(scope="module")
def checkpoint():
    folder = data_path("bert-course-mini")
    return from_pretrained(BertForPreTraining, folder).bert, WordPieceTokenizer.from_pretrained(folder)


def test_target_vectors_are_those_of_the_words_pieces(checkpoint):
    bert, tokenizer = checkpoint
    text = "Slowly the pitcher pours it."
    pieces = tokenizer.tokenize(text)
    first = pieces.index("pitch")
    vectors = probes.target_vectors(bert, tokenizer, [{"text": text, "word": "pitcher", "start": 11}])[0]
    table = bert.embeddings(bert_ids(tokenizer, text))[0]
    count = 1 + sum(piece.startswith("##") for piece in pieces[first + 1 : first + 3])
    np.testing.assert_allclose(vectors[0], table[1 + first : 1 + first + count].mean(0).detach(), atol=1e-6)


def bert_ids(tokenizer, text):
    from bert_course.inputs import batch, encode

    return batch([encode(tokenizer, text)], tokenizer.pad_id)["input_ids"]


def test_bert_knows_senses_that_its_first_layer_does_not(checkpoint):
    vectors = probes.target_vectors(*checkpoint, ROWS)
    train = np.array([True] * len(SPLITS["train"]) + [False] * len(SPLITS["test"]))
    assert probes.sense_accuracy(vectors[:, 4], ROWS, train) > 0.65 > 0.58 > probes.sense_accuracy(vectors[:, 0], ROWS, train)


def test_sense_accuracy_counts_only_the_rows_that_were_not_learned_from():
    rows = [{"word": "bank", "sense": sense} for sense in "aabbab"]
    vectors = np.array([[0.0], [0.2], [1.0], [1.2], [0.9], [1.1]])
    train = np.array([True, True, True, True, False, False])
    assert probes.sense_accuracy(vectors, rows, train) == 0.5


def test_a_random_split_takes_as_many_of_each_sense():
    train = probes.random_split(ROWS, seed=3)
    counts = Counter((row["word"], row["sense"]) for row, chosen in zip(ROWS, train, strict=True) if chosen)
    assert set(counts.values()) == {8} and len(counts) == len({(row["word"], row["sense"]) for row in ROWS})
    assert (train != probes.random_split(ROWS, seed=4)).any() and (train == probes.random_split(ROWS, seed=3)).all()
