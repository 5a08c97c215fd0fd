"""Pretraining: the recipe, the training loop, resume and evaluation (Devlin et al. 2019, section 3.1 and appendix A).

Text streams in: a few dozen documents at a time are read from shards of token ids (`shards`), cut into pairs, batched by
length (so that next to nothing is padding) and masked (`objectives`). All randomness comes from (seed, epoch, chunk) and
(seed, step), so that a resumed run sees what the uninterrupted one would have seen.
"""

import ctypes
import itertools
import json
import os
import platform
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from . import inputs
from .checkpoint import find, from_pretrained, read_tensors, save_pretrained, write_tensors
from .config import BertConfig
from .doctor import bfloat16_speedup
from .files import read_json, replacing
from .model import BertAttention, BertEmbeddings, BertForPreTraining, parameter_groups
from .objectives import (  # noqa: F401 (mask_tokens and sentence_pairs: lessons import them from here)
    OBJECTIVES,
    Objective,
    mask_tokens,
    masked_batch,
    pair_batches,
    pretraining_losses,
    sentence_pairs,
)
from .processes import Processes
from .runlog import RunLog
from .shards import HELD_OUT, Shards, numbered_chunks, split_sentences, tokenized_chunks  # noqa: F401 (split_sentences: as above)
from .wordpiece import WordPieceTokenizer

LOG_EVERY = 20  # steps
STATE = "training_state.json"
COPIES = 10  # of the text, each masked in its own way, with static masking
POSITION = ("epoch", "chunk", "batch", "phase_at")  # of a process in its part of the text
KEPT = ("corpus", "objective", "masking", "whole_words", "seed")  # settings that a resumed run cannot change

Phase = tuple[float, int, float, int]  # share of the budget, sequence length, mask rate, tokens in a batch


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
    masking: str = "dynamic"  # other tokens each time a text is read; "static": the same every tenth time, as in the original
    whole_words: bool = False  # mask all pieces of a word together
    dropout: float = 0.0  # while pretraining: so small a model has enough to do with a text that it reads once or twice
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
        if self.masking not in ("dynamic", "static"):
            raise ValueError(f"no masking '{self.masking}'; there are: dynamic, static.")
        if self.objective.prepare is not masked_batch and (self.masking == "static" or self.whole_words):
            raise ValueError(f"'{self.objective.name}' masks nothing: neither static masking nor whole words are for it.")
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


def warm_start(model: nn.Module, tokenizer: WordPieceTokenizer, corpus: str | Path | Shards, chunks: int = 40) -> None:
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


def read_state(folder: str | Path) -> dict:
    """What `save_state` wrote of the run in `folder`, but for its tensors: "recipe" has the settings.

    Raises:
        ValueError: if there is no run, or the file is damaged.
    """
    path = Path(folder, STATE)
    if not path.exists():
        raise ValueError(f"{folder} holds no run to resume (no {STATE}).")
    state = read_json(path)
    if missing := {"recipe", "tensors", "positions"} - state.keys():
        raise ValueError(f"{path} is damaged, or by an older version of the course: it has no {', '.join(sorted(missing))}.")
    return state


def check(
    output: Path,
    tokenizer: WordPieceTokenizer,
    config: BertConfig,
    recipe: Recipe,
    settings: dict,
    resume: bool,
    tensorboard: bool,
) -> None:
    """Raises what `pretrain` says."""
    if tensorboard:
        try:
            import torch.utils.tensorboard  # noqa: F401
        except ImportError:
            raise ValueError("TensorBoard is not installed here: pip install tensorboard, or do without.") from None
    if resume:
        before, now = (
            {name: run[name] for name in KEPT} | {"phases": [phase[:3] for phase in run["phases"]]}  # batches may become smaller
            for run in (read_state(output)["recipe"], settings)
        )
        for name in before:
            if before[name] != now[name]:
                raise ValueError(f"{output} holds a run with {name} {before[name]}, not {now[name]}; resume with the same.")
    killed = any(output.glob(f"{STATE}.*"))  # while it wrote its first checkpoint: there is nothing to lose
    if not resume and ((output / STATE).exists() or (output / "model.safetensors").exists() and not killed):
        raise FileExistsError(f"{output} already holds a pretraining run or checkpoint; resume it, or choose another folder.")
    if tokenizer.vocab_size > config.vocab_size:
        raise ValueError(f"the vocabulary has {tokenizer.vocab_size} pieces, the config only {config.vocab_size}.")
    if (longest := max(phase[1] for phase in recipe.phases)) > config.max_position_embeddings:
        raise ValueError(f"a phase has sequence length {longest}, the model positions for {config.max_position_embeddings}.")


def keep_freed_memory() -> None:
    """glibc then keeps what a step frees for the next one, instead of giving it back to the system and asking for it again,
    page by page. For the whole process, as the environment variables MALLOC_MMAP_THRESHOLD_, MALLOC_TRIM_THRESHOLD_ and
    MALLOC_TOP_PAD_ would. Does nothing with any other C library.
    """
    if platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        for mmap_threshold in (2**25, 2**30):  # older versions refuse the second
            mallopt(-3, mmap_threshold)
        mallopt(-1, 2**31 - 1)  # trim threshold
        mallopt(-2, 2**28)  # top pad


def out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


@contextmanager
def saying_what_memory_is_for() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        raise ValueError("out of memory for weights, gradients and Adam's averages of them; take a smaller --preset.") from error


@saying_what_memory_is_for()
def pretrain(
    corpus: str | Path,
    output: str | Path,
    tokenizer: WordPieceTokenizer,
    config: BertConfig,
    recipe: Recipe,
    device: str = "cpu",
    resume: bool = False,
    progress_bar: bool = True,
    cache: str | Path | None = None,
    tensorboard: bool = False,
    start: str | Path | None = None,
) -> nn.Module:
    """Pretrain the model of `recipe.objective`. `output` gets the checkpoint, the vocabulary, the training state, the log (a
    line every 20 steps) and its curves; `cache`, by default its folder tokens, the tokenized corpus.

    With `start`, a folder or Hub name, a model that is pretrained already reads on: continued pretraining (Gururangan et al.
    2020), with the config of that checkpoint, which has to be read with its own `tokenizer`.

    Ctrl-C stops cleanly after the current step, with a checkpoint; `resume=True` goes on from the last one, with the stored
    config, to the weights that an uninterrupted run would have had. In the processes of `torchrun` each reads its own part of
    the corpus, a batch a step, and the first one writes; on several machines, to resume, all have to see the same `output`.

    Raises:
        ValueError: if the vocabulary does not fit the config, the corpus is too small or damaged, a batch or the model does
            not fit in memory, TensorBoard is asked for and missing, or there is nothing to resume, or a run with other settings.
        FileExistsError: if `output` already holds a run and `resume` is False.
        OSError: if something cannot be read or written. What was there before is unchanged.
    """
    output, objective, processes = Path(output), recipe.objective, Processes.join(device)
    name = Path(corpus).name if Path(corpus).exists() else str(corpus)
    settings = json.loads(json.dumps(asdict(recipe) | {"objective": objective.name, "corpus": name}))  # as they are stored
    if start and not resume:
        start = find(start)
        config = BertConfig.from_dict(read_json(start / "config.json"))
    check(output, tokenizer, config, recipe, settings, resume, tensorboard)
    if processes.device.type == "cpu":
        keep_freed_memory()
    output.mkdir(parents=True, exist_ok=True)
    text = Shards(corpus, tokenizer, cache or output / "tokens")
    if processes.count > 1:  # one process a machine tokenizes for all there
        if int(os.environ.get("LOCAL_RANK", 0)) == 0:
            text.complete()
        processes.wait()
    torch.manual_seed(recipe.seed)
    dropout = {"hidden_dropout_prob": recipe.dropout, "attention_probs_dropout_prob": recipe.dropout}
    if resume:
        config = BertConfig.from_dict(read_json(output / "config.json"))
        model = objective.model(replace(config, **dropout))
    elif start:
        model = from_pretrained(objective.model, start, **dropout)
    else:
        # 0.02, made for 768 numbers a token, is little for fewer
        model = objective.model(replace(config, initializer_range=config.hidden_size**-0.5, **dropout))
        if recipe.warm_start:
            warm_start(model, tokenizer, text)
    model.config = config  # what the checkpoint says is for those who fine-tune it
    model.to(processes.device).train()
    groups = parameter_groups(model, recipe.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=recipe.betas, fused=True)
    state = {"step": 0, "tokens": 0, "seconds": 0.0, "recent": []}  # recent: the losses since the last line of the log
    state |= dict(zip(POSITION, (0, processes.rank, 0, 0.0)))
    if resume:
        state |= load_state(output, model, optimizer, processes)
        if state["recipe"]["phases"] != settings["phases"]:  # batches of another size: the next one is the first of a chunk
            state |= {"chunk": state["chunk"] + processes.count, "batch": 0}
    else:
        state["bf16"] = processes.gather([bfloat16_speedup(device)])[0][0] > 1.4
    losses_of = Losses(model, objective)
    if processes.count > 1:
        losses_of = DistributedDataParallel(losses_of)
    prepare = partial(masked_batch, whole_words=True) if recipe.whole_words else objective.prepare
    started, saved = time.monotonic() - state["seconds"], state["seconds"]

    def progress() -> float:
        if recipe.minutes:
            return state["seconds"] / (60 * recipe.minutes)
        return state["step"] / recipe.steps if recipe.steps else state["tokens"] / recipe.tokens

    def save():
        positions = processes.gather([state[name] for name in POSITION])
        if processes.rank == 0:
            save_state(output, model, optimizer, state | {"recipe": settings, "positions": positions})
            log.draw()

    def backward(batch: dict) -> dict[str, Tensor]:
        """The losses, each multiplied by this process's share in their mean over all processes."""
        counts = [int((batch["labels"] != -100).sum()), len(batch["labels"])]
        predictions, rows = (processes.count * n / total for n, total in zip(counts, processes.sum(counts)))
        batch = {k: v if v is None else v.to(processes.device) for k, v in batch.items()}
        with torch.autocast(processes.device.type, torch.bfloat16, enabled=state["bf16"]):
            losses = losses_of(batch)
        losses = {name: loss * (rows if name.startswith("nsp") else predictions) for name, loss in losses.items()}
        sum(weight * losses[name] for name, weight in objective.weights.items()).backward()
        return losses

    if processes.rank == 0:
        tokenizer.save_pretrained(output)
        log = RunLog(output, state["step"], progress(), progress_bar, tensorboard)
    with stop_on_ctrl_c() as stopping, saving_on_errors(save if processes.count == 1 else None, state, output):
        for batch, mask_rate in training_batches(text, tokenizer, recipe, state, progress, processes.count):
            done = progress()
            torch.manual_seed(recipe.seed * 1_000_003 + state["step"] + (processes.rank << 40))
            ready = prepare(batch, tokenizer, mask_rate, mask_generator(recipe, state))
            for group in optimizer.param_groups:
                group["lr"] = recipe.learning_rate * recipe.rate_factor(done)
            if (losses := attempt(backward, ready)) is None:
                optimizer.zero_grad()
                raise ValueError(too_large(ready, 0 if processes.count > 1 else rows_that_fit(backward, ready)))
            torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()

            state["step"] += 1
            state["batch"] += 1
            clock = time.monotonic() - started if processes.rank == 0 else 0.0
            read = int((batch["input_ids"] != tokenizer.pad_id).sum())
            means = [x.item() / processes.count for x in losses.values()]
            tokens, state["seconds"], stop, *means = processes.sum([read, clock, len(stopping), *means])
            state["tokens"] += int(tokens)
            state["recent"].append(means)
            if state["step"] % LOG_EVERY == 0:
                line = {k: state[k] for k in ("step", "tokens", "seconds")} | {"length": ready["input_ids"].shape[1]}
                line |= {name: sum(column) / len(column) for name, column in zip(losses, zip(*state["recent"]))}
                if processes.rank == 0:
                    log.write(line, done)
                state["recent"] = []  # not before: on a full disk they are kept for the next line
            if stop:
                break
            if state["seconds"] - saved > 60 * recipe.save_every:
                save()
                saved = state["seconds"]
        save()
    if processes.rank == 0:
        log.close()
        if stopping:
            print(f"\nstopped at step {state['step']}; checkpoint in {output}, go on with --resume")
    processes.wait()  # what the first one writes is then written
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


@contextmanager
def saving_on_errors(save: Callable | None, state: dict, output: Path) -> Iterator[None]:
    """Keep the steps done so far when the text cannot be read on or the disk is full: between two steps nothing is half done."""
    try:
        yield
    except (OSError, ValueError):
        if save and state["step"]:
            with suppress(OSError):
                save()
        if (output / STATE).exists():
            print(f"\nThe checkpoint in {output} is whole; go on with --resume.", file=sys.stderr)
        raise


def attempt(backward: Callable[[dict], dict], batch: dict) -> dict | None:
    """What `backward` returns, or None if there is not enough memory for it."""
    try:
        return backward(batch)
    except RuntimeError as error:
        if out_of_memory(error):
            return None
        raise


def rows_that_fit(backward: Callable[[dict], dict], batch: dict) -> int:
    """Found by halving."""
    rows = len(batch["input_ids"]) // 2
    while rows and attempt(backward, {k: v if v is None else v[:rows] for k, v in batch.items()}) is None:
        rows //= 2
    return rows


def too_large(batch: dict, fit: int) -> str:
    rows, length = batch["input_ids"].shape
    advice = f"{fit} rows do fit: give --phases with batches of {fit * length} tokens" if fit else "give --phases smaller batches"
    return f"out of memory with {rows} rows of {length} tokens; {advice} at this length, or take a smaller --preset."


def training_batches(
    corpus: str | Path | Shards,
    tokenizer: WordPieceTokenizer,
    recipe: Recipe,
    state: dict,
    progress: Callable[[], float],
    processes: int = 1,
) -> Iterator[tuple[dict[str, Tensor], float]]:
    """Batches and their mask rates until the budget is used up, from where `state` (epoch, chunk, batch) stands.

    Of several processes each reads every `processes`th chunk, the first one that whose number is its rank.
    """
    while True:
        something = state["chunk"] >= processes or state["batch"] > 0  # or this is the start of an epoch
        for chunk, documents in numbered_chunks(corpus, tokenizer, False, state["chunk"], processes):
            if chunk > state["chunk"]:  # one without text has been passed over
                state |= {"chunk": chunk, "batch": 0}
            if state["batch"] == 0:  # the phase is that of the chunk's first batch, after a resume too
                state["phase_at"] = progress()
            _, length, mask_rate, batch_tokens = recipe.phase(state["phase_at"])
            rng = random.Random(f"{recipe.seed} {copy_of_text(recipe, state)} {chunk}")
            for batch in pair_batches(documents, tokenizer, length, batch_tokens, rng, recipe.objective.name)[state["batch"] :]:
                if progress() >= 1:
                    return
                something = True
                yield batch, mask_rate
            state |= {"chunk": chunk + processes, "batch": 0}
        if not something:
            shared = f" to share among {processes} processes" if processes > 1 else ""
            raise ValueError(f"corpus '{corpus}' is too small{shared}: not one pair of sentences from two documents to train on.")
        state |= {"epoch": state["epoch"] + 1, "chunk": state["chunk"] % processes, "batch": 0}


def copy_of_text(recipe: Recipe, state: dict) -> int:
    """Copies differ in their pairs and masks. Dynamic masking: each epoch reads one of its own."""
    return state["epoch"] % COPIES if recipe.masking == "static" else state["epoch"]


def mask_generator(recipe: Recipe, state: dict) -> torch.Generator:
    """Where the masks of the next batch come from: the step's random numbers, or with static masking the place in the text."""
    if recipe.masking == "dynamic":
        return torch.default_generator
    place = f"{recipe.seed} {copy_of_text(recipe, state)} {state['chunk']} {state['batch']}"
    return torch.Generator().manual_seed(random.Random(place).getrandbits(60))


class Losses(nn.Module):
    """The losses as the output of a module, so that `DistributedDataParallel` can wrap it."""

    def __init__(self, model: nn.Module, objective: Objective):
        super().__init__()
        self.model, self.losses = model, objective.losses

    def forward(self, batch: dict) -> dict[str, Tensor]:
        return self.losses(self.model, batch)


def save_state(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, state: dict) -> None:
    """All or nothing, at whatever moment the process is killed: `STATE` names the file of tensors that goes with it, and is the
    last to change. The checkpoint for use (config.json, model.safetensors) is not read again by a resumed run but for its config.
    """
    tensors = dict(model.named_parameters())
    names = {parameter: name for name, parameter in tensors.items()}
    moments = {f"{names[p]}/{kind}": value for p, kinds in optimizer.state.items() for kind, value in kinds.items()}
    file = f"training_state.{state['step']}.safetensors"
    with replacing(folder / STATE) as about, replacing(folder / file) as path:
        write_tensors(tensors | moments, path)
        about.write_text(json.dumps(state | {"tensors": file}, indent=1), encoding="utf-8")
        save_pretrained(model, folder)
    for pattern in ("training_state.*", "model.safetensors.*", "config.json.*"):
        for stale in folder.glob(pattern):  # an older state, or what a killed process has left
            if stale.name not in (STATE, file):
                stale.unlink()


def load_state(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, processes: Processes) -> dict:
    """Put weights and the optimizer's averages in place; returns the state with the position of this process.

    Raises:
        ValueError: if the files are damaged, do not fit the model, or are those of another number of processes.
    """
    state = read_state(folder)
    file, positions = state.pop("tensors"), state.pop("positions")
    if len(positions) != processes.count:
        raise ValueError(f"{folder} was trained by {len(positions)} processes, these are {processes.count}; resume with as many.")
    tensors, parameters = read_tensors(folder / file), dict(model.named_parameters())
    expected = {*parameters, *(f"{name}/{kind}" for name in parameters for kind in ("exp_avg", "exp_avg_sq", "step"))}
    if expected != set(tensors):
        raise ValueError(f"{folder / file} does not fit the model: {', '.join(sorted(expected ^ set(tensors)))}.")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors.pop(name))
    for key, tensor in tensors.items():
        name, kind = key.rsplit("/", 1)
        optimizer.state[parameters[name]][kind] = tensor.to(parameters[name].device, copy=True)
    epoch, chunk, batch, phase_at = positions[processes.rank]
    return state | {"epoch": int(epoch), "chunk": int(chunk), "batch": int(batch), "phase_at": phase_at}


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
