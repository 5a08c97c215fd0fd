"""Pretraining: sentence pairs, masking, the training loop (Devlin et al. 2019, section 3.1 and appendix A).

Text streams in: documents are read a few hundred at a time, cut into pairs, batched by length (so that next to nothing is
padding), masked afresh at every step. All randomness comes from (seed, chunk) and (seed, step), so that a resumed run
sees what the uninterrupted one would have seen.
"""

import collections
import itertools
import json
import random
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from . import corpora, inputs
from .checkpoint import from_pretrained, read_tensors, save_pretrained, write_tensors
from .config import BertConfig
from .doctor import bfloat16_speedup
from .files import read_json, replacing
from .model import BertAttention, BertEmbeddings, BertForPreTraining, parameter_groups
from .wordpiece import WordPieceTokenizer

CHUNK = 32  # documents read at once; the random second halves of pairs come from among them
LOG_EVERY = 20  # steps
HELD_OUT = 200  # every 200th document is never trained on


Phase = tuple[float, int, float, int]  # share of the budget, sequence length, mask rate, tokens in a batch


@dataclass(frozen=True)
class Objective:
    """What `pretrain` trains and by what loss. All of them go through the same loop."""

    name: str  # "mlm+nsp" reads pairs of segments, any other one segment at a time (see `pair_batches`)
    model: type[nn.Module]  # made of a BertConfig; its head, tied to the token embeddings, is `cls.predictions`
    prepare: Callable[[dict, WordPieceTokenizer, float, torch.Generator], dict]  # a batch of text, as `masked_batch` takes it
    losses: Callable[[nn.Module, dict], dict[str, Tensor]]  # of what `prepare` returned; all of them are logged
    weights: dict[str, float]  # of the losses in the sum that is minimised


@dataclass
class Recipe:
    """How to pretrain. The schedule follows the share of the budget (steps, minutes or tokens) that is used up."""

    steps: int | None = None  # the budget, one of the three
    minutes: float | None = None
    tokens: int | None = None  # read, padding not counted
    objective: Objective | str = "mlm+nsp"  # as in the paper; "mlm" reads one segment and leaves next sentence prediction out
    phases: tuple[Phase, ...] = (
        (0.08, 32, 0.2, 1024),  # short and small first: this leaves the plateau of word frequencies soonest
        (0.27, 64, 0.2, 2048),
        (0.35, 128, 0.15, 4096),
        (0.05, 512, 0.15, 4096),  # far positions, while the learning rate still moves them
        (0.25, 128, 0.15, 4096),
    )
    learning_rate: float = 1e-3  # at its peak
    warmup: float = 0.03  # share of the budget until the peak; from there linearly to zero
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.98)  # of Adam; 0.98 instead of 0.999 as in RoBERTa (Liu et al. 2019): it forgets sooner
    max_grad_norm: float = 1.0
    dropout: float = 0.0  # while pretraining; no text is read twice, so there is nothing to overfit to
    warm_start: bool = True  # start from counts (see `warm_start`), not from noise
    save_every: float = 5.0  # minutes between checkpoints
    seed: int = 0

    def __post_init__(self):
        budget = [given for given in (self.steps, self.minutes, self.tokens) if given is not None]
        if len(budget) != 1 or budget[0] <= 0:
            raise ValueError("give a budget above zero: either steps or minutes or tokens.")
        if isinstance(self.objective, str):
            if self.objective not in OBJECTIVES:
                raise ValueError(f"no objective '{self.objective}'; there are: {', '.join(OBJECTIVES)}.")
            self.objective = OBJECTIVES[self.objective]
        if abs(sum(phase[0] for phase in self.phases) - 1) > 1e-6:
            raise ValueError(f"the shares of the phases add up to {sum(p[0] for p in self.phases)}, not to 1.")
        for phase in self.phases:
            if phase[1] < 8 or not 0 < phase[2] < 1 or phase[3] < phase[1]:
                raise ValueError(f"phase {phase} needs a length of 8 or more, a mask rate between 0 and 1, a whole row a batch.")

    def phase(self, progress: float) -> Phase:
        """The phase at this share of the budget."""
        ends = itertools.accumulate(phase[0] for phase in self.phases)
        return next((phase for end, phase in zip(ends, self.phases) if progress < end), self.phases[-1])

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
    return re.split(r"(?:(?<=[.!?])|(?<=[.!?][\"')]))\s+(?=[\"'(]?[A-Z0-9])", paragraph)


def sentence_pairs(
    documents: list[list[list[int]]], max_tokens: int, rng: random.Random, short: float = 0.1
) -> Iterator[tuple[list[int], list[int], int]]:
    """Pairs for next sentence prediction (appendix A.2; google-research/bert create_pretraining_data.py).

    Sentences are gathered up to `max_tokens` (for one pair in ten, a random shorter length) and cut in two at random. For
    half of the pairs the second part is replaced by text from another document. A sentence too long to leave room for a
    second part is first cut into pieces: without this, short sequences would nearly always get a random second half.

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
    most = max(1, max_tokens // 4)
    documents = [[s[i : i + most] for s in document for i in range(0, len(s), most)] for document in documents]
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


def single_segments(documents: list[list[list[int]]], max_tokens: int) -> Iterator[tuple[list[int], list[int], int]]:
    """Text for the masked language model alone: up to `max_tokens` tokens of one document in a row, no second part.

    This is RoBERTa's DOC-SENTENCES (Liu et al. 2019, section 4.2), but for cutting inside sentences.
    """
    for document in documents:
        tokens = [t for sentence in document for t in sentence]
        for start in range(0, len(tokens), max_tokens):
            yield tokens[start : start + max_tokens], [], 0


def raw_documents(corpus: str | Path, held_out: bool = False) -> Iterator[list[str]]:
    """The documents that are held out for evaluation, or all the others."""
    return (d for i, d in enumerate(corpora.documents(corpus)) if (i % HELD_OUT == HELD_OUT - 1) == held_out)


def tokenized_chunks(corpus: str | Path, tokenizer: WordPieceTokenizer, held_out: bool, first: int = 0) -> Iterator[list]:
    """Documents of token ids, CHUNK at a time: those held out for evaluation, or all the others. Skips `first` chunks."""
    from tokenizers.implementations import BertWordPieceTokenizer  # the same tokens as ours, faster

    fast = BertWordPieceTokenizer(tokenizer.vocab, lowercase=tokenizer.lowercase)
    chosen = raw_documents(corpus, held_out)
    for _ in range(first):
        collections.deque(itertools.islice(chosen, CHUNK), maxlen=0)
    while texts := list(itertools.islice(chosen, CHUNK)):
        sentences = [[s for paragraph in text for s in split_sentences(paragraph)] for text in texts]
        encoded = iter(fast.encode_batch([s for text in sentences for s in text], add_special_tokens=False))
        documents = [[e.ids for e in itertools.islice(encoded, len(text)) if e.ids] for text in sentences]
        documents = [d for d in documents if d]
        if len(documents) > 1:  # one alone has no other to draw a random second half from
            yield documents


def pair_batches(
    documents: list,
    tokenizer: WordPieceTokenizer,
    length: int,
    batch_tokens: int,
    rng: random.Random,
    objective: str = "mlm+nsp",
) -> list[dict[str, Tensor]]:
    """Unmasked batches (B, S) from one chunk, similar lengths together, in random order."""
    parts = sentence_pairs(documents, length - 3, rng) if objective == "mlm+nsp" else single_segments(documents, length - 2)
    pairs = sorted(parts, key=lambda p: len(p[0]) + len(p[1]))
    size = max(1, batch_tokens // length)
    batches = []
    for i in range(0, len(pairs), size):
        rows = pairs[i : i + size]
        longest = max(len(a) + len(b) + (3 if b else 2) for a, b, _ in rows)
        width = -(-longest // 16) * 16  # a multiple of 16 suits the matrix units
        ids = torch.full((len(rows), width), tokenizer.pad_id)
        segments = torch.zeros_like(ids)
        for row, (a, b, _) in enumerate(rows):
            tokens = [tokenizer.cls_id, *a, tokenizer.sep_id, *b, *([tokenizer.sep_id] if b else [])]
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
    labels = batch["labels"].flatten()
    chosen = (labels != -100).nonzero()[:, 0]  # (N,)
    targets = labels[chosen]
    mlm = model.cls.predictions(output.last_hidden_state.flatten(0, 1).index_select(0, chosen)).float()  # (N, V)
    nsp = model.cls.seq_relationship(output.pooler_output).float()  # (B, 2)
    answer = batch["next_sentence_label"]
    return (
        F.cross_entropy(mlm, targets),
        F.cross_entropy(nsp, answer),
        (mlm.argmax(-1) == targets).float().mean(),
        (nsp.argmax(-1) == answer).float().mean(),
    )


def named_losses(model: BertForPreTraining, batch: dict) -> dict[str, Tensor]:
    return dict(zip(("mlm_loss", "nsp_loss", "mlm_accuracy", "nsp_accuracy"), pretraining_losses(model, batch)))


OBJECTIVES = {
    name: Objective(name, BertForPreTraining, masked_batch, named_losses, {"mlm_loss": 1.0, "nsp_loss": nsp})
    for name, nsp in (("mlm+nsp", 1.0), ("mlm", 0.0))
}


def warm_start(model: nn.Module, tokenizer: WordPieceTokenizer, corpus: str | Path, chunks: int = 40) -> None:
    """Start where counting gets, in seconds, instead of on the plateau where a young BERT knows only how often words occur.

    In place, from the first `chunks` of the training text, for the model of any `Objective`:
    - token embeddings: positive pointwise mutual information of tokens up to four apart, reduced by SVD (Levy and
      Goldberg 2014); output bias: log frequencies. The head's dense layer starts as the identity.
    - positions, if it has any: sinusoids (Vaswani et al. 2017) of short wavelengths, to be learned further.
    - attention, if it has any: key = query and output = value transposed, so that a token first listens to its neighbours
      and to its likes, and adds up what they are (after Trockman and Kolter 2023, "Mimetic initialization").
    """
    from scipy.sparse import coo_array
    from sklearn.utils.extmath import randomized_svd

    head = model.cls.predictions
    table = head.decoder.weight  # the token embeddings
    size, width = table.shape
    scale = model.config.initializer_range
    gap = [tokenizer.pad_id] * 4  # no sentence is a neighbour of another document's
    documents = itertools.chain.from_iterable(itertools.islice(tokenized_chunks(corpus, tokenizer, held_out=False), chunks))
    ids = np.array([t for document in documents for t in [*itertools.chain.from_iterable(document), *gap]])
    if len(ids) <= 4:
        return  # too little text; the training loop says so
    together = 0
    for distance in range(1, 5):
        weights = np.full(len(ids) - distance, 1 / distance, dtype=np.float32)
        together = together + coo_array((weights, (ids[:-distance], ids[distance:])), shape=(size, size)).tocsr()
    together = (together + together.T).tocoo()
    total = np.bincount(together.row, together.data, minlength=size) + 1e-9
    context = total**0.75 / (total**0.75).sum()
    pmi = np.log(together.data / total[together.row] / context[together.col])
    padding = (together.row == tokenizer.pad_id) | (together.col == tokenizer.pad_id)
    kept = (pmi > 0) & ~padding
    matrix = coo_array((pmi[kept], (together.row[kept], together.col[kept])), shape=(size, size)).tocsr()
    left, values, _ = randomized_svd(matrix, min(width, size - 1), n_iter=3, random_state=0)
    vectors = left * np.sqrt(values)
    vectors -= vectors.mean(0)
    vectors *= scale * width**0.5 / (np.linalg.norm(vectors, axis=1, keepdims=True) + 1e-9)
    counts = np.bincount(ids, minlength=size) + 1.0
    counts[tokenizer.pad_id] = 1.0
    seen = torch.from_numpy(counts > 1)

    angles = torch.arange(model.config.max_position_embeddings)[:, None] * 30.0 ** -torch.linspace(0, 1, width // 2)
    with torch.no_grad():
        table[seen, : vectors.shape[1]] = torch.from_numpy(vectors).float()[seen]
        head.bias.copy_(torch.from_numpy(np.log(counts / counts.sum())))
        head.transform.dense.weight.copy_(torch.eye(width))
        for part in model.modules():
            if isinstance(part, BertEmbeddings):
                part.position_embeddings.weight.copy_(torch.cat([angles.sin(), angles.cos()], dim=1) * scale * 2**0.5)
            elif isinstance(part, BertAttention):
                part.self.key.weight.copy_(part.self.query.weight)
                part.output.dense.weight.copy_(part.self.value.weight.T)


def pretrain(
    corpus: str | Path,
    output: str | Path,
    tokenizer: WordPieceTokenizer,
    config: BertConfig,
    recipe: Recipe,
    device: str = "cpu",
    resume: bool = False,
    progress_bar: bool = True,
) -> nn.Module:
    """Pretrain the model of `recipe.objective`, and keep checkpoints, the log (log.jsonl, a line every 20 steps) and the
    vocabulary in `output`.

    Ctrl-C stops cleanly after the current step, with a checkpoint; `resume=True` goes on from the last one.

    Raises:
        ValueError: if the vocabulary does not fit the config, the corpus is too small, or there is nothing to resume.
        FileExistsError: if `output` already holds a run and `resume` is False.
    """
    if tokenizer.vocab_size > config.vocab_size:
        raise ValueError(f"the vocabulary has {tokenizer.vocab_size} pieces, the config only {config.vocab_size}.")
    if (longest := max(phase[1] for phase in recipe.phases)) > config.max_position_embeddings:
        raise ValueError(f"a phase has sequence length {longest}, the model positions for {config.max_position_embeddings}.")
    output, objective = Path(output), recipe.objective
    state_file, log_file = output / "training_state.json", output / "log.jsonl"
    if resume and not state_file.exists():
        raise ValueError(f"{output} holds no run to resume (no training_state.json).")
    if not resume and any((output / name).exists() for name in (state_file.name, "model.safetensors")):
        raise FileExistsError(f"{output} already holds a pretraining run or checkpoint; resume it, or choose another folder.")
    output.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(recipe.seed)
    dropout = {"hidden_dropout_prob": recipe.dropout, "attention_probs_dropout_prob": recipe.dropout}
    if resume:
        model = from_pretrained(objective.model, output, **dropout)
        state = read_json(state_file)
        lines = log_file.read_text(encoding="utf-8").splitlines() if log_file.exists() else []
        lines = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= state["step"]]
    else:
        # 0.02, made for 768 numbers a token, is little for fewer
        model = objective.model(replace(config, initializer_range=config.hidden_size**-0.5, **dropout))
        if recipe.warm_start:
            warm_start(model, tokenizer, corpus)
        state = {"step": 0, "epoch": 0, "chunk": 0, "batch": 0, "tokens": 0, "seconds": 0.0}
        state["bf16"] = bfloat16_speedup(device) > 1.4
        lines = []
    log_file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    model.config = config  # what the checkpoint says is for those who fine-tune it
    model.to(device).train()
    groups = parameter_groups(model, recipe.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=recipe.betas, fused=True)
    if resume:
        load_optimizer(optimizer, model, output / "optimizer.safetensors")
    tokenizer.save_pretrained(output)
    bar_format = "{l_bar}{bar}| {elapsed}<{remaining}{postfix}"
    bar = tqdm(total=100, unit="%", disable=not progress_bar, bar_format=bar_format)
    started, saved = time.monotonic() - state["seconds"], time.monotonic()
    recent: list[tuple[float, ...]] = []

    def progress() -> float:
        if recipe.minutes:
            return (time.monotonic() - started) / (60 * recipe.minutes)
        return state["step"] / recipe.steps if recipe.steps else state["tokens"] / recipe.tokens

    def save():
        with replacing(output / "optimizer.safetensors") as optimizer_path, replacing(state_file) as state_path:
            save_optimizer(optimizer, model, optimizer_path)
            settings = asdict(recipe) | {"objective": objective.name}
            state_path.write_text(json.dumps(state | {"recipe": settings}, indent=2), encoding="utf-8")
            save_pretrained(model, output)  # last: until everything is written, nothing is replaced

    bar.update(100 * progress())
    with stop_on_ctrl_c() as stopping:
        for batch, mask_rate in training_batches(corpus, tokenizer, recipe, state, progress):
            done = progress()
            torch.manual_seed(recipe.seed * 1_000_003 + state["step"])
            ready = objective.prepare(batch, tokenizer, mask_rate, torch.default_generator)
            ready = {k: v if v is None else v.to(device) for k, v in ready.items()}
            for group in optimizer.param_groups:
                group["lr"] = recipe.learning_rate * recipe.rate_factor(done)
            with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=state["bf16"]):
                losses = objective.losses(model, ready)
            sum(weight * losses[name] for name, weight in objective.weights.items()).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()

            state["step"] += 1
            state["batch"] += 1
            state["tokens"] += int((batch["input_ids"] != tokenizer.pad_id).sum())
            state["seconds"] = time.monotonic() - started
            recent.append(tuple(x.item() for x in losses.values()))
            if state["step"] % LOG_EVERY == 0:
                means = [sum(column) / len(recent) for column in zip(*recent)]
                recent.clear()
                line = {k: state[k] for k in ("step", "tokens", "seconds")} | {"length": ready["input_ids"].shape[1]}
                line |= zip(losses, means)
                with open(log_file, "a", encoding="utf-8") as log:
                    log.write(json.dumps({k: round(v, 4) for k, v in line.items()}) + "\n")
                speed = state["tokens"] / state["seconds"]
                bar.set_postfix_str(f"step {state['step']}, loss {means[0]:.2f}, {speed:.0f} tokens/s")
                bar.update(100 * done - bar.n)
            if stopping:
                break
            if time.monotonic() - saved > 60 * recipe.save_every:
                save()
                saved = time.monotonic()
    bar.close()
    save()
    if stopping:
        print(f"\nstopped at step {state['step']}; checkpoint in {output}, go on with --resume")
    return model.eval()


@contextmanager
def stop_on_ctrl_c() -> Iterator[list]:
    """A list that is filled at the first Ctrl-C, so that the step under way can end; a second Ctrl-C interrupts as usual."""
    pressed = []
    if threading.current_thread() is not threading.main_thread():
        yield pressed  # only the main thread may handle signals
        return

    def note(signum, frame):
        pressed.append(signum)
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)


def training_batches(
    corpus: str | Path, tokenizer: WordPieceTokenizer, recipe: Recipe, state: dict, progress: Callable[[], float]
) -> Iterator[tuple[dict[str, Tensor], float]]:
    """Batches and their mask rates until the budget is used up, from where `state` (epoch, chunk, batch) stands."""
    while True:
        for documents in tokenized_chunks(corpus, tokenizer, held_out=False, first=state["chunk"]):
            if state["batch"] == 0:  # the phase is that of the chunk's first batch, after a resume too
                state["phase_at"] = progress()
            _, length, mask_rate, batch_tokens = recipe.phase(state["phase_at"])
            rng = random.Random(f"{recipe.seed} {state['epoch']} {state['chunk']}")
            for batch in pair_batches(documents, tokenizer, length, batch_tokens, rng, recipe.objective.name)[state["batch"] :]:
                if progress() >= 1:
                    return
                yield batch, mask_rate
            state |= {"chunk": state["chunk"] + 1, "batch": 0}
        if not state["step"]:
            raise ValueError(f"corpus '{corpus}' is too small: not one pair of sentences from two documents to train on.")
        state |= {"epoch": state["epoch"] + 1, "chunk": 0, "batch": 0}


def save_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module, path: Path) -> None:
    names = {parameter: name for name, parameter in model.named_parameters()}
    write_tensors({f"{names[p]}/{kind}": value for p, state in optimizer.state.items() for kind, value in state.items()}, path)


def load_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module, path: Path) -> None:
    parameters, tensors = dict(model.named_parameters()), read_tensors(path)
    expected = {f"{name}/{kind}" for name in parameters for kind in ("exp_avg", "exp_avg_sq", "step")}
    if expected != set(tensors):
        raise ValueError(f"{path} does not fit the model: {', '.join(sorted(expected ^ set(tensors)))}.")
    for key, tensor in tensors.items():
        name, kind = key.rsplit("/", 1)
        optimizer.state[parameters[name]][kind] = tensor.to(parameters[name].device, copy=True)


@torch.no_grad()
def evaluate(
    model: BertForPreTraining,
    corpus: str | Path,
    tokenizer: WordPieceTokenizer,
    length: int = 128,
    batches: int = 100,
    seed: int = 0,
) -> dict[str, float]:
    """Held-out MLM loss (nats a token) and accuracy, NSP accuracy, and the unigram model's loss and accuracy beside them.

    15% of the tokens are masked. The unigram model knows how often each piece occurs in the first 64 chunks of the training
    text, and nothing else.

    Raises:
        ValueError: if fewer than two documents are held out.
    """
    model.eval()
    device = next(model.parameters()).device
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
    if not rows:
        raise ValueError(f"corpus '{corpus}' is too small: every {HELD_OUT}th document is held out, and two are needed.")
    counts = torch.ones(tokenizer.vocab_size)  # add-one smoothing
    for documents in itertools.islice(tokenized_chunks(corpus, tokenizer, False), 64):
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
