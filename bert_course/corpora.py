"""Sources of raw text: documents, each a list of paragraphs, read one after the other and never all at once.

Three sources: the documentation of the Python libraries on this machine, local text files (one paragraph per line, a
blank line between documents, the format of google-research/bert), and data sets of the Hugging Face Hub.
"""

import ast
import gc
import gzip
import importlib.util
import inspect
import lzma
import platform
import re
import warnings
import zlib
from collections import deque
from collections.abc import Iterable, Iterator
from importlib import metadata
from itertools import islice
from pathlib import Path

LIBRARIES = (
    "torch", "transformers", "datasets", "tokenizers", "accelerate",
    "numpy", "scipy", "pandas", "sklearn", "sympy", "networkx", "matplotlib",
)
OPENERS = {".txt": open, ".gz": gzip.open, ".xz": lzma.open}
HUB = {  # data sets with a column "text", and the commit that is read
    "Salesforce/wikitext": "b08601e04326c79dfdd32d625aee71d232d685c3",
    "wikimedia/wikipedia": "b04c8d1ceb2f5cd4588862100d08de323dccfbaa",
}
LONGEST = 100  # paragraphs; a longer document (a book) is read as several
OPEN = 16  # files of a folder that are read in turns


def documents(source: str | Path = "docstrings") -> Iterator[list[str]]:
    """Documents of a source, each a list of paragraphs.

    Args:
        source: "docstrings"; a .txt, .gz or .xz file, or a folder of them (16 at a time, in turns, a document from
            each); or "hub:REPOSITORY:CONFIGURATION", as in hub:Salesforce/wikitext:wikitext-103-raw-v1 and
            hub:wikimedia/wikipedia:20231101.en, streamed. A repository that is not in `HUB` needs "@COMMIT" at the end.
    Raises:
        FileNotFoundError: if there is no such file or folder.
        ValueError: if a folder holds no text file, or a file no text or no UTF-8, or the name of a data set is incomplete.
        OSError: if the Hub does not give the data set.
    """
    if source == "docstrings":
        yield from _docstring_documents()
    elif str(source).startswith("hub:"):
        yield from _documents(_hub_lines(str(source)))
    else:
        waiting = map(_file_documents, _files(source))
        streams = deque(islice(waiting, OPEN))
        while streams:
            stream = streams.popleft()
            if (document := next(stream, None)) is None:
                streams.extend(islice(waiting, 1))
            else:
                yield document
                streams.append(stream)


def write(documents: Iterable[list[str]], path: Path) -> None:
    """A text file that `documents` reads back."""
    path.write_text("\n\n".join("\n".join(document) for document in documents), encoding="utf-8")


def fingerprint(source: str | Path) -> list:
    """What changes when the text of a source does: versions of the libraries, sizes and times of the files, or the commit."""
    if source == "docstrings":
        distributions = {"sklearn": "scikit-learn"}
        found = [name for name in LIBRARIES if importlib.util.find_spec(name)]
        return [platform.python_version(), *([name, metadata.version(distributions.get(name, name))] for name in found)]
    if str(source).startswith("hub:"):
        return list(_hub_name(str(source)))
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in _files(source)]


def docstrings() -> Iterator[str]:
    """Paragraphs of English from the documentation of the libraries installed here, one by one."""
    for document in documents("docstrings"):
        yield from document


def _files(source: str | Path) -> list[Path]:
    path = Path(source)
    if not path.exists():
        raise FileNotFoundError(
            f"no corpus '{source}': expected 'docstrings', a text file, a folder of text files or hub:REPOSITORY:CONFIGURATION."
        )
    files = sorted(f for f in path.iterdir() if f.suffix in OPENERS) if path.is_dir() else [path]
    if not files:
        raise ValueError(f"{path} holds no {', '.join(OPENERS)} file.")
    return files


def _file_documents(path: Path) -> Iterator[list[str]]:
    if path.suffix not in OPENERS:
        raise ValueError(f"{path}: cannot read '{path.suffix}', only {', '.join(OPENERS)}.")
    empty = True
    try:
        with OPENERS[path.suffix](path, "rt", encoding="utf-8") as lines:
            for document in _documents(lines):
                yield document
                empty = False
    except (UnicodeDecodeError, lzma.LZMAError, gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise ValueError(f"{path} cannot be read as UTF-8 text: {error}. Is the file complete?") from None
    if empty:
        raise ValueError(f"{path} holds no text.")


def _documents(lines: Iterable[str]) -> Iterator[list[str]]:
    """Lines gathered into documents of at most `LONGEST` paragraphs; an empty line ends a document."""
    document = []
    for line in lines:
        if line.strip():
            document.append(line.strip())
        if document and (not line.strip() or len(document) == LONGEST):
            yield document
            document = []
    if document:
        yield document


def _hub_name(source: str) -> tuple[str, str, str]:
    """Repository, configuration and revision."""
    if not (match := re.fullmatch(r"hub:([^/:@]+/[^/:@]+):([^:@]+)(?:@(\w+))?", source)):
        raise ValueError(f"corpus '{source}': expected hub:OWNER/NAME:CONFIGURATION, as in hub:wikimedia/wikipedia:20231101.en.")
    repository, configuration, revision = match.groups()
    if not (revision := revision or HUB.get(repository)):
        raise ValueError(f"corpus '{source}': add the commit that is to be read, {source}@COMMIT; known are {', '.join(HUB)}.")
    return repository, configuration, revision


def _hub_lines(source: str) -> Iterator[str]:
    """Paragraphs, and an empty line after each document."""
    repository, configuration, revision = _hub_name(source)
    from datasets import load_dataset

    try:
        for row in load_dataset(repository, configuration, split="train", streaming=True, revision=revision):
            yield from _wikitext_lines(row["text"]) if repository == "Salesforce/wikitext" else _article_lines(row["text"])
    except Exception as error:
        raise OSError(
            f"{source} could not be read from the Hub ({type(error).__name__}: {error}). Check name and network and try again, "
            "or take text of this machine: docstrings, a file or a folder."
        ) from error


def _article_lines(row: str) -> Iterator[str]:
    """A row is a document."""
    yield from (line for line in row.split("\n") if line.strip())
    yield ""


def _wikitext_lines(row: str) -> Iterator[str]:
    """A row is a line: a paragraph, a heading, or empty. " = Title = " opens an article; " @-@ " stands for a hyphen."""
    if re.match(r" = [^=]", row):
        yield ""
    elif row.strip() and not row.startswith(" = "):
        yield re.sub(r" @([-,.])@ ", r"\1", row)


def _docstring_documents() -> Iterator[list[str]]:
    """One document per Python file: its docstrings' prose, without code, tables and section underlines."""
    roots = [Path(inspect.getfile(ast)).parent]
    for name in LIBRARIES:
        spec = importlib.util.find_spec(name)
        if spec and spec.submodule_search_locations:
            roots.append(Path(spec.submodule_search_locations[0]))
    for root in roots:
        for path in sorted(root.rglob("*.py")):
            inside = path.relative_to(root)
            if "site-packages" in inside.parts or "test" in path.name or "tests" in inside.parts:
                continue
            paragraphs = [p for node in _documented(path) for p in _prose(ast.get_docstring(node) or "")]
            if paragraphs:
                yield paragraphs


def _documented(path: Path) -> Iterator[ast.AST]:
    """Module, classes and functions of a Python file, outer ones first; nothing of a file that Python cannot read."""
    collecting = gc.isenabled()
    gc.disable()  # it would look through all objects of the tree, time and again: parsing takes half as long without
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a library's "\d" is no concern of ours
            nodes = deque([ast.parse(path.read_bytes())])
    except (SyntaxError, ValueError):
        return
    finally:
        if collecting:
            gc.enable()
    while nodes:
        node = nodes.popleft()
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node
        for block in ("body", "handlers", "orelse", "finalbody", "cases"):  # expressions, most of a tree, hold none of these
            nodes.extend(getattr(node, block, ()))


def _prose(docstring: str) -> Iterator[str]:
    for block in re.split(r"\n\s*\n", docstring):
        text = re.sub(r"\s+", " ", block).strip()
        words = text.split()
        looks_like_prose = len(words) >= 6 and sum(w.strip(".,;:()'\"`").isalpha() for w in words) >= 0.7 * len(words)
        if looks_like_prose and ">>>" not in text and "---" not in text:
            yield text
