"""Pretraining: sentence pairs, masking, the training loop (Devlin et al. 2019, section 3.1 and appendix A).

Text streams in: documents are read a few hundred at a time, cut into pairs, batched by length (so that next to nothing is
padding), masked afresh at every step. All randomness comes from (seed, chunk) and (seed, step), so that a resumed run
sees what the uninterrupted one would have seen.
"""

import itertools
import json
import random
import re
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm.auto import tqdm

from . import corpora, inputs
from .checkpoint import from_pretrained, replacing, save_pretrained
from .config import BertConfig
from .model import BertForPreTraining, parameter_groups
from .wordpiece import WordPieceTokenizer

CHUNK = 256  # documents read at once; the random second halves of pairs come from among them
HELD_OUT = 200  # every 200th document is never trained on


@dataclass
class Recipe:
    """How to pretrain. The schedule follows the share of the budget (steps or minutes) that is used up."""

    steps: int | None = None  # the budget, one of the two
    minutes: float | None = None
    phases: tuple[tuple[float, int, float], ...] = ((0.9, 128, 0.15), (0.1, 512, 0.15))  # (share, sequence length, mask rate)
    batch_tokens: int = 8192  # tokens in a batch, whatever the sequence length
    learning_rate: float = 1e-3  # at its peak
    warmup: float = 0.06  # share of the budget until the peak; from there linearly to zero
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    save_every: float = 5.0  # minutes between checkpoints
    seed: int = 0

    def __post_init__(self):
        if (self.steps is None) == (self.minutes is None):
            raise ValueError("give a budget: either steps or minutes.")
        if abs(sum(share for share, _, _ in self.phases) - 1) > 1e-6:
            raise ValueError(f"the shares of the phases add up to {sum(p[0] for p in self.phases)}, not to 1.")

    def phase(self, progress: float) -> tuple[int, float]:
        """Sequence length and mask rate at this share of the budget."""
        for end, (_, length, rate) in zip(itertools.accumulate(p[0] for p in self.phases), self.phases):
            if progress < end:
                return length, rate
        return self.phases[-1][1:]

    def rate_factor(self, progress: float) -> float:
        """Factor on the learning rate: up linearly over the warm-up, then down linearly to zero."""
        return max(0.0, min(progress / self.warmup if self.warmup else 1.0, (1 - progress) / (1 - self.warmup)))


def mask_tokens(
    ids: Tensor, special: Tensor, vocab_size: int, mask_id: int, rate: float = 0.15, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Hide tokens for masked language modelling (Devlin et al. 2019, section 3.1 and appendix A.1).

    Of the chosen positions 80% become [MASK], 10% a random token, 10% stay as they are.

    Args:
        ids: (B, S) int64 token ids.
        special: (B, S) bool, True where a token must not be chosen ([CLS], [SEP], padding).
    Returns:
        (masked ids, labels), both (B, S); labels are -100 where nothing is predicted.
    Raises:
        ValueError: if a row has no token that may be chosen.
    """
    if special.all(dim=1).any():
        raise ValueError("a row holds special tokens only: nothing in it can be masked.")
    dice, fate = torch.rand(2, *ids.shape, generator=generator)
    dice = dice.masked_fill(special, 2.0)
    chosen = (dice < rate) | (dice == dice.min(dim=1, keepdim=True).values)  # at least one a row
    labels = ids.masked_fill(~chosen, -100)
    anything = torch.randint(vocab_size, ids.shape, generator=generator)
    masked = torch.where(chosen & (fate < 0.8), mask_id, ids)
    masked = torch.where(chosen & (fate >= 0.9), anything, masked)
    return masked, labels


def split_sentences(paragraph: str) -> list[str]:
    """Cut after . ! ? where a capital, a digit or a quote follows. Rough, and enough for choosing where segments end."""
    return re.split(r"(?<=[.!?])[\"')]*\s+(?=[\"'(]?[A-Z0-9])", paragraph)


def sentence_pairs(
    documents: list[list[list[int]]], max_tokens: int, rng: random.Random, short: float = 0.1
) -> Iterator[tuple[list[int], list[int], int]]:
    """Pairs for next sentence prediction (appendix A.2; google-research/bert create_pretraining_data.py).

    Sentences are gathered up to `max_tokens` (for one pair in ten, a random shorter length) and cut in two at random. For
    half of the pairs the second part is replaced by text from another document.

    Args:
        documents: for each document its sentences, for each sentence its token ids.
        max_tokens: most tokens in both parts together, that is the sequence length less three.
    Returns:
        (A, B, label) for each pair; label 0: B follows A, 1: B is from another document.
    Raises:
        ValueError: if there are fewer than two documents to draw from.
    """
    if len(documents) < 2:
        raise ValueError("next sentence prediction needs at least two documents.")
    for number, document in enumerate(documents):
        start = 0
        while start < len(document):
            target = rng.randint(2, max_tokens) if rng.random() < short else max_tokens
            end, length = start, 0
            while end < len(document) and length < target:
                length += len(document[end])
                end += 1
            cut = rng.randint(start + 1, end - 1) if end - start > 1 else end
            a = [t for s in document[start:cut] for t in s]
            is_random = cut == end or rng.random() < 0.5
            if is_random:
                other = rng.randrange(len(documents) - 1)
                other = documents[other + (other >= number)]
                first = rng.randrange(len(other))
                b = list(itertools.islice((t for s in other[first:] for t in s), max(1, target - len(a))))
                start = cut  # the unused sentences open the next pair
            else:
                b = [t for s in document[cut:end] for t in s]
                start = end
            while len(a) + len(b) > max_tokens:  # cut the longer one, at either end, as the original does
                longer = a if len(a) > len(b) else b
                longer.pop(0 if rng.random() < 0.5 else -1)
            if a and b:
                yield a, b, int(is_random)


def tokenized_chunks(corpus: str | Path, tokenizer: WordPieceTokenizer, held_out: bool, first: int = 0) -> Iterator[list]:
    """Documents of token ids, CHUNK at a time: those held out for evaluation, or all the others. Skips `first` chunks."""
    from tokenizers.implementations import BertWordPieceTokenizer  # the same tokens as ours, faster

    fast = BertWordPieceTokenizer(tokenizer.vocab, lowercase=tokenizer.lowercase)
    chosen = (d for i, d in enumerate(corpora.documents(corpus)) if (i % HELD_OUT == HELD_OUT - 1) == held_out)
    for number in itertools.count():
        texts = list(itertools.islice(chosen, CHUNK))
        if not texts:
            return
        if number < first:
            continue
        sentences = [[s for paragraph in text for s in split_sentences(paragraph)] for text in texts]
        encoded = iter(fast.encode_batch([s for text in sentences for s in text], add_special_tokens=False))
        documents = [[e.ids for e in itertools.islice(encoded, len(text)) if e.ids] for text in sentences]
        yield [d for d in documents if d]


def pair_batches(
    documents: list, tokenizer: WordPieceTokenizer, length: int, batch_tokens: int, rng: random.Random
) -> list[dict[str, Tensor]]:
    """Unmasked batches (B, S) from one chunk, similar lengths together, in random order."""
    pairs = sorted(sentence_pairs(documents, length - 3, rng), key=lambda p: len(p[0]) + len(p[1]))
    size = max(1, batch_tokens // length)
    batches = []
    for i in range(0, len(pairs), size):
        rows = pairs[i : i + size]
        width = max(len(a) + len(b) for a, b, _ in rows) + 3
        ids = torch.full((len(rows), width), tokenizer.pad_id)
        segments = torch.zeros_like(ids)
        for row, (a, b, _) in enumerate(rows):
            tokens = [tokenizer.cls_id, *a, tokenizer.sep_id, *b, tokenizer.sep_id]
            ids[row, : len(tokens)] = torch.tensor(tokens)
            segments[row, len(a) + 2 : len(tokens)] = 1
        batch = {"input_ids": ids, "token_type_ids": segments, "next_sentence_label": torch.tensor([r for _, _, r in rows])}
        batches.append(batch)
    rng.shuffle(batches)
    return batches


def masked_batch(batch: dict[str, Tensor], tokenizer: WordPieceTokenizer, rate: float, generator: torch.Generator) -> dict:
    """A batch ready for the model: masked, with labels, and with an attention mask if there is padding."""
    ids = batch["input_ids"]
    never = torch.tensor([tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id])
    masked, labels = mask_tokens(ids, torch.isin(ids, never), tokenizer.vocab_size, tokenizer.mask_id, rate, generator)
    real = (ids != tokenizer.pad_id).long()
    return batch | {"input_ids": masked, "labels": labels, "attention_mask": None if real.all() else real}


def pretraining_losses(model: BertForPreTraining, batch: dict) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The two losses of `model(**batch)`, with vocabulary scores computed only where something is predicted.

    Returns:
        MLM loss, NSP loss, share of masked tokens guessed right, share of pairs guessed right.
    """
    ids = batch["input_ids"]
    explicit = ids.device.type == "cpu"  # there the fused attention has the slower backward pass
    output = model.bert(ids, batch["attention_mask"], batch["token_type_ids"], output_attentions=explicit)
    chosen = batch["labels"] != -100
    targets = batch["labels"][chosen]  # (N,)
    mlm = model.cls.predictions(output.last_hidden_state[chosen]).float()  # (N, V)
    nsp = model.cls.seq_relationship(output.pooler_output).float()  # (B, 2)
    answer = batch["next_sentence_label"]
    return (
        F.cross_entropy(mlm, targets),
        F.cross_entropy(nsp, answer),
        (mlm.argmax(-1) == targets).float().mean(),
        (nsp.argmax(-1) == answer).float().mean(),
    )


def pretrain(
    corpus: str | Path,
    output: str | Path,
    tokenizer: WordPieceTokenizer,
    config: BertConfig,
    recipe: Recipe,
    device: str = "cpu",
    resume: bool = False,
    progress_bar: bool = True,
) -> BertForPreTraining:
    """Pretrain a BERT and keep checkpoints, the log (log.jsonl, a line every 20 steps) and the vocabulary in `output`.

    Ctrl-C stops cleanly after the current step, with a checkpoint; `resume=True` goes on from the last one.

    Raises:
        ValueError: if the vocabulary does not fit the config, the corpus is empty, or there is nothing to resume.
        FileExistsError: if `output` already holds a run and `resume` is False.
    """
    if tokenizer.vocab_size > config.vocab_size:
        raise ValueError(f"the vocabulary has {tokenizer.vocab_size} pieces, the config only {config.vocab_size}.")
    output = Path(output)
    state_file = output / "training_state.json"
    if state_file.exists() and not resume:
        raise FileExistsError(f"{output} already holds a pretraining run; continue it with resume, or choose another folder.")
    if resume and not state_file.exists():
        raise ValueError(f"{output} holds no run to resume (no training_state.json).")
    output.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(recipe.seed)
    model = (from_pretrained(BertForPreTraining, output) if resume else BertForPreTraining(config)).to(device).train()
    optimizer = torch.optim.AdamW(parameter_groups(model, recipe.weight_decay), lr=recipe.learning_rate, fused=True)
    state = {"step": 0, "chunk": 0, "batch": 0, "epoch": 0, "tokens": 0, "seconds": 0.0}
    if resume:
        state |= json.loads(state_file.read_text())
        load_optimizer(optimizer, model, output / "optimizer.safetensors")
    tokenizer.save_pretrained(output)
    bf16 = bf16_is_faster(device)
    bar = tqdm(total=100, unit="%", disable=not progress_bar, bar_format="{l_bar}{bar}| {elapsed}<{remaining}{postfix}")
    started, saved = time.monotonic() - state["seconds"], time.monotonic()
    recent: list[list[float]] = []

    def progress() -> float:
        return state["step"] / recipe.steps if recipe.steps else (time.monotonic() - started) / (60 * recipe.minutes)

    def save():
        save_pretrained(model, output)
        save_optimizer(optimizer, model, output / "optimizer.safetensors")
        with replacing(state_file) as path:
            path.write_text(json.dumps(state | {"recipe": asdict(recipe)}, indent=2))

    with open(output / "log.jsonl", "a") as log:
        try:
            while progress() < 1:
                for documents in tokenized_chunks(corpus, tokenizer, held_out=False, first=state["chunk"]):
                    length, rate = recipe.phase(progress())
                    rng = random.Random(f"{recipe.seed} {state['epoch']} {state['chunk']}")
                    for batch in pair_batches(documents, tokenizer, length, recipe.batch_tokens, rng)[state["batch"] :]:
                        if (done := progress()) >= 1:
                            break
                        torch.manual_seed(recipe.seed * 1_000_003 + state["step"])
                        ready = masked_batch(batch, tokenizer, rate, torch.default_generator)
                        ready = {k: v if v is None else v.to(device) for k, v in ready.items()}
                        for group in optimizer.param_groups:
                            group["lr"] = recipe.learning_rate * recipe.rate_factor(done)
                        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=bf16):
                            mlm, nsp, mlm_right, nsp_right = pretraining_losses(model, ready)
                        (mlm + nsp).backward()
                        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.max_grad_norm)
                        optimizer.step()
                        optimizer.zero_grad()

                        state["step"] += 1
                        state["batch"] += 1
                        state["tokens"] += int((batch["input_ids"] != tokenizer.pad_id).sum())
                        state["seconds"] = time.monotonic() - started
                        recent.append([x.item() for x in (mlm, nsp, mlm_right, nsp_right)])
                        if state["step"] % 20 == 0:
                            means = dict(zip(("mlm_loss", "nsp_loss", "mlm_accuracy", "nsp_accuracy"), map(mean, zip(*recent))))
                            recent.clear()
                            speed = state["tokens"] / state["seconds"]
                            line = {k: state[k] for k in ("step", "tokens", "seconds")} | {"length": length} | means
                            log.write(json.dumps({k: round(v, 4) for k, v in line.items()}) + "\n")
                            log.flush()
                            bar.set_postfix_str(f"step {state['step']}, MLM {means['mlm_loss']:.2f}, {speed:.0f} tokens/s")
                            bar.update(100 * done - bar.n)
                        if time.monotonic() - saved > 60 * recipe.save_every:
                            save()
                            saved = time.monotonic()
                    if progress() >= 1:
                        break
                    state |= {"chunk": state["chunk"] + 1, "batch": 0}
                else:
                    if state["step"] == 0:
                        raise ValueError(f"corpus '{corpus}' is too small to make one batch.")
                    state |= {"epoch": state["epoch"] + 1, "chunk": 0, "batch": 0}
        except KeyboardInterrupt:
            print(f"\nstopped at step {state['step']}; checkpoint in {output}, go on with --resume")
        finally:
            bar.close()
            if state["step"]:
                save()
    return model.eval()


def mean(values) -> float:
    values = list(values)
    return sum(values) / len(values)


def save_optimizer(optimizer, model, path: Path) -> None:
    names = {p: n for n, p in model.named_parameters()}
    tensors = {f"{names[p]}/{k}": v for p, state in optimizer.state.items() for k, v in state.items()}
    with replacing(path) as temporary:
        save_file(tensors, temporary)


def load_optimizer(optimizer, model, path: Path) -> None:
    parameters = dict(model.named_parameters())
    for key, tensor in load_file(path).items():
        name, kind = key.rsplit("/", 1)
        device = "cpu" if kind == "step" and parameters[name].device.type == "cpu" else parameters[name].device
        optimizer.state[parameters[name]][kind] = tensor.to(device)


@torch.no_grad()
def evaluate(model, corpus, tokenizer, length: int = 128, batches: int = 100, device: str = "cpu", seed: int = 0) -> dict:
    """Held-out MLM loss (nats a token) and accuracy, NSP accuracy, and the unigram model's loss and accuracy beside them.

    15% of the tokens are masked. The unigram model knows how often each piece occurs in the training text, and nothing else.
    """
    model.eval()
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    rows, targets = [], []
    held_out = itertools.chain.from_iterable(
        pair_batches(documents, tokenizer, length, 64 * length, rng) for documents in tokenized_chunks(corpus, tokenizer, True)
    )
    for batch in itertools.islice(held_out, batches):
        ready = {k: v if v is None else v.to(device) for k, v in masked_batch(batch, tokenizer, 0.15, generator).items()}
        n = int((ready["labels"] != -100).sum())
        mlm, nsp, mlm_right, nsp_right = (x.item() for x in pretraining_losses(model, ready))
        rows.append((n, len(batch["input_ids"]), mlm * n, mlm_right * n, nsp_right * len(batch["input_ids"])))
        targets.append(ready["labels"][ready["labels"] != -100].cpu())
    counts = torch.ones(tokenizer.vocab_size)  # add-one smoothing
    for documents in itertools.islice(tokenized_chunks(corpus, tokenizer, False), 8):
        counts += torch.bincount(torch.tensor([t for d in documents for s in d for t in s]), minlength=len(counts))
    targets = torch.cat(targets)
    tokens, pairs, mlm, mlm_right, nsp_right = map(sum, zip(*rows))
    return {
        "mlm_loss": mlm / tokens,
        "mlm_accuracy": mlm_right / tokens,
        "nsp_accuracy": nsp_right / pairs,
        "unigram_loss": -(counts / counts.sum()).log()[targets].mean().item(),
        "unigram_accuracy": (targets == counts.argmax()).float().mean().item(),
        "predictions": tokens,
        "pairs": pairs,
    }


@torch.no_grad()
def fill_mask(model: nn.Module, tokenizer: WordPieceTokenizer, text: str, top: int = 5) -> list[list[tuple[str, float]]]:
    """The most probable tokens, with their probabilities, for every [MASK] in `text`.

    Raises:
        ValueError: if there is no [MASK] in the text.
    """
    encoding = inputs.encode(tokenizer, text, max_length=model.config.max_position_embeddings)
    places = [i for i, token in enumerate(encoding.input_ids) if token == tokenizer.mask_id]
    if not places:
        raise ValueError(f"no [MASK] in '{text}'.")
    device = next(model.parameters()).device
    ids = torch.tensor([encoding.input_ids], device=device)  # (1, S)
    hidden = model.bert(ids).last_hidden_state[0, places]  # (masks, D)
    best = model.cls.predictions(hidden).softmax(-1).topk(top)
    return [[(tokenizer.tokens[i], p) for i, p in zip(*row)] for row in zip(best.indices.tolist(), best.values.tolist())]


def bf16_is_faster(device: str) -> bool:
    """Whether a matrix product in bfloat16 beats float32 here, measured for some hundredths of a second."""
    if torch.device(device).type == "cuda":
        return torch.cuda.is_bf16_supported()

    def seconds(dtype):
        x, w = torch.ones(2048, 256, dtype=dtype), torch.ones(256, 1024, dtype=dtype)
        times = []
        for _ in range(5):
            start = time.perf_counter()
            x @ w
            times.append(time.perf_counter() - start)
        return min(times)

    return seconds(torch.bfloat16) < 0.7 * seconds(torch.float32)
