"""bert_course.inputs gives what transformers' BertTokenizer gives: pairs, truncation, windows with stride, padding."""

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BertTokenizer

from bert_course import data_path
from bert_course.config import BertConfig
from bert_course.inputs import batch, encode, windows
from bert_course.model import BertModel
from bert_course.wordpiece import WordPieceTokenizer

FOLDER = data_path("bert-course-mini")
OURS = WordPieceTokenizer.from_pretrained(FOLDER)
HF = BertTokenizer.from_pretrained(FOLDER)

WORDS = ["the", "cat", "Sat", "unbelievably", "naïve", "猫", "on", "mat,", "[MASK]", "!?", "9.30", "\u200d", "zyxwvq"]
words = st.lists(st.sampled_from(WORDS), max_size=20)
texts = words.map(" ".join)
many = settings(max_examples=200, deadline=None, derandomize=True)


def columns(encoding):
    return encoding.input_ids, encoding.token_type_ids, encoding.offsets


def reference(text, pair=None, **options):
    """The windows of transformers. In lists, since outside of them it takes the pair "" for no pair."""
    pairs = () if pair is None else ([pair],)
    out = HF([text], *pairs, return_offsets_mapping=True, **options)
    return list(zip(out["input_ids"], out["token_type_ids"], out["offset_mapping"], strict=True))


@many
@given(texts, st.none() | texts)
def test_one_text_and_a_pair(text, pair):
    assert [columns(encode(OURS, text, pair))] == reference(text, pair)


@many
@given(texts, st.none() | texts, st.integers(4, 40))
def test_truncation_takes_the_longest_first(text, pair, max_length):
    ours = columns(encode(OURS, text, pair, max_length, truncation=True))
    assert [ours] == reference(text, pair, truncation="longest_first", max_length=max_length)


@pytest.mark.parametrize("room", range(1, 15))
def test_truncation_for_all_small_lengths(room):
    for a, b in product(range(8), repeat=2):
        text, pair = "cat " * a, "mat " * b
        ours = columns(encode(OURS, text, pair, room + 3, truncation=True))
        assert [ours] == reference(text, pair, truncation="longest_first", max_length=room + 3)


@many
@given(texts, st.integers(3, 30), st.data())
def test_windows_of_one_text(text, max_length, data):
    stride = data.draw(st.integers(0, max_length - 3))
    ours = [columns(window) for window in windows(OURS, text, max_length=max_length, stride=stride)]
    options = dict(truncation=True, max_length=max_length, stride=stride, return_overflowing_tokens=True)
    assert ours == reference(text, **options)


@many
@given(texts, st.lists(st.sampled_from(WORDS), max_size=6).map(" ".join), st.integers(1, 12), st.data())
def test_windows_of_a_text_with_a_question(text, question, room, data):
    stride = data.draw(st.integers(0, room - 1))
    max_length = len(OURS.encode(question)) + 3 + room
    ours = [columns(window) for window in windows(OURS, text, question, max_length, stride)]
    options = dict(truncation="only_second", max_length=max_length, stride=stride, return_overflowing_tokens=True)
    assert ours == reference(question, text, **options)


@many
@given(texts, st.integers(1, 12), st.data())
def test_windows_lose_no_token(text, room, data):
    stride = data.draw(st.integers(0, room - 1))
    parts = [list(zip(w.input_ids, w.offsets, strict=True))[1:-1] for w in windows(OURS, text, None, room + 2, stride)]
    assert all(part[:stride] == before[-stride:] for before, part in zip(parts, parts[1:], strict=False) if stride)
    joined = parts[0] + [piece for part in parts[1:] for piece in part[stride:]]
    assert joined == list(zip(*OURS.encode_with_offsets(text), strict=True))


@many
@given(st.lists(st.tuples(texts, st.none() | texts), min_size=1, max_size=5))
def test_a_batch_is_padded_to_its_longest_input(inputs):
    encodings = [encode(OURS, *one) for one in inputs]
    rows = [{"input_ids": e.input_ids, "token_type_ids": e.token_type_ids} for e in encodings]
    ours, expected = batch(encodings, OURS.pad_id), HF.pad(rows, padding="longest", return_tensors="pt")
    assert ours["input_ids"].shape == (len(inputs), max(map(len, encodings)))
    assert set(ours) == set(expected)
    assert all(ours[key].dtype == torch.int64 and torch.equal(ours[key], expected[key]) for key in ours)


def test_a_window_that_fits_needs_no_room_for_an_overlap():
    assert len(windows(OURS, "the cat", "on the mat", max_length=8, stride=128)) == 1


def test_512_tokens_go_in_and_513_are_an_error():
    assert len(encode(OURS, "cat " * 510)) == 512
    with pytest.raises(ValueError, match=r"the input has 513 tokens, but max_length is 512.*truncation=True.*windows"):
        encode(OURS, "cat " * 511)
    with pytest.raises(ValueError, match="the input has 513 tokens"):
        encode(OURS, "cat " * 255, "mat " * 255)


def test_the_model_refuses_513_tokens():
    model = BertModel(BertConfig.preset("tiny", vocab_size=OURS.vocab_size))
    inputs = batch([encode(OURS, "cat " * 511, max_length=513)])
    with pytest.raises(ValueError, match="513 tokens, but this model has positions for 512"):
        model(**inputs)


@pytest.mark.parametrize("pair, max_length", [(None, 2), ("mat", 3), ("", 3), (None, 0)])
def test_no_room_beside_the_special_tokens_is_an_error(pair, max_length):
    with pytest.raises(ValueError, match=f"max_length {max_length} leaves no room"):
        encode(OURS, "cat", pair, max_length, truncation=True)


@pytest.mark.parametrize("question, max_length, stride, message", [
    (None, 10, 8, "max_length 10 leaves 8 tokens for a window, and 8 of them would repeat"),
    ("the mat", 10, 6, "max_length 10 leaves 5 tokens for a window, and 6 of them would repeat"),
    ("the mat " * 9, 10, 0, "max_length 10 leaves 0 tokens for a window"),
    (None, 10, -1, "stride -1 would skip text"),
])
def test_windows_that_cannot_move_on_are_an_error(question, max_length, stride, message):
    with pytest.raises(ValueError, match=message):
        windows(OURS, "cat " * 20, question, max_length, stride)


def test_an_empty_batch_is_an_error():
    with pytest.raises(ValueError, match="at least one input"):
        batch([])
