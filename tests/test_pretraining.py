"""Masking, pairs, batches and the loop: what the paper says, counted."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch

from bert_course import pretraining
from bert_course.checkpoint import from_pretrained, read_tensors
from bert_course.config import BertConfig
from bert_course.model import BertForPreTraining
from bert_course.pretraining import Recipe, mask_tokens, pair_batches, pretrain, sentence_pairs
from bert_course.wordpiece import train_wordpiece

WORDS = "the a river bank money tree walks sings under over green small old new quiet loud morning night bread stone".split()


def document(rng: random.Random, sentences: int) -> list[str]:
    return [" ".join(rng.choices(WORDS, k=rng.randint(3, 12))) + "." for _ in range(sentences)]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    rng = random.Random(0)
    path = tmp_path_factory.mktemp("corpus") / "text.txt"
    path.write_text("\n\n".join("\n".join(document(rng, rng.randint(3, 20))) for _ in range(600)))
    return path


@pytest.fixture(scope="module")
def tokenizer(corpus):
    return train_wordpiece(corpus.read_text().splitlines(), 60)


CONFIG = dict(
    hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, max_position_embeddings=64,
    hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.0,
)


def test_masking_shares():
    """15% chosen, of these 80% [MASK], 10% random, 10% kept: each within four standard deviations."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 1000, (400, 500), generator=generator)
    special = torch.zeros_like(ids, dtype=torch.bool)
    special[:, [0, 250, 499]] = True
    masked, labels = mask_tokens(ids, special, 1000, 4, generator=generator)
    chosen = labels != -100
    assert not chosen[special].any()
    assert torch.equal(masked[~chosen], ids[~chosen]) and torch.equal(labels[chosen], ids[chosen])
    n, k = (~special).sum().item(), chosen.sum().item()

    def within(count, total, p):
        return abs(count - total * p) < 4 * (total * p * (1 - p)) ** 0.5

    assert within(k, n, 0.15)
    as_mask, same = masked[chosen] == 4, masked[chosen] == ids[chosen]
    assert within(as_mask.sum().item(), k, 0.8 + 0.1 / 1000)
    assert within(same.sum().item(), k, 0.1 + 0.1 / 1000)
    random_tokens = masked[chosen][~as_mask & ~same]
    assert random_tokens.unique().numel() > 900  # spread over the vocabulary


def test_masking_always_leaves_something_to_predict():
    ids = torch.tensor([[2, 7, 3, 0], [2, 8, 3, 0]])
    special = torch.tensor([[True, False, True, True]] * 2)
    _, labels = mask_tokens(ids, special, 100, 4, rate=0.01)
    assert (labels != -100).sum(1).tolist() == [1, 1]
    with pytest.raises(ValueError, match="a row holds special tokens only"):
        mask_tokens(ids, torch.ones_like(special), 100, 4)


def test_pairs_follow_the_paper():
    """Half of the second parts are random, no pair is too long, a tenth is short; the true ones do follow."""
    rng = random.Random(0)
    documents, token = [], 0
    for _ in range(300):  # every token occurs once, so that its neighbour in the text is known
        sentences = []
        for _ in range(rng.randint(5, 40)):
            n = rng.randint(4, 15)
            sentences.append(list(range(token, token + n)))
            token += n
        documents.append(sentences)
    where = {t: d for d, document in enumerate(documents) for s in document for t in s}
    pairs = list(sentence_pairs(documents, 61, rng))
    assert len(pairs) > 1000
    share = sum(r for _, _, r in pairs) / len(pairs)
    assert 0.45 < share < 0.62  # a little over one half: a document's last sentence has no successor
    for a, b, is_random in pairs:
        assert 1 <= len(a) and 1 <= len(b) and len(a) + len(b) <= 61
        if is_random:
            assert where[a[0]] != where[b[0]]
        else:
            assert where[a[0]] == where[b[0]] and b[0] > a[-1] and b[-1] - a[0] < 61 + 2 * 15 + 61
    assert 0.05 < sum(len(a) + len(b) < 45 for a, b, _ in pairs) / len(pairs) < 0.25


def test_batches_are_what_the_model_reads(tokenizer):
    rng = random.Random(0)
    documents = [[tokenizer.encode(s) for s in document(rng, 12)] for _ in range(20)]
    batches = pair_batches(documents, tokenizer, 32, 256, rng)
    assert {len(b["input_ids"]) for b in batches} <= {*range(1, 9)}
    for batch in batches:
        for ids, segments in zip(batch["input_ids"].tolist(), batch["token_type_ids"].tolist()):
            end = ids.index(tokenizer.pad_id) if tokenizer.pad_id in ids else len(ids)
            first, second = (i for i, t in enumerate(ids) if t == tokenizer.sep_id)
            assert ids[0] == tokenizer.cls_id and second == end - 1 and end <= 32
            assert segments == [0] * (first + 1) + [1] * (end - first - 1) + [0] * (len(ids) - end)


def recipe(**changes) -> Recipe:
    return Recipe(**({"steps": 24, "phases": ((1.0, 32, 0.15),), "batch_tokens": 256, "learning_rate": 5e-3} | changes))


def run(corpus, folder, tokenizer, **changes):
    config = BertConfig(vocab_size=tokenizer.vocab_size, **CONFIG)
    resume = changes.pop("resume", False)
    return pretrain(corpus, folder, tokenizer, config, recipe(**changes), resume=resume, progress_bar=False)


def test_pretraining_learns(corpus, tokenizer, tmp_path):
    run(corpus, tmp_path / "run", tokenizer, steps=200)
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == list(range(20, 201, 20))
    assert log[-1]["mlm_loss"] < log[0]["mlm_loss"] - 0.3


def test_resume_goes_on_as_if_nothing_had_happened(corpus, tokenizer, tmp_path, monkeypatch):
    """Stopped by Ctrl-C in the middle, resumed: the same weights, bit for bit, dropout and optimizer included."""
    monkeypatch.setattr(pretraining, "bf16_is_faster", lambda device: False)
    whole = run(corpus, tmp_path / "whole", tokenizer)
    losses, calls = pretraining.pretraining_losses, []

    def interrupted(model, batch):
        calls.append(1)
        if len(calls) == 11:
            raise KeyboardInterrupt
        return losses(model, batch)

    monkeypatch.setattr(pretraining, "pretraining_losses", interrupted)
    run(corpus, tmp_path / "parts", tokenizer)
    assert json.loads((tmp_path / "parts" / "training_state.json").read_text())["step"] == 10
    resumed = run(corpus, tmp_path / "parts", tokenizer, resume=True)
    for (name, a), b in zip(whole.named_parameters(), resumed.parameters()):
        assert torch.equal(a, b), name


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for a child process")
def test_ctrl_c_stops_cleanly(corpus, tokenizer, tmp_path):
    tokenizer.save(tmp_path / "vocab.txt")
    command = [
        sys.executable, "-m", "bert_course", "pretrain", "--corpus", str(corpus), "--vocab", str(tmp_path / "vocab.txt"),
        "--output", str(tmp_path / "run"), "--preset", "tiny", "--steps", "100000", "--batch-tokens", "512",
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    log = tmp_path / "run" / "log.jsonl"
    deadline = time.monotonic() + 120
    while not (log.exists() and log.read_text()) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and "go on with --resume" in out, err
    state = json.loads((tmp_path / "run" / "training_state.json").read_text())
    assert state["step"] >= 20
    assert from_pretrained(BertForPreTraining, tmp_path / "run").config.hidden_size == 128
    assert set(read_tensors(tmp_path / "run" / "optimizer.safetensors"))


def test_a_run_is_never_overwritten(corpus, tokenizer, tmp_path):
    run(corpus, tmp_path, tokenizer, steps=1)
    with pytest.raises(FileExistsError, match="already holds a pretraining run"):
        run(corpus, tmp_path, tokenizer)
    with pytest.raises(ValueError, match="no run to resume"):
        run(corpus, tmp_path / "elsewhere", tokenizer, resume=True)


def test_bad_input_is_refused(corpus, tokenizer, tmp_path):
    with pytest.raises(ValueError, match="vocabulary has .* pieces, the config only 20"):
        pretrain(corpus, tmp_path, tokenizer, BertConfig(vocab_size=20, **CONFIG), recipe())
    (tmp_path / "empty.txt").write_text("\n\n")
    with pytest.raises(ValueError, match="holds no text"):
        run(tmp_path / "empty.txt", tmp_path / "a", tokenizer)
    (tmp_path / "latin.txt").write_bytes("Müßiggang".encode("latin-1"))
    with pytest.raises(ValueError, match="cannot be read as UTF-8"):
        run(tmp_path / "latin.txt", tmp_path / "b", tokenizer)
    with pytest.raises(FileNotFoundError, match="no corpus 'nowhere'"):
        run("nowhere", tmp_path / "c", tokenizer)
    with pytest.raises(ValueError, match="either steps or minutes"):
        Recipe()
    with pytest.raises(ValueError, match="add up to 0.5"):
        Recipe(steps=1, phases=((0.5, 32, 0.15),))


def test_schedule():
    r = recipe(warmup=0.1, phases=((0.2, 32, 0.3), (0.8, 64, 0.15)))
    assert [r.rate_factor(p) for p in (0.0, 0.05, 0.1, 1.0)] == [0.0, 0.5, 1.0, 0.0]
    assert r.phase(0.0) == (32, 0.3) and r.phase(0.2) == (64, 0.15) and r.phase(1.0) == (64, 0.15)


def test_held_out_documents_are_never_trained_on(corpus, tokenizer):
    train, held_out = (
        [tuple(map(tuple, d)) for chunk in pretraining.tokenized_chunks(corpus, tokenizer, h) for d in chunk] for h in (False, True)
    )
    assert len(held_out) == 600 // pretraining.HELD_OUT and len(train) == 600 - len(held_out)
    assert not set(train) & set(held_out)
