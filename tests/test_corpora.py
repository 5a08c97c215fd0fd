"""Raw text: documents and paragraphs as they stand in the files, and a damaged file named instead of a traceback."""

import gzip
import lzma
import warnings

import pytest

from bert_course import corpora

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


def test_a_librarys_bad_escapes_are_its_own_concern(library):
    (library / "a.py").write_text('"""Match a digit with the pattern of this long line."""\nx = "\\d"\n')
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(list(corpora.docstrings())) == 1
