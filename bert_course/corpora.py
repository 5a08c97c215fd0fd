"""Sources of raw text: documents, each a list of paragraphs.

Two sources: the documentation of the Python libraries on this machine, and local text files (one paragraph per line, a
blank line between documents, the format of google-research/bert).
"""

import ast
import gzip
import importlib.util
import inspect
import lzma
import re
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path

LIBRARIES = (
    "torch", "transformers", "datasets", "tokenizers", "accelerate",
    "numpy", "scipy", "pandas", "sklearn", "sympy", "networkx", "matplotlib",
)
OPENERS = {".txt": open, ".gz": gzip.open, ".xz": lzma.open}
LONGEST = 100  # paragraphs; a longer document (a book) is read as several


def documents(source: str | Path = "docstrings") -> Iterator[list[str]]:
    """Documents of a source, each a list of paragraphs.

    Args:
        source: "docstrings", a .txt, .gz or .xz file, or a folder of them (read in turns, a document from each).
    Raises:
        FileNotFoundError: if there is no such file or folder.
        ValueError: if a folder holds no text file, or a file no text or no UTF-8.
    """
    if source == "docstrings":
        yield from _docstring_documents()
        return
    path = Path(source)
    if not path.exists():
        raise FileNotFoundError(f"no corpus '{source}': expected 'docstrings', a text file or a folder of text files.")
    files = sorted(f for f in path.iterdir() if f.suffix in OPENERS) if path.is_dir() else [path]
    if not files:
        raise ValueError(f"{path} holds no {', '.join(OPENERS)} file.")
    streams = [_file_documents(f) for f in files]
    while streams:
        for stream in list(streams):
            if (document := next(stream, None)) is None:
                streams.remove(stream)
            else:
                yield document


def docstrings() -> Iterator[str]:
    """Paragraphs of English from the documentation of the libraries installed here, one by one."""
    for document in documents("docstrings"):
        yield from document


def _file_documents(path: Path) -> Iterator[list[str]]:
    if path.suffix not in OPENERS:
        raise ValueError(f"{path}: cannot read '{path.suffix}', only {', '.join(OPENERS)}.")
    document, empty = [], True
    try:
        with OPENERS[path.suffix](path, "rt", encoding="utf-8") as lines:
            for line in lines:
                if line.strip():
                    document.append(line.strip())
                if document and (not line.strip() or len(document) == LONGEST):
                    yield document
                    document, empty = [], False
    except (UnicodeDecodeError, lzma.LZMAError, gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise ValueError(f"{path} cannot be read as UTF-8 text: {error}. Is the file complete?") from None
    if document:
        yield document
    elif empty:
        raise ValueError(f"{path} holds no text.")


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
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # a library's "\d" is no concern of ours
                    tree = ast.parse(path.read_bytes())
            except (SyntaxError, ValueError):
                continue
            documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
            places = (node for node in ast.walk(tree) if isinstance(node, documented))
            paragraphs = [p for node in places for p in _prose(ast.get_docstring(node) or "")]
            if paragraphs:
                yield paragraphs


def _prose(docstring: str) -> Iterator[str]:
    for block in re.split(r"\n\s*\n", docstring):
        text = re.sub(r"\s+", " ", block).strip()
        words = text.split()
        looks_like_prose = len(words) >= 6 and sum(w.strip(".,;:()'\"`").isalpha() for w in words) >= 0.7 * len(words)
        if looks_like_prose and ">>>" not in text and "---" not in text:
            yield text
