"""The source "hub": public data and google-bert/bert-base-uncased, from a stand-in of the Hub on this machine."""

import ast
import json
import subprocess
import sys

import nbformat
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import stand_in
import torch
from safetensors.torch import save_file

from bert_course import checkpoint, cli, data_path, stamp, tasks
from bert_course.config import BertConfig
from bert_course.model import BertForPreTraining

ROWS = {  # with the columns and label ids of the real files
    "sentiment": [{"idx": i, "sentence": f"a film of {i} hours", "label": i % 2} for i in range(40)],
    "paraphrase": [
        {"sentence1": f"he came {i} times", "sentence2": f"he was there {i} times", "label": i % 2, "idx": i} for i in range(40)
    ],
    "entities": [
        {"id": str(i), "tokens": ["EU", "rejects", "German", "call"], "pos_tags": [22, 42, 16, 21],
         "chunk_tags": [11, 21, 11, 12], "ner_tags": [3, 0, 7, 0]} for i in range(40)
    ],
    "passages": [
        {"id": str(i), "title": "Normans", "context": "The Normans came from the north.", "question": "Who came?",
         "answers": {"text": ["The Normans"][: i % 2], "answer_start": [0][: i % 2]}} for i in range(40)
    ],
}


def parquet(rows, label):
    """A table as the Hub has it: 32-bit offsets of answers, and the features of `datasets` in the metadata."""
    table = pa.Table.from_pylist(rows)
    if label:
        names = {"sentiment": ["negative", "positive"], "paraphrase": ["not_equivalent", "equivalent"]}[label]
        features = {name: {"dtype": "string", "_type": "Value"} for name in table.column_names}
        features |= {"idx": {"dtype": "int64", "_type": "Value"}, "label": {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    return table


@pytest.fixture(scope="module")
def repositories(tmp_path_factory):
    """The four data sets, and bert-base-uncased in small: its files, 40 pieces, random weights."""
    found = {}
    for task, (name, revision, files, _, splits) in tasks.HUB.items():
        folder = tmp_path_factory.mktemp(task)
        for split in (*splits, "surplus"):
            path = folder / files.format(split)
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(parquet(ROWS[task], task if task in ("sentiment", "paraphrase") else None), path)
        (folder / "README.md").write_text("# A card")
        found["datasets", name, revision] = folder
    folder = tmp_path_factory.mktemp("model")
    tokens = [token for token in (data_path("bert-course-mini") / "vocab.txt").read_text(encoding="utf-8").split("\n") if token]
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    model = BertForPreTraining(BertConfig(vocab_size=len(tokens), **shape))
    tensors = {name: tensor for name, tensor in model.state_dict().items() if name not in checkpoint.TIED}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps({"architectures": ["BertForMaskedLM"]} | model.config.to_dict()))
    (folder / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": true}')
    (folder / "pytorch_model.bin").write_bytes(b"not to be downloaded")
    found["models", checkpoint.HUB_MODEL, checkpoint.HUB_REVISION] = folder
    return found


LOAD = """
import json, sys, time
time.sleep = lambda seconds: None  # huggingface_hub waits between two tries
from bert_course import tasks
for task in sys.argv[1:]:
    try:
        loaded = tasks.load(task, "hub")
    except FileNotFoundError as error:
        print(error)
        continue
    own = tasks.load(task)
    for split, table in loaded.items():
        assert table.features == own["train"].features, (table.features, own["train"].features)
    print(json.dumps({split: [len(table), table[1]] for split, table in loaded.items()}))
"""


def load(endpoint, home, *names):
    done = subprocess.run(
        [sys.executable, "-c", LOAD, *names], env=stand_in.environment(endpoint, home), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done


def test_every_task_has_the_same_columns_and_label_names_from_the_hub(repositories, tmp_path):
    with stand_in.hub(repositories, busy=3) as (endpoint, asked):  # the first three requests are in vain
        done = load(endpoint, tmp_path, *tasks.HUB)
    sentiment, paraphrase, entities, passages = map(json.loads, done.stdout.splitlines())
    assert sentiment == dict.fromkeys(["train", "validation"], [40, {"text": "a film of 1 hours", "label": 1}])
    pair = {"text": "he came 1 times", "text_pair": "he was there 1 times", "label": 1}
    assert paraphrase == dict.fromkeys(["train", "validation", "test"], [40, pair])
    sentence = {"tokens": ["EU", "rejects", "German", "call"], "ner_tags": [3, 0, 7, 0]}  # B-ORG, B-MISC
    assert entities == dict.fromkeys(["train", "validation", "test"], [40, sentence])
    assert passages["validation"] == [40, ROWS["passages"][1]] and set(passages) == {"train", "validation"}
    assert set(asked) == {files.format(split) for _, _, files, _, splits in tasks.HUB.values() for split in splits}
    name, revision, files, _, splits = tasks.HUB["sentiment"]
    size = sum((repositories["datasets", name, revision] / files.format(split)).stat().st_size for split in splits)
    assert f"Downloading stanfordnlp/sst2: 2 files, {size / 1e6:,.1f} MB." in done.stderr

    again = load(stand_in.DOWN, tmp_path, *tasks.HUB)  # the Hub is gone: from what was downloaded, with no word of it
    assert again.stdout == done.stdout and "Downloading" not in again.stderr


def test_a_hub_that_is_down_is_said_and_the_course_s_own_data_is_not_taken_instead(tmp_path):
    message = load(stand_in.DOWN, tmp_path, "sentiment").stdout
    assert message.startswith("stanfordnlp/sst2 could not be fetched from the Hub (")
    assert "Check the network and try again, or set BERT_COURSE_SOURCE=embedded to use the course's own data." in message


def test_a_hub_without_the_revision_is_said(repositories, tmp_path):
    name, revision, *_ = tasks.HUB["sentiment"]
    moved = {("datasets", name, "0" * 40): repositories["datasets", name, revision]}
    with stand_in.hub(moved) as (endpoint, _):
        assert load(endpoint, tmp_path, "sentiment").stdout.startswith("stanfordnlp/sst2 could not be fetched from the Hub (")


def test_fine_tuning_from_the_hub_on_the_command_line(repositories, tmp_path):
    with stand_in.hub(repositories) as (endpoint, asked):
        command = [sys.executable, "-m", "bert_course", "finetune", "--task", "sentiment", "--model", checkpoint.HUB_MODEL]
        command += ["--output", str(tmp_path / "tuned"), "--epochs", "1", "--batch-size", "32"]
        environment = stand_in.environment(endpoint, tmp_path / "cache") | {"BERT_COURSE_SOURCE": "hub"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "pytorch_model.bin" not in asked and "model.safetensors" in asked
    assert f"Downloading {checkpoint.HUB_MODEL}: 4 files, " in done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["epoch"] == 1
    assert cli.main(["predict", "--model", str(tmp_path / "tuned"), "--text", "A film."]) == 0


@pytest.mark.parametrize("number, task, score", [
    (12, "sentiment", "accuracy"), (13, "paraphrase", "f1"), (14, "entities", "f1"), (15, "passages", "exact_match")
])
def test_a_lesson_at_full_size(number, task, score, repositories, tmp_path):
    """The lesson's set-up, its imports and the one cell that uses the Hub, as they stand in the notebook."""
    [path] = (stamp.ROOT / "notebooks").glob(f"{number}_*.ipynb")
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    [cell] = [cell for cell in cells if "full-size" in cell.metadata.get("tags", [])]
    setup = "\n".join(line for line in cells[0].source.splitlines() if "%pip" not in line and not line.startswith("if "))
    name, revision, files, _, splits = tasks.HUB[task]
    with stand_in.hub(repositories) as (endpoint, asked):
        environment = stand_in.environment(endpoint, tmp_path) | {"BERT_COURSE_SOURCE": "hub", "BERT_COURSE_DEVICE": "cpu"}
        command = [sys.executable, "-c", "\n".join([setup, cells[1].source, cell.source])]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {"model.safetensors", *map(files.format, splits)} <= set(asked)
    told, found, *_ = done.stdout.splitlines()
    assert told.startswith("BERT_COURSE_SOURCE=hub: lessons 12 to 15 end on a model and data from the Hub")
    scores = ast.literal_eval(found)
    assert scores["rows"] == 40 and 0 <= scores[score] <= 1
