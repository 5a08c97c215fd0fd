"""Fine-tuning a pretrained BERT for four tasks, and using the result (Devlin et al. 2019, section 4 and appendix A.3).

sentiment, paraphrase: one label for a text or a pair. entities: one for every word. passages: where the answer stands.

Rows are dicts with the columns of `bert_course.tasks`. A model is one of `HEADS` or its namesake of `transformers`.
"""

import random
import re
import shutil
import string
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor
from tqdm.auto import tqdm

from . import tasks
from .checkpoint import HUB_MODEL, find, from_pretrained, save_pretrained
from .fast import classification_logits
from .files import read_json
from .inputs import Encoding, batch, encode, join, windows
from .lesson import device
from .model import (
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    init_weights,
    parameter_groups,
)
from .wordpiece import WordPieceTokenizer

HEADS = {
    "sentiment": BertForSequenceClassification,
    "paraphrase": BertForSequenceClassification,
    "entities": BertForTokenClassification,
    "passages": BertForQuestionAnswering,
}
MAIN_METRIC = {"sentiment": "accuracy", "paraphrase": "accuracy", "entities": "f1", "passages": "f1"}

# At their peak, for the course's checkpoint, tried on validation splits with one seed unless it says two.
# data/reviews, and 150 pairs kept out of its training split. Eight epochs from pretrained weights: 2e-4 0.76, 4e-4 0.78,
#   6e-4 0.77, 8e-4 0.75; with a fresh pooler, two seeds, 4e-4: 0.78, 0.79. From random weights (of an earlier checkpoint's
#   trial): 3e-4 0.73; 1.5e-4 (three epochs) 0.57; 6e-4 stayed at chance.
# data/paraphrases: 3e-4 0.58 (five epochs; without dropout 0.64), 6e-4 0.53 (four epochs). From random weights: not tried.
# data/entities, F1 after six epochs: 3e-4 0.36, 6e-4 0.41, 1e-3 0.36; from random weights 0.23, 0.21, 0.24.
# data/passages: in eight epochs of 6e-4 nothing but "no answer" (F1 0.18). Other rates were not tried.
LEARNING_RATES = {
    "sentiment": {"pretrained": 4e-4, "random": 3e-4},
    "paraphrase": {"pretrained": 3e-4, "random": 3e-4},
    "entities": {"pretrained": 6e-4, "random": 6e-4},
    "passages": {"pretrained": 6e-4, "random": 6e-4},
}
LARGE_MODEL_RATE = 3e-5  # of the paper's 5e-5, 3e-5 and 2e-5, for models at least as wide as BERT-base


def start_from(task: str, checkpoint: str | Path, **config) -> torch.nn.Module:
    """A pretrained model with a new head for the task, its labels named. Seed torch before: the head is random.

    A model that has such a head already keeps it. For sentiment the pooler is new too.
    """
    labels = {"id2label": dict(enumerate(tasks.LABELS[task]))} if task in tasks.LABELS else {}
    folder = find(checkpoint)
    model = from_pretrained(HEADS[task], folder, new_head=True, **(labels | config))
    tuned = read_json(folder / "config.json").get("architectures") == [HEADS[task].__name__]
    if task == "sentiment" and not tuned:
        # Next sentence prediction, which trained the pooler, is about pairs (Zhang et al. 2021, section 5).
        init_weights(model.bert.pooler, replace(model.config, initializer_range=model.config.hidden_size**-0.5))
    return model


def task_of(folder: Path) -> str:
    """Which task a saved model was fine-tuned for, by its head and labels. A classifier with other labels reads one text."""
    config = read_json(folder / "config.json")
    head = (config.get("architectures") or [""])[0]
    if list(config.get("id2label", {}).values()) == tasks.LABELS["paraphrase"]:
        return "paraphrase"
    for task, model in HEADS.items():
        if model.__name__ == head:
            return task
    raise ValueError(f"{folder} holds a {head or 'model without architectures'}. Fine-tune it first: bert-course finetune.")


def fine_tune(
    task: str,
    model: torch.nn.Module,
    tokenizer: WordPieceTokenizer,
    train: Sequence[dict],
    validation: Sequence[dict],
    output: str | Path | None = None,
    *,
    epochs: int = 3,
    batch_size: int = 16,
    learning_rate: float | None = None,
    warmup: float = 0.1,
    weight_decay: float = 0.01,
    seed: int = 0,
    patience: int | None = None,
    resume: bool = False,
    progress_bar: bool = False,
) -> list[dict]:
    """Train in place, on the device where the model is, with `transformers.Trainer`: AdamW, gradients clipped at norm 1.

    Args:
        output: folder for the model; while training, also for a checkpoint to go on from, written after each epoch and removed
            at the end. Without it nothing is kept on disk.
        learning_rate: at its peak; default: `LEARNING_RATES` for small models, the paper's 3e-5 from 768 wide.
        warmup: share of the steps in which the learning rate rises; then it falls to zero. Both are straight lines.
        weight_decay: of matrices; biases and LayerNorm have none.
        seed: decides the order of the rows and what dropout drops.
        patience: stop after so many epochs without a better `MAIN_METRIC` on `validation`, and return to the best epoch.
        resume: go on from the last whole checkpoint in `output`; the other arguments have to be the same.
    Returns:
        for each epoch "epoch", the mean training "loss" and what `evaluate` says of `validation`.
    Raises:
        ValueError: if there is nothing to train on, to validate with or to resume; of a row that cannot be learned from.
        FileExistsError: if `output` already holds a run and `resume` is False.
        OSError: if a checkpoint cannot be written, on a full disk for example. Those before it are whole.
    """
    if not train or not validation:
        raise ValueError(f"no rows to {'validate with' if train else 'train on'}.")
    if epochs < 1:
        raise ValueError(f"epochs is {epochs}, but it takes at least 1.")
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}, but it takes at least 1.")
    examples(task, model, tokenizer, validation)  # what cannot be read is refused here, not after an epoch
    rows = examples(task, model, tokenizer, train)
    rng = random.Random(seed)
    plan = [similar_lengths(rows, batch_size, rng) for _ in range(epochs)]
    steps = sum(map(len, plan))
    large = model.config.hidden_size >= 768
    if learning_rate is None:
        learning_rate = LARGE_MODEL_RATE if large else LEARNING_RATES[task]["pretrained"]
    optimizer = torch.optim.AdamW(parameter_groups(model, weight_decay), lr=learning_rate, fused=True)
    rising = max(1, warmup * steps)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / rising, (steps - step) / max(1, steps - rising))
    )
    output = None if output is None else Path(output)
    last = None if output is None else last_checkpoint(output)
    done = output is not None and (output / "config.json").exists()
    if resume and done:
        raise ValueError(f"{output} holds a model whose training is done: there is nothing to resume.")
    if resume and last is None:
        raise ValueError(f"{output} holds no checkpoint to resume.")
    if not resume and (last or done):
        raise FileExistsError(f"{output} already holds a run or a model; resume it, or choose another folder.")
    with tempfile.TemporaryDirectory() as temporary:
        keep = output is not None or patience is not None
        settings = dict(
            output_dir=str(output or temporary), num_train_epochs=epochs, per_device_train_batch_size=batch_size, seed=seed,
            logging_strategy="epoch", eval_strategy="epoch", save_strategy="epoch" if keep else "no",
            save_total_limit=1, save_only_model=output is None, load_best_model_at_end=patience is not None,
            metric_for_best_model="spearman" if model.config.num_labels == 1 else MAIN_METRIC[task],
            greater_is_better=True, use_cpu=device_of(model).type == "cpu",
        )

        def measure() -> dict[str, float]:
            return evaluate(task, model, tokenizer, validation)

        batches = Batches(plan, tokenizer.pad_id, tqdm(total=steps, unit="step", disable=not progress_bar))
        half = large and device_of(model).type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        trainer = make_trainer(model, batches, measure, (optimizer, schedule), settings, patience, half)
        try:
            trainer.train(resume_from_checkpoint=last and str(last))
        except (SafetensorError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and not re.search("PytorchStreamWriter|inline_container|iostream", str(error)):
                raise
            raise OSError(f"{output}: checkpoint not saved ({error}). Is the disk full? Earlier ones are whole.") from error
        finally:
            batches.bar.close()
    model.eval()
    if output is not None:
        save(model, output)
        tokenizer.save_pretrained(output)
        for checkpoint in output.glob("checkpoint-[0-9]*"):  # with the optimizer's state and other pickles
            shutil.rmtree(checkpoint)
    return history_of(trainer.state.log_history)


def full_size(task: str, rows: int | None, **settings) -> dict[str, float]:
    """Fine-tune bert-base-uncased on public data, both from the Hub, on the lesson's device: how lessons 12 to 15 end.

    Args:
        rows: so many of each split, drawn at random; None: all.
        settings: of `fine_tune`.
    Returns:
        the number of "rows" trained on, the "minutes" it took without the download, and what `evaluate` says of the test split
        or, where the labels of that are secret, of the validation split.
    Raises:
        FileNotFoundError: if the Hub does not give the model or the data.
    """
    data = {split: table.shuffle(seed=0).to_list()[:rows] for split, table in tasks.load(task, "hub").items()}
    base = find(HUB_MODEL)
    tokenizer = WordPieceTokenizer.from_pretrained(base)
    torch.manual_seed(0)
    model = start_from(task, base).to(device())
    started = time.perf_counter()
    [*_, scores] = fine_tune(task, model, tokenizer, data["train"], data["validation"], progress_bar=True, **settings)
    if "test" in data:
        scores = evaluate(task, model, tokenizer, data["test"])
    return {"rows": len(data["train"]), "minutes": (time.perf_counter() - started) / 60} | scores


def history_of(log: list[dict]) -> list[dict]:
    """The Trainer's log, one dict an epoch."""
    history = defaultdict(dict)
    for entry in log:
        epoch = round(entry["epoch"])
        found = {name.removeprefix("eval_"): value for name, value in entry.items() if name == "loss" or name[:5] == "eval_"}
        if found:
            history[epoch] |= {"epoch": epoch} | found
    return list(history.values())


def make_trainer(model, batches: "Batches", measure, optimizers: tuple, settings: dict, patience: int | None, half: bool):
    """A quiet `transformers.Trainer` that reads our batches and calls `measure` after each epoch.

    Args:
        optimizers: the optimizer and its schedule.
        settings: of `transformers.TrainingArguments`.
        half: compute in bfloat16, on a GPU; the weights stay float32.
    """
    from transformers import PrinterCallback, Trainer, TrainingArguments

    class Tuner(Trainer):
        def get_train_dataloader(self):
            return batches

        def compute_loss(self, model, inputs, **_):
            with torch.autocast("cuda", torch.bfloat16, enabled=half):
                return model(**inputs)["loss"]

        def save_model(self, output_dir=None, _internal_call=False):
            save(self.model, output_dir)

        def evaluate(self, *args, **kwargs):
            metrics = {f"eval_{name}": value for name, value in measure().items()}
            self.log(metrics)
            key = f"eval_{self.args.metric_for_best_model}"
            values = [entry[key] for entry in self.state.log_history if key in entry]
            if patience is not None and len(values) - 1 - values.index(max(values)) >= patience:
                self.control.should_training_stop = True
            return metrics

    quiet = dict(report_to="none", disable_tqdm=True, logging_nan_inf_filter=False, dataloader_pin_memory=False)
    trainer = Tuner(model, TrainingArguments(**settings, **quiet), train_dataset=[0], eval_dataset=[0], optimizers=optimizers)
    trainer.model_accepts_loss_kwargs = False
    trainer.remove_callback(PrinterCallback)
    return trainer


def save(model: torch.nn.Module, folder: str | Path) -> None:
    """In the Hugging Face layout, whose ever the model is, without a progress bar."""
    if not hasattr(model, "save_pretrained"):
        return save_pretrained(model, folder)
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    model.save_pretrained(folder)
    if shown:
        logging.enable_progress_bar()


def last_checkpoint(output: Path) -> Path | None:
    """The newest whole checkpoint: the Trainer writes the file trainer_state.json last."""
    whole = [path.parent for path in output.glob("checkpoint-*/trainer_state.json")]
    return max(whole, key=lambda path: int(path.name.split("-")[1]), default=None)


Example = tuple[Encoding, dict[str, int | list[int]]]  # an input, and what the model is to say: arguments of its forward()


class Batches:
    """The batches of every epoch, as the Trainer reads them, and a progress bar of them."""

    def __init__(self, plan: list[list[list[Example]]], pad_id: int, bar: tqdm):
        self.plan, self.pad_id, self.bar, self.epoch = plan, pad_id, bar, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch
        self.bar.update(epoch * len(self) - self.bar.n)  # a resumed run begins later

    def __len__(self) -> int:
        return len(self.plan[0])

    def __iter__(self):
        for chosen in self.plan[self.epoch]:
            yield collate(chosen, self.pad_id)
            self.bar.update()


def collate(chosen: Sequence[Example], pad_id: int) -> dict[str, Tensor]:
    """Pad inputs and, where every token has one, labels (with -100, "no label here")."""
    encodings, targets = zip(*chosen)
    inputs = batch(encodings, pad_id)
    width = inputs["input_ids"].shape[1]
    for name in targets[0]:
        values = [target[name] for target in targets]
        if isinstance(values[0], list):
            values = [row + [-100] * (width - len(row)) for row in values]
        inputs[name] = torch.tensor(values)
    return inputs


def similar_lengths(rows: list[tuple], batch_size: int, rng: random.Random) -> list[list[tuple]]:
    """Batches in random order, of rows of about equal length, so that little of a batch is padding."""
    jittered = sorted(rows, key=lambda row: len(row[0]) + rng.uniform(-4, 4))
    batches = [jittered[i : i + batch_size] for i in range(0, len(rows), batch_size)]
    rng.shuffle(batches)
    return batches


def examples(task: str, model: torch.nn.Module, tokenizer: WordPieceTokenizer, rows: Sequence[dict]) -> list[Example]:
    """Inputs and targets of labelled rows. A passage has one for each window."""
    longest = model.config.max_position_embeddings
    regression = model.config.num_labels == 1
    if task in tasks.LABELS and not regression:
        column = "ner_tags" if task == "entities" else "label"
        labels = {i for row in rows for i in np.atleast_1d(row[column]).tolist()}
        if unknown := labels - set(range(model.config.num_labels)):
            raise ValueError(f"labels {sorted(unknown)} are not among the model's {model.config.id2label}.")

    def of(row):
        if task == "passages":
            found = encode_passage(tokenizer, row, longest)
            places = [place_of(row["answers"], window) for window in found]
            return [(Encoding(w.input_ids, w.token_type_ids, []), place) for w, place in zip(found, places)]  # saves memory
        if task == "entities":
            encoding, labels, _ = align(tokenizer, row["tokens"], row["ner_tags"], longest)
            return [(encoding, {"labels": labels})]
        return [(encode_texts(task, tokenizer, row, longest), {"labels": float(row["label"]) if regression else row["label"]})]

    return [example for found in each(rows, of) for example in found]


def each(rows: Sequence[dict], function):
    """[function(row), ...]; an error says which row it is."""
    results = []
    for number, row in enumerate(rows, start=1):
        try:
            results.append(function(row))
        except ValueError as error:
            raise ValueError(f"row {number}: {error}") from None
    return results


def encode_texts(task: str, tokenizer: WordPieceTokenizer, row: dict, max_length: int) -> Encoding:
    encoding = encode(tokenizer, *(row[name] for name in tasks.TEXTS[task]), max_length=sys.maxsize)
    if len(encoding) > max_length:
        problem = f"the input has {len(encoding)} tokens, but max_length is {max_length}."
        raise ValueError(f"{problem} Shorten the text in that row, or split it.")
    return encoding


def encode_passage(tokenizer: WordPieceTokenizer, row: dict, max_length: int) -> list[Encoding]:
    return windows_of(tokenizer, row["question"], row["context"], min(384, max_length), min(128, max_length // 4))


def place_of(answers: dict, window: Encoding) -> dict[str, int]:
    """The first and last token of the (first) answer; both 0, [CLS], if it is not or not wholly in this window."""
    if answers["text"]:
        start = answers["answer_start"][0]
        end = start + len(answers["text"][0])
        inside = [i for i, (a, b) in enumerate(window.offsets) if a < end and b > start]
        passage = [place for place in window.offsets if place[1]]
        if inside and passage[0][0] <= start and end <= passage[-1][1]:
            return {"start_positions": inside[0], "end_positions": inside[-1]}
    return {"start_positions": 0, "end_positions": 0}


def predict(task: str, model: torch.nn.Module, tokenizer: WordPieceTokenizer, rows: Sequence[dict], batch_size: int = 64):
    """What the model says of each row, in their order.

    Returns:
        sentiment, paraphrase: probabilities, a (rows, labels) array; of a model with a single label its scores, (rows, 1).
        entities: for each row a list of tags, one a word.
        passages: for each row the best few answers, best first, as {"text", "start", "end", "score"}, with start and end in
            characters of the context. One of them is "no answer", {"text": "", "start": 0, "end": 0, "score": ...}.
    """
    longest = model.config.max_position_embeddings
    if task == "passages":
        windows = each(rows, lambda row: encode_passage(tokenizer, row, longest))
        scores = iter(logits_of(model, tokenizer, [window for found in windows for window in found], batch_size))
        answers = []
        for row, found in zip(rows, windows):
            starts, ends = zip(*(next(scores).T for _ in found))
            best = best_spans(starts, ends, [window.offsets for window in found])
            answers.append([{"text": row["context"][span["start"] : span["end"]]} | span for span in best])
        return answers
    if task == "entities":
        aligned = each(rows, lambda row: align(tokenizer, row["tokens"], max_length=longest))
        scores = logits_of(model, tokenizer, [encoding for encoding, _, _ in aligned], batch_size)
        names = model.config.id2label
        return [[names[i] for i in found[first].argmax(-1).tolist()] for found, (_, _, first) in zip(scores, aligned)]
    encodings = each(rows, lambda row: encode_texts(task, tokenizer, row, longest))
    logits = np.array(logits_of(model, tokenizer, encodings, batch_size)).reshape(-1, model.config.num_labels)
    return logits if model.config.num_labels == 1 else torch.from_numpy(logits).softmax(-1).numpy()


@torch.inference_mode()
def logits_of(
    model: torch.nn.Module, tokenizer: WordPieceTokenizer, encodings: Sequence[Encoding], batch_size: int
) -> list[np.ndarray]:
    """The model's scores of each input: (labels,), or (S, labels) if it scores every token (start, end count as labels)."""
    if model.training:  # of the time for one text, 5% would go into this
        model.eval()
    order = sorted(range(len(encodings)), key=lambda i: len(encodings[i]))
    found = [None] * len(order)
    for first in range(0, len(order), batch_size):
        chosen = order[first : first + batch_size]
        inputs = {name: ids.to(device_of(model)) for name, ids in batch([encodings[i] for i in chosen], tokenizer.pad_id).items()}
        if isinstance(model, BertForSequenceClassification):
            if len(encodings[chosen[0]]) == len(encodings[chosen[-1]]):
                inputs["attention_mask"] = None  # no padding
            logits = classification_logits(model, **inputs)
        else:
            output = model(**inputs)
            logits = output["logits"] if "logits" in output else torch.stack([output["start_logits"], output["end_logits"]], -1)
        for i, scores in zip(chosen, logits.float().cpu().numpy()):
            found[i] = scores if scores.ndim == 1 else scores[: len(encodings[i])]
    return found


def device_of(model: torch.nn.Module) -> torch.device:
    return next(model.parameters()).device


def evaluate(task: str, model: torch.nn.Module, tokenizer: WordPieceTokenizer, rows: Sequence[dict]) -> dict[str, float]:
    """Scores of the predictions, each a share from 0 to 1.

    sentiment, paraphrase: accuracy, f1 (of label 1; the mean over the labels if there are more than two). If the model has a
        single label, so that labels are numbers: pearson and spearman, their correlation with its scores.
    entities: precision, recall and f1 of whole names with the right type (seqeval, strict IOB2); token_accuracy, of words.
    passages: exact_match and f1 as in SQuAD 2.0; the f1 of questions with an answer, has_answer_f1, and the share of those
        without one that get none, no_answer_accuracy.
    """
    if not rows:
        raise ValueError("no rows to evaluate.")
    guesses = predict(task, model, tokenizer, rows)
    if task == "passages":
        return score_answers(rows, [candidates[0]["text"] for candidates in guesses])
    if task == "entities":
        return score_entities([[model.config.id2label[i] for i in row["ner_tags"]] for row in rows], guesses)
    truth = [row["label"] for row in rows]
    if model.config.num_labels == 1:
        from scipy.stats import pearsonr, spearmanr

        return {name: float(of(truth, guesses[:, 0]).statistic) for name, of in (("pearson", pearsonr), ("spearman", spearmanr))}
    from sklearn.metrics import accuracy_score, f1_score

    guesses, average = guesses.argmax(-1), "binary" if model.config.num_labels == 2 else "macro"
    f1 = f1_score(truth, guesses, average=average, zero_division=0)
    return {"accuracy": float(accuracy_score(truth, guesses)), "f1": float(f1)}


# Entities


def align(
    tokenizer: WordPieceTokenizer, words: Sequence[str], tags: Sequence[int] | None = None, max_length: int = 512
) -> tuple[Encoding, list[int] | None, list[int]]:
    """Words to word pieces: [CLS] pieces [SEP], where the first piece of a word speaks for the word (section 5.3).

    A word that leaves no piece, such as a control character, becomes [UNK].

    Args:
        tags: the label of each word.
    Returns:
        the encoding, with offsets in " ".join(words); for every token its label, -100 where it has none (None without
        `tags`); for every word the index of its first token.
    Raises:
        ValueError: if there are more than `max_length` tokens.
    """
    pieces, first, start = [], [], 0
    for word in words:
        ids, places = tokenizer.encode_with_offsets(word)
        if not ids:
            ids, places = [tokenizer.unk_id], [(0, len(word))]
        first.append(1 + len(pieces))
        pieces += [(i, (start + a, start + b)) for i, (a, b) in zip(ids, places)]
        start += len(word) + 1
    encoding = join(tokenizer, pieces)
    if len(encoding) > max_length:
        raise ValueError(f"{len(words)} words are {len(encoding)} tokens, but max_length is {max_length}. Split the sentence.")
    labels = None
    if tags is not None:
        labels = [-100] * len(encoding)
        for i, tag in zip(first, tags, strict=True):
            labels[i] = tag
    return encoding, labels, first


def score_entities(truth: Sequence[Sequence[str]], guesses: Sequence[Sequence[str]]) -> dict[str, float]:
    """Precision, recall and F1 of whole names, and accuracy of single words, from tags such as B-PER, I-PER and O."""
    from seqeval.metrics.v1 import precision_recall_fscore_support
    from seqeval.scheme import IOB2

    truth, guesses = list(map(list, truth)), list(map(list, guesses))
    scores = precision_recall_fscore_support(truth, guesses, average="micro", scheme=IOB2, zero_division=0)
    right = [a == b for tags, others in zip(truth, guesses) for a, b in zip(tags, others, strict=True)]
    return dict(zip(("precision", "recall", "f1"), map(float, scores))) | {"token_accuracy": sum(right) / len(right)}


def names_in(text: str, words: Sequence[str], tags: Sequence[str]) -> list[dict]:
    """The names that `score_entities` counts, as {"type", "text", "start", "end"} in characters of the text: each begins with
    a B and goes on with I of its type (strict IOB2)."""
    from seqeval.scheme import IOB2, Entities

    places, end = [], 0
    for word in words:
        start = text.index(word, end)
        end = start + len(word)
        places.append((start, end))
    [names] = Entities([list(tags)], IOB2).entities
    spans = [(name.tag, places[name.start][0], places[name.end - 1][1]) for name in names]
    return [{"type": kind, "text": text[start:end], "start": start, "end": end} for kind, start, end in spans]


# Passages


def windows_of(
    tokenizer: WordPieceTokenizer, question: str, context: str, max_length: int = 384, stride: int = 128
) -> list[Encoding]:
    """[CLS] question [SEP] window [SEP] for each window of the context (section 4.2 and google-research/bert run_squad.py).

    Offsets are characters of the context; all tokens that are no part of it have (0, 0).
    """
    found = windows(tokenizer, context, question, max_length, stride)
    for window in found:
        window.offsets = [place if segment else (0, 0) for place, segment in zip(window.offsets, window.token_type_ids)]
    return found


def best_spans(
    start_logits: Sequence, end_logits: Sequence, offsets: Sequence[Sequence], n_best: int = 5, max_answer_tokens: int = 30
) -> list[dict]:
    """The best answers of one question: spans i <= j inside a window of the passage, scored by start_i + end_j.

    Args:
        start_logits, end_logits: (S,) for each window; more than the offsets of a window is padding.
        offsets: of each window, (0, 0) where a token is no part of the passage.
    Returns:
        up to `n_best` {"start", "end", "score"}, in characters, and "no answer" (0, 0); best first. "No answer" has the score
        of [CLS] as start and end, and of several windows the lowest: the answer has to be missing in all of them.
    """
    scores, nothing = {}, float("inf")
    for starts, ends, places in zip(start_logits, end_logits, offsets, strict=True):
        starts, ends = (np.asarray(row, dtype=float)[: len(places)] for row in (starts, ends))
        nothing = min(nothing, starts[0] + ends[0])
        outside = np.array([b == 0 for _, b in places])
        starts, ends = np.where(outside, -np.inf, starts), np.where(outside, -np.inf, ends)
        later = np.concatenate([ends, np.full(max_answer_tokens - 1, -np.inf)])
        total = starts[:, None] + np.lib.stride_tricks.sliding_window_view(later, max_answer_tokens)  # (S, tokens of a span)
        for flat in np.argsort(-total, axis=None, kind="stable")[:n_best]:
            i, length = divmod(int(flat), max_answer_tokens)
            if total[i, length] > -np.inf:
                span = places[i][0], places[i + length][1]
                scores[span] = max(scores.get(span, -np.inf), float(total[i, length]))
    best = sorted(scores.items(), key=lambda item: -item[1])[:n_best]
    found = [{"start": start, "end": end, "score": score} for (start, end), score in [((0, 0), float(nothing)), *best]]
    return sorted(found, key=lambda span: -span["score"])


def normalize_answer(text: str) -> str:
    """Lower case, without punctuation, articles and surplus space, as the official SQuAD script compares answers."""
    text = "".join(char for char in text.lower() if char not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def exact_match(prediction: str, golds: Sequence[str]) -> float:
    """1 if the prediction is one of the right answers, else 0. No right answers: the right one is ""."""
    return float(normalize_answer(prediction) in map(normalize_answer, real(golds)))


def answer_f1(prediction: str, golds: Sequence[str]) -> float:
    """Words in common with a right answer: the harmonic mean of precision and recall, for the answer where it is best."""

    def f1(gold: str) -> float:
        said, right = normalize_answer(prediction).split(), normalize_answer(gold).split()
        if not said or not right:
            return float(said == right)
        common = sum((Counter(said) & Counter(right)).values())
        return 2 * common / (len(said) + len(right))

    return max(map(f1, real(golds)))


def real(golds: Sequence[str]) -> list[str]:
    return [gold for gold in golds if normalize_answer(gold)] or [""]


def score_answers(rows: Sequence[dict], answers: Sequence[str]) -> dict[str, float]:
    golds = [row["answers"]["text"] for row in rows]
    exact = [exact_match(answer, gold) for answer, gold in zip(answers, golds, strict=True)]
    f1 = [answer_f1(answer, gold) for answer, gold in zip(answers, golds)]
    scores = {"exact_match": np.mean(exact), "f1": np.mean(f1)}
    if some := [x for x, gold in zip(f1, golds) if gold]:
        scores["has_answer_f1"] = np.mean(some)
    if none := [x for x, gold in zip(f1, golds) if not gold]:
        scores["no_answer_accuracy"] = np.mean(none)
    return {name: float(value) for name, value in scores.items()}


def bootstrap(values: Sequence[float], seed: int = 0, rounds: int = 1000) -> tuple[float, float]:
    """Between which bounds 95% of the means lie when the values are drawn anew, with replacement, `rounds` times."""
    values, rng = np.asarray(values, dtype=float), np.random.default_rng(seed)
    means = [rng.choice(values, len(values)).mean() for _ in range(rounds)]
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


# Reviews


def bag_of_words(longest: int = 1):
    """TF-IDF and logistic regression, as a scikit-learn pipeline: which words stand in a text, not in which order.

    Args:
        longest: 2 counts pairs of neighbouring words too.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    counts = TfidfVectorizer(ngram_range=(1, longest), token_pattern=r"[\w']+")  # "didn't" is one word
    return make_pipeline(counts, LogisticRegression(C=10, max_iter=1000))  # C chosen on the validation split


def score(rows: Sequence[dict], guesses: Sequence[int]) -> dict[str, float]:
    """Accuracy on data/reviews: all rows, each case, domains seen and not seen in training, and twin pairs with both right."""
    groups, pairs = defaultdict(list), defaultdict(list)
    for row, guess in zip(rows, guesses, strict=True):
        right = guess == row["label"]
        for group in ("all", row["case"], "shifted" if row["domain"] in tasks.SHIFTED else "in domain"):
            groups[group].append(right)
        if row["case"] in tasks.TWINS:
            pairs[row["pair"]].append(right)
    if pairs:
        groups["both twins"] = [all(twins) for twins in pairs.values()]
    return {group: sum(right) / len(right) for group, right in groups.items()}


def sample_pairs(rows: Sequence[dict], size: int, seed: int) -> list[dict]:
    """`size` rows in whole pairs, so that both labels are equally frequent."""
    pairs = sorted({row["pair"] for row in rows})
    chosen = set(random.Random(seed).sample(pairs, size // 2))
    return [row for row in rows if row["pair"] in chosen]
