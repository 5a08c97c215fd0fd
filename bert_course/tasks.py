"""Labelled datasets, read and checked. A bad line is named, not skipped."""

import csv
from pathlib import Path

from . import data_path

SENTIMENT = {0: "negative", 1: "positive"}
SPLITS = ("train", "validation", "test", "challenge")
SHIFTED = ("software", "books", "courses")  # domains of data/reviews that only the splits test and challenge have
TWINS = ("negation", "contrast", "mixed")  # cases in which the two reviews of a pair are twins, in similar words


def load(task: str):
    """A dataset written for this course, as a `datasets.DatasetDict` with splits train, validation, test and challenge.

    "sentiment": data/reviews, with columns text, label (0 negative, 1 positive), case, domain, pair.
    """
    from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

    if task != "sentiment":
        raise ValueError(f"no task '{task}'; the course has: sentiment.")
    folder = data_path("reviews")
    columns = {name: Value("string") for name in ("text", "label", "case", "domain", "pair")}
    features = Features(columns | {"label": ClassLabel(names=list(SENTIMENT.values()))})
    return DatasetDict(
        {split: Dataset.from_list(read_reviews(folder / f"{split}.csv"), features=features) for split in SPLITS}
    )


def read_reviews(path: str | Path, labels: dict[int, str] = SENTIMENT) -> list[dict]:
    """Rows of a CSV file with the columns text and label and any others; label names become ids.

    Raises:
        ValueError: names file and line of an unknown label, a missing column, a missing text or a broken row; or the file
            is not UTF-8.
    """
    path = Path(path)
    ids = {name: i for i, name in labels.items()}
    rows = []
    with open(path, encoding="utf-8-sig", newline="") as file:  # Excel writes a byte order mark
        reader = csv.DictReader(file, strict=True)
        try:
            missing = {"text", "label"} - set(reader.fieldnames or [])
            if missing:
                found = ", ".join(reader.fieldnames or []) or "nothing: the file is empty"
                raise ValueError(f"{path} lacks the column {' and '.join(sorted(missing))}; its first line has {found}.")
            for row in reader:
                where = f"{path} line {reader.line_num}"
                if None in row or None in row.values():
                    fields = len(reader.fieldnames)
                    raise ValueError(f"{where} does not have {fields} fields. A comma in a text needs quotes.")
                if row["label"] not in ids:
                    raise ValueError(f"{where}: label '{row['label']}' is not one of {', '.join(ids)}. Fix the line.")
                if not row["text"].strip():
                    raise ValueError(f"{where}: the text is empty. Fix or delete the line.")
                rows.append(row | {"label": ids[row["label"]]})
        except csv.Error as error:
            raise ValueError(f"{path} line {reader.line_num + 1}: {error}. Is a quote missing?") from None
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not UTF-8 ({error.reason}). Save it as UTF-8.") from None
    if not rows:
        raise ValueError(f"{path} has no rows below its header.")
    return rows


def read_senses(path: str | Path) -> list[dict]:
    """Rows of data/senses: text, word, pos, sense, and start, the character of the text where the word begins.

    Raises:
        ValueError: names file and line where the word does not stand at that place.
    """
    with open(path, encoding="utf-8", newline="") as file:
        rows = [row | {"start": int(row["start"])} for row in csv.DictReader(file)]
    for line, row in enumerate(rows, start=2):
        if row["text"][row["start"] :][: len(row["word"])].lower() != row["word"]:
            raise ValueError(f"{path} line {line}: '{row['word']}' does not begin at character {row['start']}. Fix the line.")
    return rows
