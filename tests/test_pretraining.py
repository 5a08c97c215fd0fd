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
from safetensors import SafetensorError

from bert_course import checkpoint, files, pretraining
from bert_course.checkpoint import from_pretrained, read_tensors
from bert_course.config import BertConfig
from bert_course.model import BertForPreTraining
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
    documents = [[tokenizer.encode(s) for s in sentences(rng, 12)] for _ in range(20)]
    batches = pair_batches(documents, tokenizer, 32, 256, rng)
    assert {len(b["input_ids"]) for b in batches} <= {*range(1, 9)}
    for batch in batches:
        for ids, segments in zip(batch["input_ids"].tolist(), batch["token_type_ids"].tolist()):
            end = ids.index(tokenizer.pad_id) if tokenizer.pad_id in ids else len(ids)
            first, second = (i for i, t in enumerate(ids) if t == tokenizer.sep_id)
            assert ids[0] == tokenizer.cls_id and second == end - 1 and end <= 32
            assert segments == [0] * (first + 1) + [1] * (end - first - 1) + [0] * (len(ids) - end)


@pytest.mark.parametrize("objective", ["mlm+nsp", "mlm"])
def test_a_full_row_is_as_long_as_the_phase_says(tokenizer, objective):
    document = [[tokenizer.vocab["a"]] * 200]
    batches = pair_batches([document, document], tokenizer, 32, 256, random.Random(0), objective)
    assert max(batch["input_ids"].shape[1] for batch in batches) == 32


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


def test_resume_goes_on_as_if_nothing_had_happened(corpus, tokenizer, tmp_path, monkeypatch):
    """Ctrl-C in the middle of a step, then resume: the same weights, bit for bit, dropout, phases and optimizer included."""
    monkeypatch.setattr(pretraining, "bfloat16_speedup", lambda device: 0.0)
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


def test_a_full_disk_leaves_the_last_checkpoint_whole(corpus, tokenizer, tmp_path, monkeypatch):
    """Whichever of the files cannot be written, all of them stay as they were, and the run can be resumed."""
    run(corpus, tmp_path, tokenizer, steps=4)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.name != "log.jsonl"}
    write = checkpoint.save_file

    def full(tensors, path, metadata=None):
        if "model" in str(path):
            raise SafetensorError("No space left on device")
        write(tensors, path, metadata=metadata)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", full)
        with pytest.raises(OSError, match="not saved .*No space left"):
            run(corpus, tmp_path, tokenizer, steps=8, resume=True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.name != "log.jsonl"} == before
    run(corpus, tmp_path, tokenizer, steps=8, resume=True)
    assert json.loads((tmp_path / "training_state.json").read_text())["step"] == 8


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for a child process")
def test_ctrl_c_stops_cleanly(corpus, tokenizer, tmp_path):
    tokenizer.save(tmp_path / "vocab.txt")
    command = [
        sys.executable, "-m", "bert_course", "pretrain", "--corpus", str(corpus), "--vocab", str(tmp_path / "vocab.txt"),
        "--output", str(tmp_path / "run"), "--preset", "tiny", "--steps", "100000",
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
    assert set(read_tensors(tmp_path / "run" / "optimizer.safetensors"))


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
    recipe = Recipe(steps=3, phases=((1.0, 32, 0.15, 64),), objective="mlm", weight_decay=0.0)
    pretrain(corpus, tmp_path / "three", tokenizer, config, recipe, progress_bar=False)
    model = from_pretrained(BertForPreTraining, tmp_path / "three")
    torch.manual_seed(recipe.seed)
    start = BertForPreTraining(pretraining.replace(config, initializer_range=config.hidden_size**-0.5))
    assert torch.equal(model.cls.seq_relationship.weight, start.cls.seq_relationship.weight)
    assert not torch.equal(model.bert.encoder.layer[0].output.dense.weight, start.bert.encoder.layer[0].output.dense.weight)
    with pytest.raises(ValueError, match="no objective 'sop'; there are: mlm\\+nsp, mlm"):
        Recipe(steps=3, objective="sop")
