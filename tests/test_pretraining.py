"""Masking, pairs, batches and the loop: what the paper says, counted."""

import json
import os
import platform
import random
import re
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from scipy.stats import ks_2samp

from bert_course import checkpoint, files, pretraining, shards
from bert_course.checkpoint import from_pretrained, read_tensors
from bert_course.config import BertConfig
from bert_course.model import BertForPreTraining, parameter_groups
from bert_course.pretraining import Recipe, fill_mask, mask_tokens, pair_batches, pretrain, sentence_pairs
from bert_course.wordpiece import train_wordpiece

WORDS = "the a river bank money tree walks sings under over green small old new quiet loud morning night bread stone".split()


def sentences(rng: random.Random, count: int) -> list[str]:
    return [" ".join(rng.choices(WORDS, k=rng.randint(3, 12))) + "." for _ in range(count)]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    rng = random.Random(0)
    path = tmp_path_factory.mktemp("corpus") / "text.txt"
    path.write_text("\n\n".join("\n".join(sentences(rng, rng.randint(3, 20))) for _ in range(600)))
    return path


@pytest.fixture(scope="module")
def tokenizer(corpus):
    return train_wordpiece(corpus.read_text().splitlines(), 60)


@pytest.fixture(autouse=True)
def float32(monkeypatch):
    """And no time spent on finding out how fast bfloat16 is here."""
    monkeypatch.setattr(pretraining, "bfloat16_speedup", lambda device: 0.0)


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


def test_whole_words_are_masked_together_and_as_often():
    """All pieces of a chosen word, none of another; 15% of the words; a word that [SEP] cuts is two."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 1000, (400, 500), generator=generator)
    special = torch.zeros_like(ids, dtype=torch.bool)
    special[:, [0, 250, 499]] = True
    continues = (torch.rand(ids.shape, generator=generator) < 0.4) & ~special
    masked, labels = mask_tokens(ids, special, 1000, 4, generator=generator, continues=continues)
    chosen = labels != -100
    assert not chosen[special].any()
    inside = continues & ~special.roll(1, 1)  # the same word as the token before
    assert torch.equal(chosen[inside], chosen.roll(1, 1)[inside])
    first = ~inside & ~special
    words, k = first.sum().item(), (chosen & first).sum().item()
    assert abs(k - 0.15 * words) < 4 * (words * 0.15 * 0.85) ** 0.5
    after = continues & special.roll(1, 1)
    assert 0.05 < chosen[after].float().mean() < 0.3  # 800 of them, on their own
    share = (masked[chosen] == 4).float().mean().item()
    assert abs(share - 0.8) < 4 * (0.8 * 0.2 / chosen.sum().item()) ** 0.5


def test_nothing_is_predicted_at_special_tokens_or_padding(corpus, tokenizer):
    generator, marks = torch.Generator().manual_seed(0), [tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id]
    predictions = 0
    for chunk in pretraining.tokenized_chunks(corpus, tokenizer, held_out=False):
        for batch in pair_batches(chunk, tokenizer, 32, 256, random.Random(0)):
            ready = pretraining.masked_batch(batch, tokenizer, 0.5, generator, whole_words=True)
            chosen = ready["labels"] != -100
            predictions += int(chosen.sum())
            assert not torch.isin(batch["input_ids"][chosen], torch.tensor(marks)).any()
            assert torch.equal(ready["input_ids"][~chosen], batch["input_ids"][~chosen])
    assert predictions > 10_000


def test_static_masks_come_again_with_every_tenth_epoch_and_dynamic_ones_do_not(corpus, tokenizer):
    def seen(masking, epoch):
        r, state = recipe(masking=masking), {"step": epoch * 1000, "epoch": epoch, "chunk": 2, "batch": 0}
        batch, rate = next(pretraining.training_batches(corpus, tokenizer, r, state, lambda: 0.0))
        torch.manual_seed(state["step"])
        ready = pretraining.masked_batch(batch, tokenizer, rate, pretraining.mask_generator(r, state))
        return ready["input_ids"].tolist()

    assert seen("static", 3) == seen("static", 13) != seen("static", 4)
    assert seen("dynamic", 3) != seen("dynamic", 13)


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


def test_half_of_the_pairs_are_random_and_a_tenth_is_short():
    """Where there is a choice: sentences of five tokens, in documents so long that their ends do not count."""
    documents = [[[d] * 5] * 3000 for d in range(20)]
    pairs = list(sentence_pairs(documents, 60, random.Random(0)))
    n = len(pairs)

    def within(count, total, p):
        return abs(count - total * p) < 4 * (total * p * (1 - p)) ** 0.5

    assert n > 5000 and within(sum(r for _, _, r in pairs), n, 0.5)
    assert all((a[0] != b[0]) == r for a, b, r in pairs)
    # a short pair aims at 2 to 60 tokens, all alike; of these 54 aims fall below 56, where the others do not come
    assert within(sum(len(a) + len(b) < 56 for a, b, _ in pairs), n, 0.1 * 54 / 59)


@pytest.mark.parametrize("most", [29, 125])
def test_neither_the_lengths_of_a_pair_nor_its_end_give_its_label_away(most):
    """Sentences of 3 to 90 tokens that end with token 0, documents of 1 to 80 sentences."""
    rng = random.Random(0)
    documents = [
        [[1] * (min(int(3 + rng.paretovariate(1.2) * 8), 90) - 1) + [0] for _ in range(rng.randint(1, 80))] for _ in range(400)
    ]
    pairs = list(sentence_pairs(documents, most, random.Random(1)))

    def by_label(measure):
        return ([measure(a, b) for a, b, r in pairs if r == label] for label in (0, 1))

    for lengths in (lambda a, b: len(a), lambda a, b: len(b), lambda a, b: len(a) + len(b)):
        true, other = by_label(lengths)
        assert min(len(true), len(other)) > 2000
        assert ks_2samp(true, other).statistic < 0.06  # if the random part is filled up to the token: 0.09 and more
    true, other = (sum(ends) / len(ends) for ends in by_label(lambda a, b: b[-1] == 0))
    assert abs(true - other) < 0.05  # else 0.09 and more


def test_batches_are_what_the_model_reads(tokenizer):
    rng = random.Random(0)
    documents = [[tokenizer.encode(s) for s in sentences(rng, 12)] for _ in range(20)]
    batches = pair_batches(documents, tokenizer, 32, 256, rng)
    assert {len(b["input_ids"]) for b in batches} <= {*range(1, 9)}
    for batch in batches:
        for ids, segments in zip(batch["input_ids"].tolist(), batch["token_type_ids"].tolist()):
            end = ids.index(tokenizer.pad_id) if tokenizer.pad_id in ids else len(ids)
            first, second = (i for i, t in enumerate(ids) if t == tokenizer.sep_id)
            assert ids[0] == tokenizer.cls_id and second == end - 1 and end <= 32
            assert segments == [0] * (first + 1) + [1] * (end - first - 1) + [0] * (len(ids) - end)


@pytest.mark.parametrize("length", [32, 40])
@pytest.mark.parametrize("objective", ["mlm+nsp", "mlm"])
def test_a_full_row_is_as_long_as_the_phase_says(tokenizer, objective, length):
    document = [[tokenizer.vocab["a"]] * 200]
    batches = pair_batches([document, document], tokenizer, length, 256, random.Random(0), objective)
    assert max(batch["input_ids"].shape[1] for batch in batches) == length


def recipe(**changes) -> Recipe:
    return Recipe(**({"steps": 24, "phases": ((1.0, 32, 0.15, 256),), "learning_rate": 5e-3, "warm_start": False} | changes))


def run(corpus, folder, tokenizer, **changes):
    config = BertConfig(vocab_size=tokenizer.vocab_size, **CONFIG)
    resume = changes.pop("resume", False)
    return pretrain(corpus, folder, tokenizer, config, recipe(**changes), resume=resume, progress_bar=False)


def test_pretraining_learns(corpus, tokenizer, tmp_path):
    run(corpus, tmp_path / "run", tokenizer, steps=200)
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == list(range(20, 201, 20))
    assert log[-1]["mlm_loss"] < log[0]["mlm_loss"] - 0.3


def test_a_pretrained_model_reads_on(corpus, tokenizer, tmp_path):
    """The first step has a learning rate of zero: it leaves the weights as they came."""
    first = run(corpus, tmp_path / "first", tokenizer, steps=3)
    start, new = tmp_path / "first", BertConfig(vocab_size=tokenizer.vocab_size, **CONFIG | {"hidden_size": 32})
    second = pretrain(corpus, tmp_path / "second", tokenizer, new, recipe(steps=1, seed=1), start=start, progress_bar=False)
    assert second.config == first.config
    for (name, a), b in zip(first.named_parameters(), second.parameters()):
        assert torch.equal(a, b), name
    third = pretrain(corpus, tmp_path / "third", tokenizer, new, recipe(steps=2, seed=1), start=start, progress_bar=False)
    assert not torch.equal(next(first.parameters()), next(third.parameters()))
    with pytest.raises(ValueError, match="sequence length 128, the model positions for 64"):
        long = recipe(phases=((1.0, 128, 0.15, 256),))
        pretrain(corpus, tmp_path / "long", tokenizer, BertConfig(vocab_size=60), long, start=start, progress_bar=False)


def test_resume_goes_on_as_if_nothing_had_happened(corpus, tokenizer, tmp_path, monkeypatch):
    """Ctrl-C in the middle of a step, then resume: the same weights, bit for bit, dropout, phases, optimizer and log included."""
    settings = {"phases": ((0.35, 16, 0.15, 128), (0.65, 32, 0.15, 256)), "dropout": 0.1}
    whole = run(corpus, tmp_path / "whole", tokenizer, **settings)
    step, calls = torch.optim.AdamW.step, []

    def interrupted(self, *args):
        calls.append(1)
        if len(calls) == 10:
            signal.raise_signal(signal.SIGINT)
        return step(self, *args)

    monkeypatch.setattr(torch.optim.AdamW, "step", interrupted)
    run(corpus, tmp_path / "parts", tokenizer, **settings)
    assert json.loads((tmp_path / "parts" / "training_state.json").read_text())["step"] == 10
    resumed = run(corpus, tmp_path / "parts", tokenizer, resume=True, **settings)
    assert len(calls) == 24
    for (name, a), b in zip(whole.named_parameters(), resumed.named_parameters()):
        assert torch.equal(a, b[1]), name
    logs = [json.loads((tmp_path / folder / "log.jsonl").read_text()) for folder in ("whole", "parts")]
    assert logs[0] | {"seconds": 0} == logs[1] | {"seconds": 0}


def test_a_run_stopped_at_the_end_of_its_only_chunk_goes_on_with_the_next_epoch(corpus, tokenizer, tmp_path, monkeypatch):
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(corpus.read_text().split("\n\n")[:20]))
    [chunk] = pretraining.tokenized_chunks(text, tokenizer, held_out=False)
    last, calls = len(pair_batches(chunk, tokenizer, 32, 256, random.Random("0 0 0"))), []
    step = torch.optim.AdamW.step

    def interrupted(self, *args):
        calls.append(1)
        if len(calls) == last:
            signal.raise_signal(signal.SIGINT)
        return step(self, *args)

    monkeypatch.setattr(torch.optim.AdamW, "step", interrupted)
    run(text, tmp_path / "run", tokenizer, steps=last + 1)
    [[epoch, chunk, batch, _]] = json.loads((tmp_path / "run" / "training_state.json").read_text())["positions"]
    assert (epoch, chunk, batch) == (0, 0, last)
    run(text, tmp_path / "run", tokenizer, steps=last + 1, resume=True)
    assert len(calls) == last + 1


@pytest.mark.parametrize("changed, named", [
    ({"objective": "mlm"}, "objective mlm\\+nsp, not mlm"),
    ({"phases": ((1.0, 32, 0.3, 256),)}, r"phases \[\[1.0, 32, 0.15\]\], not \[\[1.0, 32, 0.3\]\]"),
    ({"masking": "static"}, "masking dynamic, not static"),
    ({"whole_words": True}, "whole_words False, not True"),
    ({"seed": 1}, "seed 0, not 1"),
    ({"corpus": "docstrings"}, "corpus .*text.txt, not docstrings"),
])
def test_a_run_is_resumed_with_its_own_settings(corpus, tokenizer, tmp_path, changed, named):
    run(corpus, tmp_path, tokenizer, steps=1)
    before = whole_files(tmp_path)
    with pytest.raises(ValueError, match=f"holds a run with {named}; resume with the same"):
        run(changed.pop("corpus", corpus), tmp_path, tokenizer, steps=2, resume=True, **changed)
    assert whole_files(tmp_path) == before


# A process of its own, that forks one for each run: a fork is quick, and SIGKILL leaves it no last word.
KILLED = """
import os, random, signal, sys, time
from pathlib import Path
import torch
from bert_course import plots, pretraining
from bert_course.config import BertConfig
from bert_course.wordpiece import WordPieceTokenizer

torch.set_num_threads(1)
torch.optim.AdamW([torch.zeros(1)])  # what is imported here, no fork has to import
pretraining.bfloat16_speedup = lambda device: 0.0
corpus, folder = sys.argv[1], Path(sys.argv[2])
tokenizer = WordPieceTokenizer.from_pretrained(folder)
config = BertConfig(vocab_size=tokenizer.vocab_size, **CONFIG)

def run(output, before=lambda: None, **changes):
    recipe = pretraining.Recipe(steps=21, phases=((1.0, 32, 0.15, 256),), learning_rate=5e-3, warm_start=False, dropout=0.1,
                                save_every=0.0, **changes)
    if (child := os.fork()) == 0:
        before()
        resume = (output / "training_state.json").exists()
        pretraining.pretrain(corpus, output, tokenizer, config, recipe, resume=resume, progress_bar=False)
        os._exit(0)
    return child

def killed(child):
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or status == 0
    return status != 0

def dying_at(call):  # of os.replace, by which each file of a checkpoint takes its place
    def before():
        replace, calls = os.replace, []
        def counted(*args):
            calls.append(args)
            if len(calls) == call:
                os.kill(os.getpid(), signal.SIGKILL)
            replace(*args)
        os.replace = counted
    return before

assert not killed(run(folder / "whole"))
moments = 0
for call in (9, 8, 9, 10, 11):  # model, config, state and its tensors: each is the next to be renamed once
    moments += killed(run(folder / "at renames", dying_at(call)))
while killed(run(folder / "at renames")):
    pass
times, state = 0, folder / "at random" / "training_state.json"
dice = random.Random(int(sys.argv[3]))
while times < 3:
    before = state.stat().st_mtime_ns if state.exists() else None
    child = run(folder / "at random")
    while not os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
        if state.exists() and state.stat().st_mtime_ns != before:  # it has got on by a step
            time.sleep(dice.uniform(0, 0.2))
            os.kill(child, signal.SIGKILL)
            break
        time.sleep(0.01)
    if not killed(child):
        break
    times += 1
assert times < 3 or not killed(run(folder / "at random"))
print(moments, times)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the test forks")
def test_killed_at_any_moment_and_resumed_it_ends_with_the_same_weights(corpus, tokenizer, tmp_path):
    """SIGKILL, again and again: between the files of a checkpoint, and at random moments; bit for bit in float32."""
    tokenizer.save_pretrained(tmp_path)
    code = KILLED.replace("**CONFIG", f"**{CONFIG}")
    command = [sys.executable, "-c", code, str(corpus), str(tmp_path), str(random.randrange(1000))]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    moments, times = map(int, done.stdout.split())
    assert moments == 5 and times >= 1
    whole = read_tensors(tmp_path / "whole" / "training_state.21.safetensors")
    for folder in ("at renames", "at random"):
        again = read_tensors(tmp_path / folder / "training_state.21.safetensors")
        assert whole.keys() == again.keys() and all(torch.equal(whole[name], again[name]) for name in whole)
        logs = [[json.loads(line) | {"seconds": 0} for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
                for name in ("whole", folder)]
        assert logs[0] == logs[1] and len(logs[0]) == 1
        assert not [path for path in (tmp_path / folder).glob("training_state.*") if path.stat().st_size == 0]


def whole_files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.name != "log.jsonl"}


@pytest.mark.parametrize("name", ["model.safetensors", "training_state.8.safetensors", "config.json", "training_state.json"])
def test_a_full_disk_leaves_the_last_checkpoint_whole(corpus, tokenizer, tmp_path, monkeypatch, name):
    """Whichever of the files cannot be written, all of them stay as they were, and the run can be resumed."""
    run(corpus, tmp_path, tokenizer, steps=4)
    before = whole_files(tmp_path)
    write, write_text = checkpoint.save_file, Path.write_text

    def full(tensors, path, metadata=None):
        if Path(path).name.startswith(name):
            raise SafetensorError("No space left on device")
        write(tensors, path, metadata=metadata)

    def full_text(path, *args, **kwargs):
        if path.name.startswith(name):
            raise OSError("No space left on device")
        return write_text(path, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", full)
        patch.setattr(Path, "write_text", full_text)
        with pytest.raises(OSError, match="not saved .*No space left" if name.endswith(".safetensors") else "No space left"):
            run(corpus, tmp_path, tokenizer, steps=8, resume=True)
    assert whole_files(tmp_path) == before
    run(corpus, tmp_path, tokenizer, steps=8, resume=True)
    assert json.loads((tmp_path / "training_state.json").read_text())["step"] == 8


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="asks glibc")
def test_freed_memory_is_kept_for_the_next_step():
    """Page faults for ten tensors of 48 MB, one after the other: every page each time, then none."""
    code = """
import resource, torch
from bert_course.pretraining import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(12_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

given_back = faults()
keep_freed_memory()
faults()
print(given_back, faults())
"""
    given_back, kept = map(int, subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.split())
    assert given_back > 50 * (kept + 1)


def test_a_line_that_cannot_be_logged_is_part_of_the_next(corpus, tokenizer, tmp_path, monkeypatch):
    run(corpus, tmp_path / "whole", tokenizer, steps=40)

    def full(*args):
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(pretraining.RunLog, "write", full)
        with pytest.raises(OSError, match="No space left"):
            run(corpus, tmp_path / "parts", tokenizer, steps=40)
    run(corpus, tmp_path / "parts", tokenizer, steps=40, resume=True)
    whole, parts = ([json.loads(line)["mlm_loss"] for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
                    for name in ("whole", "parts"))
    assert parts == pytest.approx([sum(whole) / 2], abs=1e-4)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for a child process")
def test_ctrl_c_stops_cleanly(corpus, tokenizer, tmp_path):
    tokenizer.save(tmp_path / "vocab.txt")
    main = "import sys; from bert_course import cli, pretraining; pretraining.bfloat16_speedup = lambda device: 0.0; "
    command = [
        sys.executable, "-c", main + "sys.exit(cli.main())", "pretrain", "--corpus", str(corpus), "--vocab",
        str(tmp_path / "vocab.txt"), "--output", str(tmp_path / "run"), "--preset", "tiny", "--steps", "100000",
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
    assert state["step"] >= 20 and state["tokens"] > 20 * 300
    assert from_pretrained(BertForPreTraining, tmp_path / "run").config.hidden_size == 128
    assert (tmp_path / "run" / state["tensors"]).exists() and (tmp_path / "run" / "curves.png").exists()


def test_a_run_is_never_overwritten(corpus, tokenizer, tmp_path):
    run(corpus, tmp_path, tokenizer, steps=1)
    with pytest.raises(FileExistsError, match="already holds a pretraining run"):
        run(corpus, tmp_path, tokenizer)
    (tmp_path / "training_state.json").unlink()  # a published checkpoint has none
    with pytest.raises(FileExistsError, match="already holds a pretraining run or checkpoint"):
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
    (tmp_path / "one.txt").write_text("One document. It stands alone.\n")
    with pytest.raises(ValueError, match="is too small"):
        run(tmp_path / "one.txt", tmp_path / "d", tokenizer, warm_start=True)
    with pytest.raises(FileNotFoundError, match="no corpus 'nowhere'"):
        run("nowhere", tmp_path / "c", tokenizer)
    with pytest.raises(ValueError, match="either steps or minutes"):
        Recipe()
    with pytest.raises(ValueError, match="above zero"):
        Recipe(steps=0)
    with pytest.raises(ValueError, match="mask rate between 0 and 1"):
        Recipe(steps=1, phases=((1.0, 32, 1.5, 256),))
    with pytest.raises(ValueError, match="sequence length 128, the model positions for 64"):
        run(corpus, tmp_path / "e", tokenizer, phases=((1.0, 128, 0.15, 256),))
    with pytest.raises(ValueError, match="add up to 0.5"):
        Recipe(steps=1, phases=((0.5, 32, 0.15, 256),))


@pytest.mark.parametrize("damage, complaint", [
    (lambda folder: (folder / "training_state.json").write_text("{"), "training_state.json is not JSON"),
    (lambda folder: (folder / "training_state.json").write_text("{}"), "is damaged, or by an older version"),
    (lambda folder: (folder / "training_state.2.safetensors").write_bytes(b"x" * 100), "not a whole safetensors file"),
    (lambda folder: (folder / "training_state.2.safetensors").unlink(), "training_state.2.safetensors is missing"),
])
def test_a_damaged_training_state_is_named(corpus, tokenizer, tmp_path, damage, complaint):
    run(corpus, tmp_path, tokenizer, steps=2)
    damage(tmp_path)
    with pytest.raises((ValueError, OSError), match=complaint):
        run(corpus, tmp_path, tokenizer, steps=4, resume=True)


def test_text_that_cannot_be_read_on_costs_no_step(corpus, tokenizer, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(shards, "SHARD", 64)
    text = tmp_path / "text.txt"
    text.write_bytes(corpus.read_bytes()[:60_000] + b"\xff" + corpus.read_bytes()[60_000:])
    with pytest.raises(ValueError, match="text.txt cannot be read as UTF-8"):
        run(text, tmp_path / "run", tokenizer, steps=1000)
    state = json.loads((tmp_path / "run" / "training_state.json").read_text())
    assert state["step"] > 20 and f"The checkpoint in {tmp_path / 'run'} is whole; go on with --resume" in capsys.readouterr().err
    text.write_bytes(corpus.read_bytes())
    run(text, tmp_path / "run", tokenizer, steps=state["step"] + 1, resume=True)


@pytest.mark.parametrize("error", [
    torch.OutOfMemoryError("CUDA out of memory"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 9"),
])
def test_out_of_memory_says_what_fits_and_loses_nothing(corpus, tokenizer, tmp_path, monkeypatch, error):
    """Memory for three rows, simulated; from the sixth step on."""
    losses, calls = pretraining.Losses.forward, []

    def small(self, batch):
        calls.append(len(batch["input_ids"]))
        if len(calls) > 5 and calls[-1] > 3:
            raise error
        return losses(self, batch)

    monkeypatch.setattr(pretraining.Losses, "forward", small)
    with pytest.raises(ValueError, match="with 8 rows of 32 tokens; 2 rows do fit: give --phases with batches of 64 tokens"):
        run(corpus, tmp_path, tokenizer)
    assert calls[-3:] == [8, 4, 2] and json.loads((tmp_path / "training_state.json").read_text())["step"] == len(calls) - 3
    run(corpus, tmp_path, tokenizer, resume=True, phases=((1.0, 32, 0.15, 64),))  # as it said
    assert calls[-1] <= 2 and json.loads((tmp_path / "training_state.json").read_text())["step"] == 24


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("something else")])
def test_out_of_memory_for_the_averages_is_named_and_leaves_the_checkpoint(corpus, tokenizer, tmp_path, monkeypatch, error):
    run(corpus, tmp_path, tokenizer, steps=4)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.safetensors")}

    def failing(self):
        raise error

    monkeypatch.setattr(torch.optim.AdamW, "step", failing)
    expected = ValueError if isinstance(error, torch.OutOfMemoryError) else RuntimeError
    with pytest.raises(expected, match="take a smaller --preset|something else"):
        run(corpus, tmp_path, tokenizer, steps=8, resume=True)
    assert before == {path.name: path.read_bytes() for path in tmp_path.glob("*.safetensors")} != {}


def test_tensorboard_is_asked_for_and_named_if_it_is_missing(corpus, tokenizer, tmp_path, monkeypatch):
    config = BertConfig(vocab_size=tokenizer.vocab_size, **CONFIG)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ValueError, match="pip install tensorboard"):
        pretrain(corpus, tmp_path / "a", tokenizer, config, recipe(), progress_bar=False, tensorboard=True)
    assert not (tmp_path / "a").exists()  # before anything is done
    written = []

    class Writer:
        def __init__(self, folder, purge_step):
            written.append((folder, purge_step))

        def add_scalar(self, name, value, step):
            written.append((name, step))

        def close(self):
            written.append("closed")

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", types.SimpleNamespace(SummaryWriter=Writer))
    pretrain(corpus, tmp_path / "b", tokenizer, config, recipe(), progress_bar=False, tensorboard=True)
    names = "mlm_loss", "nsp_loss", "mlm_accuracy", "nsp_accuracy", "tokens_per_second"
    assert written == [(tmp_path / "b" / "tensorboard", 1), *((name, 20) for name in names), "closed"]


def test_the_bar_shows_losses_accuracies_speed_and_time_left(corpus, tokenizer, tmp_path, capsys):
    pretrain(corpus, tmp_path, tokenizer, BertConfig(vocab_size=tokenizer.vocab_size, **CONFIG), recipe())
    shown = r"\d\d:\d\d<.*step 20, mlm loss \d.\d\d, nsp loss \d.\d\d, mlm accuracy 0.\d\d, nsp accuracy 0.\d\d, [\d,]+ tokens/s"
    assert re.search(shown, capsys.readouterr().err)
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


SHARED = """
import json, sys
from pathlib import Path
import torch
from bert_course import pretraining
from bert_course.config import BertConfig
from bert_course.wordpiece import WordPieceTokenizer

torch.set_num_threads(1)
pretraining.bfloat16_speedup = lambda device: 0.0
folder, rank = Path(sys.argv[1]), int(__import__("os").environ["RANK"])
tokenizer = WordPieceTokenizer.from_pretrained(folder)
cut, seen = pretraining.pair_batches, []

def watched(documents, *args):
    seen.extend(documents)
    return cut(documents, *args)

pretraining.pair_batches = watched
config = BertConfig(vocab_size=tokenizer.vocab_size, **CONFIG)
for steps in (15, 40):  # resumed once
    pretraining.pretrain(folder / "text.txt", folder / "run", tokenizer, config, pretraining.Recipe(**RECIPE | {"steps": steps}),
                         resume=steps == 40, progress_bar=False)
(folder / f"{rank}.json").write_text(json.dumps(seen))
"""


def test_two_processes_are_one_with_twice_the_batch(corpus, tokenizer, tmp_path):
    """Under torchrun: the same losses as in a plain loop over both parts of the text, put together; no document read by both."""
    settings = {"phases": ((1.0, 32, 0.15, 256),), "learning_rate": 5e-3, "warm_start": False, "warmup": 0.0, "save_every": 9.0}
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "text.txt").write_bytes(corpus.read_bytes())
    script = tmp_path / "script.py"
    script.write_text(SHARED.replace("**CONFIG", f"**{CONFIG}").replace("RECIPE |", f"{settings} |"))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    first, second = ({json.dumps(d) for d in json.loads((tmp_path / f"{rank}.json").read_text())} for rank in range(2))
    assert first and second and not first & second

    torch.manual_seed(0)
    config = BertConfig(vocab_size=tokenizer.vocab_size, **CONFIG | {"hidden_dropout_prob": 0.0})
    model = BertForPreTraining(pretraining.replace(config, initializer_range=config.hidden_size**-0.5))
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.01), betas=(0.9, 0.98))
    states = [{"step": 0, "epoch": 0, "chunk": rank, "batch": 0} for rank in range(2)]
    r = Recipe(**settings | {"steps": 40})
    parts = [pretraining.training_batches(corpus, tokenizer, r, state, lambda: 0.0, 2) for state in states]
    losses = []
    for step in range(40):
        ready = []
        for rank, (part, state) in enumerate(zip(parts, states)):
            batch, rate = next(part)
            torch.manual_seed(step + (rank << 40))
            ready.append(pretraining.masked_batch(batch, tokenizer, rate, torch.default_generator))
            ready[-1]["attention_mask"] = (batch["input_ids"] != tokenizer.pad_id).long()  # before masking put any [PAD] in
            state["batch"] += 1
        width = max(batch["input_ids"].shape[1] for batch in ready)
        both = {
            name: torch.cat([torch.nn.functional.pad(b[name], (0, width - b[name].shape[1]), value=fill) for b in ready])
            for name, fill in (("input_ids", tokenizer.pad_id), ("token_type_ids", 0), ("labels", -100), ("attention_mask", 0))
        }
        both["next_sentence_label"] = torch.cat([b["next_sentence_label"] for b in ready])
        for group in optimizer.param_groups:
            # the first 15 steps were the whole of a shorter budget
            group["lr"] = r.learning_rate * r.rate_factor(step / (15 if step < 15 else 40))
        found = pretraining.pretraining_losses(model, both)
        (found[0] + found[1]).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append([x.item() for x in found])
    for line, part in zip(log, (losses[:20], losses[20:]), strict=True):
        means = torch.tensor(part).mean(0).tolist()
        assert [line[name] for name in ("mlm_loss", "nsp_loss")] == pytest.approx(means[:2], abs=2e-4)
        assert [line[name] for name in ("mlm_accuracy", "nsp_accuracy")] == pytest.approx(means[2:], abs=5e-3)
    with pytest.raises(ValueError, match="was trained by 2 processes, these are 1"):
        run(tmp_path / "text.txt", tmp_path / "run", tokenizer, resume=True)


def test_the_checkpoint_is_ready_for_fine_tuning(corpus, tokenizer, tmp_path):
    """Pretrained without dropout and from wider weights, but the config is the one that was asked for."""
    run(corpus, tmp_path, tokenizer, steps=1)
    config = BertConfig.from_dict(files.read_json(tmp_path / "config.json"))
    assert (config.hidden_dropout_prob, config.initializer_range) == (0.1, 0.02)


def test_sentences_keep_their_quotes():
    text = 'He said "Go now." Then he left. "Where to?" I asked.'
    assert pretraining.split_sentences(text) == ['He said "Go now."', "Then he left.", '"Where to?"', "I asked."]


def test_schedule():
    r = recipe(warmup=0.1, phases=((0.2, 32, 0.3, 256), (0.8, 64, 0.15, 512)))
    assert [r.rate_factor(p) for p in (0.0, 0.05, 0.1, 1.0)] == [0.0, 0.5, 1.0, 0.0]
    assert [r.phase(p)[1] for p in (0.0, 0.19, 0.2, 1.0)] == [32, 32, 64, 64]


def test_held_out_documents_are_never_trained_on(corpus, tokenizer):
    train, held_out = (
        [tuple(map(tuple, document)) for chunk in pretraining.tokenized_chunks(corpus, tokenizer, h) for document in chunk]
        for h in (False, True)
    )
    assert len(held_out) == 600 // pretraining.HELD_OUT and len(train) == 600 - len(held_out)
    assert not set(train) & set(held_out)


def test_fill_mask(corpus, tokenizer, tmp_path):
    model = run(corpus, tmp_path, tokenizer, steps=1)
    rows = fill_mask(model, tokenizer, "the [MASK] sings under [MASK].", top=3)
    assert len(rows) == 2 and all(len(row) == 3 for row in rows)
    ids = torch.tensor([[tokenizer.cls_id, *tokenizer.encode("the [MASK] sings under [MASK]."), tokenizer.sep_id]])
    whole = model(ids).prediction_logits.softmax(-1)[0, (ids[0] == tokenizer.mask_id).nonzero()[0, 0]].topk(3)
    assert [token for token, _ in rows[0]] == [tokenizer.tokens[i] for i in whole.indices]
    assert [p for _, p in rows[0]] == pytest.approx(whole.values.tolist())
    with pytest.raises(ValueError, match=r"no \[MASK\] in 'the river'"):
        fill_mask(model, tokenizer, "the river")


def test_evaluation_knows_the_unigram_model(corpus, tokenizer, tmp_path):
    """A model that has learned nothing but how often each piece occurs scores as the unigram baseline does."""
    model = run(corpus, tmp_path, tokenizer, steps=1)
    counts = torch.ones(tokenizer.vocab_size)
    for chunk in pretraining.tokenized_chunks(corpus, tokenizer, held_out=False):
        counts += torch.bincount(torch.tensor([t for d in chunk for s in d for t in s]), minlength=len(counts))
    with torch.no_grad():
        model.bert.embeddings.word_embeddings.weight.zero_()
        model.cls.predictions.bias.copy_(counts.log())
    scores = pretraining.evaluate(model, corpus, tokenizer, length=32)
    assert scores["mlm_loss"] == pytest.approx(scores["unigram_loss"], abs=1e-4)
    assert scores["mlm_accuracy"] == pytest.approx(scores["unigram_accuracy"])
    assert scores["predictions"] > 20 and 0 <= scores["nsp_accuracy"] <= 1


def test_warm_start_knows_frequencies_and_company(tmp_path):
    """Before the first step: less loss than from noise, and words used alike have vectors alike."""
    rng = random.Random(0)
    pets = ("cat", "dog"), "the {} sleeps on a sofa. a {} eats fish."
    rocks = ("brick", "stone"), "one {} lies here. this {} breaks glass."

    def document():
        return "\n".join(frame.format(*rng.choices(words, k=2)) for words, frame in rng.choices([pets, rocks], k=8))

    texts = [document() for _ in range(400)]
    path = tmp_path / "text.txt"
    path.write_text("\n\n".join(texts))
    tokenizer = train_wordpiece(texts, 200)
    torch.manual_seed(0)
    model = BertForPreTraining(BertConfig(vocab_size=tokenizer.vocab_size, **CONFIG | {"initializer_range": 0.25})).eval()
    cold = pretraining.evaluate(model, path, tokenizer, length=32)
    pretraining.warm_start(model, tokenizer, path)
    warm = pretraining.evaluate(model, path, tokenizer, length=32)
    assert warm["mlm_loss"] < cold["mlm_loss"] - 0.3
    table = torch.nn.functional.normalize(model.bert.embeddings.word_embeddings.weight.detach(), dim=1)
    cat, dog, brick, stone = (table[tokenizer.vocab[word]] for word in ("cat", "dog", "brick", "stone"))
    assert min(cat @ dog, brick @ stone) > 0.3 + max(cat @ brick, cat @ stone, dog @ brick, dog @ stone)


def test_mlm_alone_reads_one_segment_and_leaves_the_pair_head(corpus, tokenizer, tmp_path):
    documents = next(pretraining.tokenized_chunks(corpus, tokenizer, held_out=False))
    batches = pair_batches(documents, tokenizer, 32, 256, random.Random(0), "mlm")
    read = sum(int((batch["input_ids"] > tokenizer.mask_id).sum()) for batch in batches)
    assert read == sum(t > tokenizer.mask_id for document in documents for part in document for t in part)  # all, and once
    assert all(not batch["token_type_ids"].any() for batch in batches)
    assert all(((batch["input_ids"] == tokenizer.sep_id).sum(1) == 1).all() for batch in batches)

    config = BertConfig(vocab_size=tokenizer.vocab_size, **CONFIG)
    recipe = Recipe(steps=20, phases=((1.0, 32, 0.15, 64),), objective="mlm", weight_decay=0.0)
    pretrain(corpus, tmp_path / "twenty", tokenizer, config, recipe, progress_bar=False)
    assert "mlm_loss" in (log := (tmp_path / "twenty" / "log.jsonl").read_text()) and "nsp" not in log
    model = from_pretrained(BertForPreTraining, tmp_path / "twenty")
    torch.manual_seed(recipe.seed)
    start = BertForPreTraining(pretraining.replace(config, initializer_range=config.hidden_size**-0.5))
    assert torch.equal(model.cls.seq_relationship.weight, start.cls.seq_relationship.weight)
    assert not torch.equal(model.bert.encoder.layer[0].output.dense.weight, start.bert.encoder.layer[0].output.dense.weight)
    with pytest.raises(ValueError, match="no objective 'sop'; there are: mlm\\+nsp, mlm"):
        Recipe(steps=3, objective="sop")
