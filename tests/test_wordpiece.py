"""bert_course.wordpiece gives the ids and offsets of transformers' BertTokenizer, for any text.

`pytest -s` prints how many strings each test compared; `record_property` puts it into the report.
"""

import argparse
import copy
import difflib
import inspect
import json
import os
import pickle
import random
import subprocess
import sys
import textwrap
import unicodedata
from functools import cache
from itertools import islice, permutations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, BertTokenizer

from bert_course import wordpiece
from bert_course.wordpiece import SPECIAL_TOKENS, WordPieceTokenizer, train_wordpiece

ASSIGNED = [chr(i) for i in range(0x110000) if unicodedata.category(chr(i)) not in ("Cn", "Cs")]
MARKS = (  # old and new ones, removed and kept ones, and characters that fall apart into several
    "\u0301\u0316\u0334\u0345\u0338\u302e\u1bf2\u1734\ua953\U0001d165\U0001d16d\U0001d160\u0344\u0f73\u08d4\u1abf\U0001e000"
)
HARD = [
    "",
    " ",
    "\u0301",
    "\u200b\u200d",
    "Hello, World! It's 9.30 -- don't you think so?!",
    "Ünïcödé naïve café NAÏVE cafe\u0301 Å\u212b \u1e9b\u0323",
    "İstanbul ISPARTA ıi \u0130\u0307 ß ẞ ǅ ŒUVRE ﬁ ŉ Σίσυφος ΟΔΟΣ",
    "中文字符 mixed中english文 か゚ガ カ\u3099 한국어 각\u11a8 \uf900\U0002f800\U00020000\U0002b820\U00030000",
    "中\u0301文\u200d字 \u3007\u3005\u30fc\uff21\uff01\u3000x",
    "a\tb\nc\rd\x0be\x0cf\x1cg\x1fh\x85i\u00a0j\u2028k\u2029l\u3000m\u1680n\u180eo\u200bp\ufeffq",
    "nul\x00l re\ufffdplacement soft\u00adhyphen \u200ejoin\u200der\u200c \ue000private \U000e0041tag",
    "👩\u200d👩\u200d👧\u200d👦 👍🏽 🇫🇷 ❤\ufe0f 1\ufe0f\u20e3 😀word😀",
    "हिन्दी ภาษาไทย ที่นี่ עִבְרִית العَرَبِيَّة \u0f73\u0f71\u0f72 தமிழ்",
    "[MASK]",
    "[MASK][SEP] [CLS]a[UNK]b[PAD]",
    "x[MASK]y [mask] [Mask] [ MASK ] [MASK [[MASK]] MASK] [MA\u200dSK] [MASK\u0301] [SEP]\u0301",
    " [MASK]  \t [SEP]\u00a0[MASK]\u200b[MASK]",
    "\u0301[MASK]\u0301\u0316 a\u0301[SEP",
    "##a # #a ##[MASK] a##b",
    "a" * 99 + " " + "a" * 100 + " " + "a" * 101 + " " + "b" * 102 + " " + "a" * 5000,
    "é" * 100 + " " + "é" * 101 + " " + "e\u0301" * 100 + " " + "a\u200b" * 100 + " " + "各" * 200,
    "가" * 33 + " " + "가" * 50 + " " + "가" * 51 + " " + "각" * 34 + " \u0344" * 101 + " İ" + "İ" * 100,
    "a\u0301\u302eb \u302e\u0301 \U0001d160\u0334x \U0001d15f\U0001d165\u0316 a\u0345\u08d4 a\u0345\u1abf",
    "= ≠ \u226e < \u037e \u1fef \u2260\u0338 ` ^ ~ $ + | ¢ £ € § ¶ · ‚ « » ⁂ ‽ 、。「」・〜 \u166d \U000111c9",
    "\u1734a \U0001171eb \u07fdc \u0890d \U00011938e \U0001193df \u061dg \u2e52h \U0001e944i",
]

words = st.text(st.sampled_from("abcdefghijklmnopqrstuvwxyz"), max_size=8) | st.sampled_from(
    "the of and tokenizer Text RETURN argument sequences playing unbelievable don't".split()
)
ALPHABETS = [
    words,
    st.text(st.sampled_from("aAbBzZ09 .,!?'\"-_$[]#\t\n"), max_size=12),
    st.text(st.sampled_from("àÉîõÜçñßİıŁøÆœǅẞΣςΩЖёЙ\u0301\u0308\u0327 e"), max_size=8),
    st.text(st.sampled_from("中文字符東京日本語㐀\uf900\U00020000\U0002f800かガパ한국어각 。、！"), max_size=8),
    st.text(st.sampled_from("😀👩👍🏽🇫🇷❤\ufe0f\u200d\u20e3#1"), max_size=6),
    st.text(st.sampled_from("\x00\x01\x0b\x0c\x1c\x7f\x85\u00ad\ufffd\ue000\ufeffab"), max_size=6),
    st.text(st.sampled_from("\u200b\u200c\u200d\u2028\u00a0\u3000\u1680\u180e\u202eab"), max_size=6),
    st.text(st.sampled_from(MARKS + "ae가 "), max_size=8),
    st.text(st.characters(exclude_categories=["Cs", "Cn"]), max_size=8),
    st.sampled_from([*SPECIAL_TOKENS, "[mask]", "[MASK", "MASK]", "[", "]", " [SEP] ", "##", "##a"]),
    st.builds(lambda c, n: c * n, st.sampled_from("aéß中가İ\u0301\U0001d160"), st.integers(95, 105)),
]
texts = st.lists(st.one_of(ALPHABETS), max_size=8).map("".join)


def expected(reference, batch):
    """(ids, offsets) of each text, by transformers."""
    result = reference(
        batch,
        add_special_tokens=False,
        return_offsets_mapping=True,
        return_attention_mask=False,
        return_token_type_ids=False,
    )
    return list(zip(result["input_ids"], result["offset_mapping"], strict=True))


def differing(tokenizer, reference, batch):
    """The texts of a batch whose ids or offsets differ."""
    got = [tokenizer.encode_with_offsets(text) for text in batch]
    return [text for text, a, b in zip(batch, got, expected(reference, batch), strict=True) if a != b]


def corpus():
    """Docstrings of some modules of the standard library and hard strings."""
    modules = [argparse, difflib, inspect, json, os, random, subprocess, textwrap]
    docs = [inspect.getdoc(obj) for module in modules for _, obj in inspect.getmembers(module)]
    return [doc for doc in docs if doc] + HARD * 2


HANDMADE = [*"aAbBzZeEiIsS09.,!?'$[]#àÉéİıßσςΣΩжЖ中文字東か한ᄒ각ᄀ", *"\u1161\u11a8😀👩❤\ufe0f\u302e"]
HANDMADE += ["##" + c for c in HANDMADE] + ["ab", "##ab", "##ba", "aa", "##aaa", "the", "##the"]


@cache
def build(kind, lowercase):
    """A tokenizer and transformers' tokenizer with the same vocabulary."""
    if kind == "trained":  # the usual: words and pieces of words
        tokenizer = train_wordpiece(corpus(), 3000, lowercase)
    elif kind == "handmade":  # few tokens, much is [UNK]
        tokenizer = WordPieceTokenizer([*SPECIAL_TOKENS, *HANDMADE], lowercase)
    else:  # every character: nothing short is [UNK], so that a difference in one character shows
        chars = [c for c in ASSIGNED if unicodedata.category(c) != "Co" and c not in "\n\r"]
        tokenizer = WordPieceTokenizer([*SPECIAL_TOKENS, *chars, *("##" + c for c in chars)], lowercase)
    return tokenizer, BertTokenizer(vocab=dict(tokenizer.vocab), do_lower_case=lowercase)


both_cases = pytest.mark.parametrize("lowercase", [True, False], ids=["uncased", "cased"])
all_kinds = pytest.mark.parametrize("kind", ["trained", "handmade", "characters"])


@pytest.fixture
def report(record_property, request):
    def report(count):
        record_property("strings_compared", count)
        print(f"\n{request.node.name}: {count} strings compared")

    return report


# -- the comparison with the library -----------------------------------------------------------


@both_cases
@all_kinds
def test_hard_strings(kind, lowercase, report):
    tokenizer, reference = build(kind, lowercase)
    assert differing(tokenizer, reference, HARD) == []
    for text in HARD:
        assert tokenizer.encode(text) == reference.encode(text, add_special_tokens=False)
        assert tokenizer.tokenize(text) == reference.tokenize(text)
    report(len(HARD))


@both_cases
@all_kinds
def test_any_text(kind, lowercase, report):
    tokenizer, reference = build(kind, lowercase)
    count = unknown = total = 0

    @settings(max_examples=400, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(texts)
    def check(text):
        nonlocal count, unknown, total
        got = tokenizer.encode_with_offsets(text)
        assert got == expected(reference, [text])[0]
        count, total, unknown = count + 1, total + len(got[0]), unknown + got[0].count(tokenizer.unk_id)

    check()
    report(count)
    assert count >= 400
    assert unknown < total * {"trained": 0.4, "handmade": 0.5, "characters": 0.1}[kind]


@both_cases
def test_every_character(lowercase, report):
    """Every assigned character, alone and in a word. Most share a text with others, set apart by spaces."""
    tokenizer, reference = build("characters", lowercase)
    names = {c: unicodedata.name(c, "PRIVATE") for c in ASSIGNED if c >= " "}
    plain = [c for c, name in names.items() if name.startswith(("CJK", "HANGUL", "PRIVATE"))]
    single = sorted(set(ASSIGNED) - set(plain))
    count = len(single)
    assert differing(tokenizer, reference, single) == []
    for words in (plain, [f"a{c}b" for c in ASSIGNED]):
        assert differing(tokenizer, reference, [" ".join(words[i : i + 50]) for i in range(0, len(words), 50)]) == []
        count += len(words)
    assert count == 2 * len(ASSIGNED) > 500_000
    report(count)


@both_cases
def test_order_of_marks(lowercase, report):
    """Marks out of their canonical order: Unicode's normal form sorts them, with the reference's old tables."""
    tokenizer, reference = build("characters", lowercase)
    batch = ["".join(order) + "b" for order in permutations("a" + MARKS, 3)]
    marks = [c for c in ASSIGNED if unicodedata.combining(c)]
    batch += [f"a{first}{c}{last}b" for c in marks for first in "\u0345\u0301" for last in ("\u0334", "\U0001d165")]
    assert differing(tokenizer, reference, batch) == []
    report(len(batch))


def test_library_docstrings(report):
    from bert_course.corpora import docstrings

    batch = list(islice(docstrings(), 4000))
    for lowercase in (True, False):
        assert differing(*build("trained", lowercase), batch) == []
    assert len(batch) == 4000
    report(2 * len(batch))


@pytest.mark.parametrize(
    "name, value",
    [
        ("_NEWER", frozenset()),
        ("_NEW_IN_9", frozenset()),
        ("_CHANGED", {}),
        ("MAX_WORD_CHARS", 99),
        ("MAX_WORD_CHARS", 101),
        ("_decompose", lambda chars: [(d, i) for c, i in chars for d in unicodedata.normalize("NFD", c)]),
        ("combining", lambda char: 0),
        ("SPECIAL_TOKENS", ()),
    ],
)
def test_comparison_sees_faults(monkeypatch, name, value):
    """The hard strings are hard enough: break one rule of the tokenizer and they differ."""
    tokenizer, reference = build("characters", True)
    monkeypatch.setattr(tokenizer, "_cache", {})
    wordpiece._category.cache_clear()
    assert differing(tokenizer, reference, HARD) == []
    monkeypatch.setattr(tokenizer, "_cache", {})
    monkeypatch.setattr(wordpiece, name, value)
    wordpiece._category.cache_clear()
    assert differing(tokenizer, reference, HARD) != []
    monkeypatch.undo()
    wordpiece._category.cache_clear()


def test_new_capitals():
    """The one difference: capitals newer than this Python's Unicode, which only the library can lower-case."""
    _, reference = build("handmade", True)
    normalize = reference.backend_tokenizer.normalizer.normalize_str
    unassigned = [chr(i) for i in range(0x20000) if unicodedata.category(chr(i)) == "Cn"]
    ours = [c for c in unassigned if wordpiece._split_words(c, True) != [[(normalize(c).strip(), 0)]]]
    assert ours == [c for c in unassigned if normalize(c).strip() != c]
    if unicodedata.unidata_version == "14.0.0":
        assert {"\u1c89", "\ua7cb", "\U00010d50"} <= set(ours)  # new in Unicode 16
    assert len(ours) < 100 < len(unassigned)


# -- files and the library's loaders -----------------------------------------------------------


@both_cases
def test_transformers_loads_the_folder(tmp_path, lowercase, report):
    tokenizer, reference = build("trained", lowercase)
    folder = tmp_path / "model" / "tokenizer"
    tokenizer.save_pretrained(folder)
    assert sorted(os.listdir(folder)) == ["tokenizer_config.json", "vocab.txt"]
    (folder / "config.json").write_text('{"model_type": "bert"}')
    batch = HARD + corpus()[:200]
    for loader in (AutoTokenizer, BertTokenizer):
        loaded = loader.from_pretrained(folder)
        assert isinstance(loaded, BertTokenizer)
        assert loaded.get_vocab() == tokenizer.vocab
        assert differing(tokenizer, loaded, batch) == []
        assert loaded("a", "b")["input_ids"] == reference("a", "b")["input_ids"]
        ids = [loaded.pad_token_id, loaded.unk_token_id, loaded.cls_token_id, loaded.sep_token_id, loaded.mask_token_id]
        assert ids == [0, 1, 2, 3, 4]
    loaded = WordPieceTokenizer.from_pretrained(folder)
    assert (loaded.tokens, loaded.lowercase) == (tokenizer.tokens, lowercase)
    report(2 * len(batch))


def test_file_roundtrip(tmp_path):
    tokenizer, _ = build("characters", False)
    tokenizer.save(tmp_path / "vocab.txt")
    assert os.listdir(tmp_path) == ["vocab.txt"]
    assert WordPieceTokenizer.from_file(tmp_path / "vocab.txt", lowercase=False).vocab == tokenizer.vocab
    crlf = (tmp_path / "vocab.txt").read_bytes().replace(b"\n", b"\r\n")
    (tmp_path / "crlf.txt").write_bytes(crlf)
    assert WordPieceTokenizer.from_file(tmp_path / "crlf.txt").tokens == tokenizer.tokens


def test_failed_save_keeps_the_file(tmp_path, monkeypatch):
    path = tmp_path / "vocab.txt"
    path.write_text("old")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        build("handmade", True)[0].save(path)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["vocab.txt"]


def test_from_pretrained_configuration(tmp_path):
    build("handmade", True)[0].save(tmp_path / "vocab.txt")
    assert WordPieceTokenizer.from_pretrained(tmp_path).lowercase is True
    config = tmp_path / "tokenizer_config.json"
    config.write_text('{"do_lower_case": false, "strip_accents": false}')
    assert WordPieceTokenizer.from_pretrained(tmp_path).lowercase is False
    config.write_text('{"do_lower_case": true, "strip_accents": false}')
    with pytest.raises(ValueError, match="strip_accents False with do_lower_case True is not supported"):
        WordPieceTokenizer.from_pretrained(tmp_path)
    config.write_text('{"tokenize_chinese_chars": false}')
    with pytest.raises(ValueError, match="tokenize_chinese_chars False"):
        WordPieceTokenizer.from_pretrained(tmp_path)


def test_tokenizer_json_would_hide_the_vocabulary(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(FileExistsError, match="tokenizer.json"):
        build("handmade", True)[0].save_pretrained(tmp_path)
    assert os.listdir(tmp_path) == ["tokenizer.json"]


SPECIAL = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n"


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "the file is empty"),
        (b"\xff\xfe[\x00", "not UTF-8 .invalid start byte at byte 0"),
        (SPECIAL.encode() + b"a\nb\na\n", "duplicate token 'a' in lines 6 and 8"),
        (SPECIAL.encode() + b"a\n\nb\n", "line 7: the token '' is empty"),
        (b"[PAD]\n[CLS]\n[MASK]\na\n", r"the vocabulary lacks \[UNK\] \[SEP\]$"),
        (b"\n", "line 1: the token '' is empty"),
    ],
)
def test_bad_files(tmp_path, content, message):
    path = tmp_path / "vocab.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"vocab\.txt: {message}"):
        WordPieceTokenizer.from_file(path)


def test_bad_vocabularies():
    with pytest.raises(FileNotFoundError):
        WordPieceTokenizer.from_file("no such file")
    with pytest.raises(ValueError, match="must be 0 to 5"):
        WordPieceTokenizer({token: i for i, token in enumerate([*SPECIAL_TOKENS, "a"], start=1)})
    with pytest.raises(ValueError, match="must be 0 to 5"):
        WordPieceTokenizer(dict.fromkeys([*SPECIAL_TOKENS, "a"], 0))
    with pytest.raises(ValueError, match="line break"):
        WordPieceTokenizer([*SPECIAL_TOKENS, "a\r"])
    with pytest.raises(ValueError, match=r"lacks \[PAD\] \[UNK\] \[CLS\] \[SEP\] \[MASK\]"):
        WordPieceTokenizer([])


# -- the rest of the interface -----------------------------------------------------------------


def test_attributes():
    tokens = ["a", *reversed(SPECIAL_TOKENS), "##b"]
    for vocab in (tokens, {token: i for i, token in reversed(list(enumerate(tokens)))}):
        tokenizer = WordPieceTokenizer(vocab, lowercase=False)
        assert tokenizer.tokens == tokens
        assert tokenizer.vocab == {token: i for i, token in enumerate(tokens)}
        assert tokenizer.vocab_size == 7
        assert tokenizer.lowercase is False
        ids = (tokenizer.pad_id, tokenizer.unk_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id)
        assert ids == (5, 4, 3, 2, 1)
        assert tokenizer.tokenize("ab A [SEP]") == ["a", "##b", "[UNK]", "[SEP]"]


@both_cases
@all_kinds
def test_decode(kind, lowercase, report):
    tokenizer, reference = build(kind, lowercase)
    rng = random.Random(0)
    batch = [rng.choices(range(tokenizer.vocab_size), k=rng.randrange(12)) for _ in range(500)]
    batch += [tokenizer.encode(text) for text in HARD]
    batch += [tokenizer.encode(rng.choice(".,!?'a") + " ".join(rng.choices(".,!?'a[-", k=8))) for _ in range(100)]
    for ids in batch:
        assert tokenizer.decode(ids) == reference.decode(ids, clean_up_tokenization_spaces=False)
    assert any("##" in tokenizer.decode(ids[:1]) for ids in batch)  # a first token keeps its ##
    report(len(batch))


def test_decode_bad_ids():
    tokenizer, _ = build("handmade", True)
    for bad in (-1, tokenizer.vocab_size):
        with pytest.raises(ValueError, match=f"token id {bad} is not between 0 and"):
            tokenizer.decode([5, bad])


def test_cache_is_bounded_and_not_shared_with_the_caller(monkeypatch):
    monkeypatch.setattr(wordpiece, "CACHE_SIZE", 10)
    tokenizer = WordPieceTokenizer([*SPECIAL_TOKENS, *HANDMADE])
    text = " ".join("ab" * n for n in range(1, 40))
    first = tokenizer.encode_with_offsets(text)
    assert len(tokenizer._cache) <= 10
    tokenizer.encode(text).clear()
    assert tokenizer.encode_with_offsets(text) == first
    for twin in (copy.deepcopy(tokenizer), pickle.loads(pickle.dumps(tokenizer))):
        assert twin.encode_with_offsets(text) == first


@both_cases
def test_training(lowercase):
    one, two = (train_wordpiece(iter(corpus()), 2000, lowercase) for _ in range(2))
    assert one.tokens == two.tokens
    assert one.tokens[:5] == list(SPECIAL_TOKENS)
    assert one.vocab_size == 2000
    assert one.lowercase is lowercase
    assert "the" in one.vocab
    assert ("The" in one.vocab) is not lowercase
    with pytest.raises(ValueError, match="vocab_size 50 is too small: the texts need"):
        train_wordpiece(corpus(), 50, lowercase)


def test_training_is_the_same_in_another_process():
    code = "import json, sys; from bert_course.wordpiece import train_wordpiece as train\n"
    code += "print(json.dumps(train(json.load(sys.stdin), 2000).tokens))"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYTHONHASHSEED": "7"}
    command = [sys.executable, "-c", code]
    output = subprocess.check_output(command, env=environment, input=json.dumps(corpus()), text=True)
    assert json.loads(output) == train_wordpiece(corpus(), 2000).tokens


def test_import_is_light():
    heavy = {"numpy", "tokenizers", "torch", "transformers"}
    code = f"import sys, bert_course.wordpiece; print({heavy} & set(sys.modules))"
    path = os.pathsep.join(filter(None, sys.path))
    output = subprocess.check_output([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": path}, text=True)
    assert output.strip() == "set()"
