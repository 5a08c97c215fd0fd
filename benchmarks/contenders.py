"""What is compared: pretraining, fine-tuning and prediction by the course and by `transformers`, on the same texts.

Every function goes round after round until `lap` ends its process; see `rounds`.
"""

import tempfile
import time
from unittest.mock import patch

import torch

from bert_course import finetuning, pretraining
from bert_course.checkpoint import from_pretrained
from bert_course.config import BertConfig
from bert_course.wordpiece import WordPieceTokenizer

MASK_RATE = 0.15


def matrix_products(lap, device: str, half: bool, size: int, times: int) -> None:
    """The machine's rate: products of two square matrices, in bfloat16 if `half`."""
    x = torch.rand(size, size, dtype=torch.bfloat16 if half else torch.float32, device=device)
    while True:
        lap(flops=2 * size**3 * times)
        for _ in range(times):
            x @ x


# Pretraining. A round reads each pair once; all contenders mask anew each time. Making pairs from text is not counted.


def pretrain(lap, device: str, config: BertConfig, folder: str, batches: list[dict], length: int, batch_tokens: int) -> None:
    """`bert_course.pretraining.pretrain` as it is, on `batches` that its `training_batches` has made."""
    tokenizer = WordPieceTokenizer.from_pretrained(folder)
    batches = [{name: torch.tensor(rows) for name, rows in batch.items()} for batch in batches]

    def training_batches(*args):
        tokens = 0
        while True:
            lap(tokens=tokens)
            tokens = 0
            for batch in batches:
                tokens += int((batch["input_ids"] != tokenizer.pad_id).sum())
                yield batch, MASK_RATE

    recipe = pretraining.Recipe(steps=10**9, phases=((1, length, MASK_RATE, batch_tokens),), warm_start=False, save_every=1e9)
    with tempfile.TemporaryDirectory() as output, patch.object(pretraining, "training_batches", training_batches):
        pretraining.pretrain("docstrings", output, tokenizer, config, recipe, device, progress_bar=False)


def trainer_pretrain(
    lap, device: str, config: BertConfig, folder: str, batches: list[dict], length: int, batch_tokens: int,
    tuned: bool, half: bool,
) -> None:
    """`transformers.BertForPreTraining` with the `Trainer` and `DataCollatorForLanguageModeling`.

    Not tuned: float32, padded to `length`, dropout of the config. Tuned: bfloat16 if `half`, similar lengths together, padded to
    the longest of the batch, and as in the course's engine no dropout and, on a CPU, freed memory that is kept.
    """
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    rows = [row for batch in batches for row in rows_of(batch, tokenizer)]
    if not tuned:
        rows = [{k: v if k == "next_sentence_label" else padded(v, length, k) for k, v in row.items()} for row in rows]
    if tuned and device == "cpu":
        pretraining.keep_freed_memory()
    changes = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0} if tuned else {}
    model = transformers.BertForPreTraining(transformers.BertConfig.from_dict(config.to_dict() | changes))
    masking = transformers.DataCollatorForLanguageModeling(tokenizer, mlm_probability=MASK_RATE)
    tokens = 0

    def collate(chosen: list[dict]) -> dict:
        nonlocal tokens
        tokens += sum(sum(row["attention_mask"]) for row in chosen)
        return masking(chosen)

    class Laps(transformers.TrainerCallback):
        def on_epoch_begin(self, args, state, control, **kwargs):
            nonlocal tokens
            lap(tokens=tokens)
            tokens = 0

    settings = {"per_device_train_batch_size": batch_tokens // length, "num_train_epochs": 10**6}
    settings |= {"train_sampling_strategy": "group_by_length", "bf16": half} if tuned else {}
    train(model, rows, device, settings, collate, [Laps()])


def rows_of(batch: dict, tokenizer) -> list[dict]:
    """The pairs of a batch without padding, with the columns that `transformers` wants."""
    rows = []
    for ids, segments, label in zip(batch["input_ids"], batch["token_type_ids"], batch["next_sentence_label"]):
        ids = [token for token in ids if token != tokenizer.pad_token_id]
        special = [int(token in (tokenizer.cls_token_id, tokenizer.sep_token_id)) for token in ids]
        rows.append({"input_ids": ids, "token_type_ids": segments[: len(ids)], "attention_mask": [1] * len(ids),
                     "special_tokens_mask": special, "next_sentence_label": label})
    return rows


def padded(values: list[int], length: int, column: str) -> list[int]:
    return values + [int(column == "special_tokens_mask")] * (length - len(values))  # [PAD] is 0, and special


def train(model, rows, device: str, settings: dict, collate, callbacks=()) -> None:
    import transformers

    with tempfile.TemporaryDirectory() as output:
        quiet = {"report_to": "none", "disable_tqdm": True, "save_strategy": "no", "use_cpu": device == "cpu"}
        args = transformers.TrainingArguments(output, dataloader_pin_memory=device == "cuda", **quiet, **settings)
        trainer = transformers.Trainer(model, args, train_dataset=rows, data_collator=collate, callbacks=list(callbacks))
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()


# Fine-tuning. A round is everything from rows of text to a model trained for an epoch, in batches of 16.


def fine_tune(lap, device: str, folder: str, rows: list[dict]) -> None:
    model = finetuning.start_from("sentiment", folder).to(device)
    while True:
        lap()
        finetuning.fine_tune("sentiment", model, WordPieceTokenizer.from_pretrained(folder), rows, rows[:1], epochs=1)


def trainer_fine_tune(lap, device: str, folder: str, rows: list[dict], length: int | None) -> None:
    """As in the Hugging Face course, chapter 3: padded to `length`, or to the longest of the batch if it is None. Float32."""
    import datasets
    import transformers

    datasets.disable_progress_bars()
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    padding = {"padding": "max_length", "max_length": length} if length else {}
    while True:
        lap()
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        texts = datasets.Dataset.from_list([{"text": row["text"], "label": row["label"]} for row in rows])
        texts = texts.map(tokenizer, batched=True, input_columns="text", fn_kwargs={"truncation": True} | padding)
        settings = {"per_device_train_batch_size": 16, "num_train_epochs": 1}
        train(model, texts, device, settings, transformers.DataCollatorWithPadding(tokenizer))


# Prediction, one text at a time. Every round has texts of its own: a tokenizer may remember words, not texts.


def predict(lap, device: str, folder: str, rounds: list[list[str]]) -> None:
    """What `bert-course predict` does once its model is loaded."""
    model = from_pretrained(finetuning.HEADS["sentiment"], folder).to(device)
    tokenizer = WordPieceTokenizer.from_pretrained(folder)

    def answer(text: str) -> list:
        scores = dict(zip(model.config.id2label.values(), finetuning.predict("sentiment", model, tokenizer, [{"text": text}])[0]))
        label = max(scores, key=scores.get)
        return [label, float(scores[label])]

    time_each(lap, rounds, answer)


def pipeline(lap, device: str, folder: str, rounds: list[list[str]]) -> None:
    import transformers

    classify = transformers.pipeline("text-classification", folder, device=device)
    time_each(lap, rounds, lambda text: [*classify(text)[0].values()])


def time_each(lap, rounds: list[list[str]], answer) -> None:
    """A lap has for each text the milliseconds and the answer: a label and its probability."""
    found = {}
    for texts in rounds:
        lap(**found)
        found = {"milliseconds": [], "answers": []}
        for text in texts:
            started = time.perf_counter()
            said = answer(text)
            found["milliseconds"].append(1000 * (time.perf_counter() - started))
            found["answers"].append(said)
    lap(**found)
