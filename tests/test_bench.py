"""`make bench` in small, and the results that are stored."""

import json
import math
from pathlib import Path
from statistics import median

import jsonschema
import pytest
import torch

from benchmarks import rounds, run, vocabulary
from bert_course.config import BertConfig
from bert_course.model import BertForPreTraining
from bert_course.objectives import pretraining_losses
from bert_course.wordpiece import SPECIAL_TOKENS, WordPieceTokenizer

RESULTS = Path(run.__file__).parent / "results"
SCHEMA = json.loads((RESULTS / "schema.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def results():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(run.BATCH_TOKENS, "cpu", 256)
        patch.setitem(run.MATRIX, "cpu", (256, 1))
        return json.loads(json.dumps(run.run("docstrings", "cpu", [("tiny", 32)], count=2, rows=16, texts=3, rounds=2)))


def test_what_is_measured_is_what_the_schema_says(results):
    jsonschema.validate(results, SCHEMA)


def test_all_contenders_read_the_same_tokens(results):
    pretraining, *_ = results["measurements"]
    assert len(pretraining["contenders"]) == 3
    for laps in pretraining["contenders"].values():
        assert laps["tokens"] == [pretraining["amount"]] * 2


def test_both_say_the_same_of_a_text(results):
    assert results["measurements"][-1]["largest_difference"] < 1e-4


def test_the_table_is_computed_from_the_rounds(results):
    header, _, *lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in run.table(results).splitlines()]
    contenders = [(one["what"], name) for one in results["measurements"] for name in one["contenders"]]
    assert [(line[0], line[1]) for line in lines] == contenders and len(contenders) == 3 + 3 + 2
    assert {len(line) for line in lines} == {len(header)}
    for one in results["measurements"]:
        for name, laps in one["contenders"].items():
            [line] = [line for line in lines if line[:2] == [one["what"], name]]
            assert line[2] == f"{one['amount'] / median(laps['seconds']):,.0f} {one['unit']}"
            a, b = (theirs / mine for mine, theirs in zip(one["contenders"]["bert_course"]["seconds"], laps["seconds"]))
            expected = "" if name == "bert_course" else f"{(a + b) / 2:.2f} ({min(a, b):.2f} to {max(a, b):.2f})"
            assert line[3] == expected
            assert bool(line[5]) == ("tokens" in laps) and bool(line[6]) == bool(line[7]) == ("milliseconds" in laps)


def test_the_operations_are_those_that_torch_counts():
    from torch.utils.flop_counter import FlopCounterMode

    torch.manual_seed(0)
    config = BertConfig.preset("mini", vocab_size=8192)
    batch = {"input_ids": torch.randint(5, 8192, (4, 64)), "attention_mask": None, "token_type_ids": None}
    batch |= {"labels": torch.full((4, 64), -100), "next_sentence_label": torch.zeros(4, dtype=torch.long)}
    batch["labels"][:, 1:64:8] = 7  # 8 of 64
    model = BertForPreTraining(config)
    with FlopCounterMode(display=False) as counter:
        output = model.bert(batch["input_ids"], output_attentions=True)
        chosen = (batch["labels"] != -100).flatten()
        model.cls.predictions(output.last_hidden_state.flatten(0, 1)[chosen]).sum().backward()
    expected = 256 * run.flops_per_token(config, [64] * 4, mask_rate=8 / 64)
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.01)
    with FlopCounterMode(display=False) as counter:
        sum(pretraining_losses(model, batch)[:2]).backward()
    assert counter.get_total_flops() < expected  # the fast path does less


def failing(lap, device):
    lap()
    raise ValueError("no")


def test_a_contender_that_fails_is_named():
    with pytest.raises(RuntimeError, match="'one' failed"):
        rounds.interleave({"one": (failing, {})}, 1, "cpu")


def test_stored_results_fit_the_schema_and_give_a_table():
    for path in set(RESULTS.glob("*.json")) - {RESULTS / "schema.json"}:
        stored = json.loads(path.read_text(encoding="utf-8"))
        jsonschema.validate(stored, SCHEMA)
        assert path.name.startswith(stored["date"]) and "bert_course" in run.table(stored)


def test_the_loss_of_a_word_is_that_of_all_its_pieces():
    """A model that knows nothing has ln V for each piece; here are words of one piece and of three."""
    tokenizer = WordPieceTokenizer([*SPECIAL_TOKENS, "a", "b", "##b"])
    config = BertConfig(8, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    model = BertForPreTraining(config).eval()
    with torch.no_grad():
        model.cls.predictions.decoder.weight.zero_()
    for word, pieces in (("a", 1), ("bbb", 3)):
        loss, right = vocabulary.word_loss(model, tokenizer, [f"{word} {word}", word, "\x00"])
        assert loss == pytest.approx(pieces * math.log(8)) and right in (0, 1)
