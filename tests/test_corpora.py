"""Raw text: documents and paragraphs as they stand in the files, and a damaged file named instead of a traceback; and the same
as token ids on disk."""

import ast
import errno
import gc
import gzip
import json
import lzma
import os
import random
import subprocess
import sys
import typing
import warnings
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import stand_in

from bert_course import corpora, shards
from bert_course.shards import Shards
from bert_course.wordpiece import SPECIAL_TOKENS, WordPieceTokenizer

TEXT = "One, the first.\nTwo.\n\n\nA second document.\n"
DOCUMENTS = [["One, the first.", "Two."], ["A second document."]]


@pytest.mark.parametrize("suffix, pack", [(".txt", bytes), (".gz", gzip.compress), (".xz", lzma.compress)])
def test_a_file_gives_its_documents(tmp_path, suffix, pack):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(pack(TEXT.encode()))
    assert list(corpora.documents(path)) == DOCUMENTS


def test_a_folder_gives_a_document_of_each_file_in_turn(tmp_path):
    (tmp_path / "a.txt").write_text(TEXT)
    (tmp_path / "b.txt").write_text("Another file.\n")
    (tmp_path / "notes.md").write_text("not read")
    assert list(corpora.documents(tmp_path)) == [DOCUMENTS[0], ["Another file."], DOCUMENTS[1]]


def test_what_is_written_is_read_back(tmp_path):
    corpora.write(DOCUMENTS, tmp_path / "again.txt")
    assert list(corpora.documents(tmp_path / "again.txt")) == DOCUMENTS


def test_few_files_of_a_large_folder_are_open_at_once(tmp_path, monkeypatch):
    """And all are read, each in its order."""
    for i in range(50):
        (tmp_path / f"{i:02}.txt").write_text("\n\n".join(f"File {i}, document {n}." for n in range(1 + i % 3)))
    files = []

    def opened(*args, **kwargs):
        files.append(open(*args, **kwargs))
        return files[-1]

    monkeypatch.setitem(corpora.OPENERS, ".txt", opened)
    most, found = 0, []
    for document in corpora.documents(tmp_path):
        found += document
        most = max(most, sum(not file.closed for file in files))
    assert most == corpora.OPEN and len(files) == 50
    assert len(found) == len(set(found)) == sum(1 + i % 3 for i in range(50))
    assert all(found.index(f"File {i}, document 0.") < found.index(f"File {i}, document 1.") for i in range(50) if i % 3)


def test_a_long_document_is_read_as_several_and_loses_nothing(tmp_path):
    lines = [f"Paragraph {i}." for i in range(250)]
    (tmp_path / "book.txt").write_text("\n".join(lines))
    documents = list(corpora.documents(tmp_path / "book.txt"))
    assert [len(document) for document in documents] == [100, 100, 50]
    assert sum(documents, []) == lines


@pytest.mark.parametrize("suffix, pack", [(".gz", gzip.compress), (".xz", lzma.compress)])
@pytest.mark.parametrize("damage", ["cut", "header", "middle"])
def test_a_damaged_archive_is_named(tmp_path, suffix, pack, damage):
    packed = bytearray(pack("".join(f"Line {i * i}.\n" for i in range(5000)).encode()))
    if damage == "cut":
        packed = packed[: len(packed) // 2]
    else:
        packed[0 if damage == "header" else len(packed) // 2] ^= 255
    path = tmp_path / f"a{suffix}"
    path.write_bytes(packed)
    with pytest.raises(ValueError, match=f"a{suffix} cannot be read as UTF-8 text"):
        list(corpora.documents(path))


def test_a_folder_or_file_without_text_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no .txt, .gz, .xz file"):
        list(corpora.documents(tmp_path))
    (tmp_path / "a.pdf").write_text("x")
    with pytest.raises(ValueError, match="cannot read '.pdf'"):
        list(corpora.documents(tmp_path / "a.pdf"))


@pytest.fixture
def library(tmp_path, monkeypatch):
    """A library in a folder below one named tests, in the place of those installed here."""
    root = tmp_path / "tests" / "library"
    (root / "tests").mkdir(parents=True)
    monkeypatch.setattr(corpora, "LIBRARIES", ())
    monkeypatch.setattr(corpora.inspect, "getfile", lambda module: str(root / "ast.py"))
    return root


def test_docstrings_are_the_prose_of_a_librarys_own_files(library):
    prose = "Return the larger one of two numbers that are given."
    (library / "a.py").write_text(f'def f():\n    """{prose}\n\n    >>> f()\n    """\n')
    (library / "test_a.py").write_text(f'"""{prose} And more words of a test."""')
    (library / "tests" / "b.py").write_text(f'"""{prose} And more words of a test."""')
    (library / "broken.py").write_text("def f(:")
    assert list(corpora.docstrings()) == [prose]


def test_docstrings_are_found_wherever_a_definition_may_stand(library):
    """In the order of `ast.walk`, which looks at every node."""
    code = Path(typing.__file__).read_text() + """
match 0:
    case 0:
        async def deep():
            "This docstring stands below a case of a match statement."
try:
    with open("a"):
        class A:
            "This docstring stands below a try and a with statement."
except* OSError:
    def b():
        "This docstring stands below an except of a try statement."
else:
    for i in range(2):
        def c(): "This docstring stands below an else of a try statement."
finally:
    while 0:
        def d(): "This docstring stands below a finally and a while."
"""
    (library / "a.py").write_text(code)
    documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    found = [ast.get_docstring(node) for node in ast.walk(ast.parse(code)) if isinstance(node, documented)]
    assert [ast.get_docstring(node) for node in corpora._documented(library / "a.py")] == found
    assert sum("This docstring stands below" in (text or "") for text in found) == 5
    assert gc.isenabled()


def test_a_librarys_bad_escapes_are_its_own_concern(library):
    (library / "a.py").write_text('"""Match a digit with the pattern of this long line."""\nx = "\\d"\n')
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(list(corpora.docstrings())) == 1


# ---- the Hub

WIKITEXT = ["", " = Bridges = \n", "", " A well @-@ known bridge of 1 @,@ 200 m . \n", " = = History = = \n", "",
            " It stood . \n", "", " = Rivers = \n", " A river . \n"]
WIKIPEDIA = ["The sea is wide.\n\nIt is deep.\n", "A hill is high."]
READ = """
import json, sys
from bert_course import corpora
print(json.dumps([list(corpora.documents(name)) for name in sys.argv[1:]]))
"""


def in_a_process(endpoint, home, *arguments):
    environment = stand_in.environment(endpoint, home) | {"HF_DATASETS_CACHE": str(home / "datasets")}
    return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True)


def test_data_sets_of_the_hub_are_streamed_as_documents(tmp_path):
    """From Parquet files at the pinned commits (a repository that is not pinned: at the commit in its name)."""
    other = "someone/letters", "a" * 40
    repositories = {}
    contents = [WIKITEXT, WIKIPEDIA, ["A letter.", "Another."]]
    configurations = ["wikitext-103-raw-v1", "20231101.en", "all"]
    for (name, revision), configuration, rows in zip([*corpora.HUB.items(), other], configurations, contents):
        folder = repositories["datasets", name, revision] = tmp_path / name
        (folder / configuration).mkdir(parents=True)
        for i, part in enumerate([rows[: len(rows) // 2], rows[len(rows) // 2 :]]):
            pq.write_table(pa.table({"text": part}), folder / configuration / f"train-{i:05}-of-00002.parquet")
        (folder / "README.md").write_text(
            f'---\nconfigs:\n- config_name: "{configuration}"\n  data_files:\n  - split: train\n'
            f"    path: {configuration}/train-*\n---\n"
        )
    names = ["hub:Salesforce/wikitext:wikitext-103-raw-v1", "hub:wikimedia/wikipedia:20231101.en"]
    names.append(f"hub:someone/letters:all@{'a' * 40}")
    with stand_in.hub(repositories) as (endpoint, _):
        done = in_a_process(endpoint, tmp_path, "-c", READ, *names)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [
        [["A well-known bridge of 1,200 m .", "It stood ."], ["A river ."]],
        [["The sea is wide.", "It is deep."], ["A hill is high."]],
        [["A letter."], ["Another."]],
    ]


def test_a_hub_that_is_down_is_said_in_one_line(tmp_path):
    code = "import sys, time; time.sleep = print; from bert_course import cli; sys.exit(cli.main())"  # no pause between two tries
    command = ["-c", code, "pretrain", "--steps", "1", "--output", str(tmp_path / "run")]
    done = in_a_process(stand_in.DOWN, tmp_path, *command, "--corpus", "hub:wikimedia/wikipedia:20231101.en")
    line = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert line.startswith("bert-course: hub:wikimedia/wikipedia:20231101.en could not be read from the Hub (ConnectionError")
    assert line.endswith("try again, or take text of this machine: docstrings, a file or a folder.")


@pytest.mark.parametrize("name, complaint", [
    ("hub:wikipedia", "expected hub:OWNER/NAME:CONFIGURATION"),
    ("hub:someone/letters:all", "add the commit that is to be read, hub:someone/letters:all@COMMIT"),
])
def test_an_incomplete_name_is_refused(name, complaint):
    with pytest.raises(ValueError, match=complaint):
        next(corpora.documents(name))


# ---- token ids on disk


@pytest.fixture
def tokenizer():
    return WordPieceTokenizer([*SPECIAL_TOKENS, *"abcdefgh.", *(f"##{letter}" for letter in "abcdefgh")])


@pytest.fixture
def text(tmp_path, monkeypatch):
    """100 documents, in shards of 16 and chunks of 4, every tenth held out."""
    monkeypatch.setattr(shards, "SHARD", 16)
    monkeypatch.setattr(shards, "CHUNK", 4)
    monkeypatch.setattr(shards, "HELD_OUT", 10)
    dice = random.Random(0)

    def document():
        return "\n".join(" ".join(dice.choices("abcdefgh", k=dice.randint(1, 9))) + "." for _ in range(dice.randint(1, 5)))

    documents = [document() for _ in range(100)]
    documents[20] = "[SEP] [PAD]\n[CLS]"  # what is left has no token
    documents[30] = "ab [MASK] c[SEP]d."
    path = tmp_path / "text.txt"
    path.write_text("\n\n".join(documents))
    return path


def numbered(corpus, tokenizer, *args):
    return list(shards.numbered_chunks(corpus, tokenizer, *args))


def test_shards_hold_what_the_tokenizer_gives_and_marks_in_the_text_are_left_out(text, tokenizer, tmp_path):
    stored = list(Shards(text, tokenizer, tmp_path / "cache"))
    assert len(stored) == 100 and stored[20] == []
    assert stored[30] == [tokenizer.encode("ab cd.".replace("cd", "c d"))]
    for document, ids in zip(corpora.documents(text), stored):
        if not any(mark in " ".join(document) for mark in SPECIAL_TOKENS):
            assert ids == [tokenizer.encode(paragraph) for paragraph in document]


@pytest.mark.parametrize("held_out", [False, True])
def test_chunks_from_shards_are_those_from_text(text, tokenizer, tmp_path, held_out):
    stored = Shards(text, tokenizer, tmp_path / "cache")
    for first, step in [(0, 1), (3, 1), (1, 2), (0, 7)]:
        assert numbered(stored, tokenizer, held_out, first, step) == numbered(text, tokenizer, held_out, first, step)
    assert [n for n, _ in numbered(stored, tokenizer, held_out)] == list(range(3 if held_out else 23))


def test_a_corpus_is_tokenized_once(text, tokenizer, tmp_path, monkeypatch):
    first = Shards(text, tokenizer, tmp_path / "cache")
    assert list(islice(first, 20))  # two shards of seven
    assert len(list(first.folder.glob("*.tokens"))) == 2
    first.complete()
    before = list(first)
    monkeypatch.setattr(corpora, "documents", None)
    assert list(Shards(text, tokenizer, tmp_path / "cache")) == before


def test_other_text_vocabulary_or_case_is_another_cache(text, tokenizer, tmp_path):
    folders = [Shards(text, tokenizer, tmp_path).folder]
    folders += [Shards(text, WordPieceTokenizer(tokens, case), tmp_path).folder
                for tokens, case in ((tokenizer.tokens, False), ([*tokenizer.tokens, "ab"], True))]
    text.write_text(text.read_text() + "\n\nA new document.")
    folders += [Shards(text, tokenizer, tmp_path).folder, Shards("docstrings", tokenizer, tmp_path).folder]
    assert len({*folders}) == 5


@pytest.mark.parametrize("damage", ["cut", "flipped", "gone", "no JSON", "half JSON"])
def test_a_damaged_shard_is_noticed_and_made_again(text, tokenizer, tmp_path, capsys, damage):
    before = list(Shards(text, tokenizer, tmp_path))
    path = sorted(tmp_path.rglob("*.tokens"))[3]
    content, about = bytearray(path.read_bytes()), path.with_suffix(".json")
    if damage == "cut":
        path.write_bytes(content[:-3])
    elif damage == "flipped":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    else:
        {"gone": path.unlink, "no JSON": about.unlink, "half JSON": lambda: about.write_text('{"sha')}[damage]()
    assert list(Shards(text, tokenizer, tmp_path)) == before
    said = capsys.readouterr().err
    assert said == ("" if damage == "no JSON" else f"{path} is damaged: it is made again.\n")
    assert list(Shards(text, tokenizer, tmp_path)) == before and not capsys.readouterr().err


def test_large_vocabularies_have_ids_of_32_bits(text, tokenizer, tmp_path):
    large = WordPieceTokenizer([*SPECIAL_TOKENS, *(f"x{i}" for i in range(70_000)), *tokenizer.tokens[5:]])
    stored = list(Shards(text, large, tmp_path))
    assert max(t for d in stored for s in d for t in s) > 70_000
    assert [[large.tokens[t] for t in s] for s in stored[0]] == [large.tokenize(p) for p in next(corpora.documents(text))]


def test_a_full_disk_leaves_no_half_shard(text, tokenizer, tmp_path, monkeypatch):
    """The write is made to fail as on a full disk (ENOSPC)."""
    stored = Shards(text, tokenizer, tmp_path / "cache")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", lambda path, content: full(path))
        with pytest.raises(OSError, match="No space left on device"):
            stored.complete()
    assert not list(stored.folder.iterdir())
    assert len(list(Shards(text, tokenizer, tmp_path / "cache"))) == 100


def test_a_text_that_broke_off_is_read_from_its_start_again(text, tokenizer, tmp_path, monkeypatch):
    stored, whole = Shards(text, tokenizer, tmp_path / "cache"), corpora.documents

    def broken(source):
        yield from islice(whole(source), 40)
        raise OSError("the line went dead")

    with monkeypatch.context() as patch:
        patch.setattr(corpora, "documents", broken)
        with pytest.raises(OSError, match="went dead"):
            list(stored)
    assert len(list(stored)) == 100


def full(path):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks Linux for the peak")
def test_memory_does_not_grow_with_the_corpus(tmp_path):
    """Tokenized and read through once: ten times the text, which alone is 27 MB more, at about the same peak."""
    code = """
import sys
from pathlib import Path
from bert_course import data_path
from bert_course.shards import Shards, numbered_chunks
from bert_course.wordpiece import WordPieceTokenizer
tokenizer = WordPieceTokenizer.from_pretrained(data_path("bert-course-mini"))
for _ in numbered_chunks(Shards(sys.argv[1], tokenizer, sys.argv[2]), tokenizer, False):
    pass
[peak] = [line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
print(int(peak) / 1024)
"""
    dice, peaks = random.Random(0), []
    words = "the river runs from hills to sea and nobody has seen where it begins".split()
    for megabytes in (3, 30):
        path = tmp_path / f"{megabytes}.txt"
        paragraphs = (" ".join(dice.choices(words, k=20)) + "." for _ in range(megabytes * 10_000))
        path.write_text("\n".join(p + "\n" * (i % 30 == 29) for i, p in enumerate(paragraphs)))
        assert path.stat().st_size > megabytes * 9e5
        command = [sys.executable, "-c", code, str(path), str(tmp_path / "cache")]
        peaks.append(float(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    assert peaks[1] < peaks[0] + 8
