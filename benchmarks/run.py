"""The course against `transformers`: pretraining, fine-tuning and prediction, in turn on the same machine.

    python -m benchmarks.run            (or: make bench; 6 minutes on two quiet cores)

Prints Markdown tables and stores every round in benchmarks/results/. On a GPU it measures more sizes and lengths.
"""

import argparse
import itertools
import json
import os
import platform
import random
import re
import tempfile
from datetime import date
from importlib import metadata
from pathlib import Path
from statistics import median, quantiles

import torch

from bert_course import data_path, doctor, finetuning, lesson, pretraining, tasks
from bert_course.config import BertConfig
from bert_course.wordpiece import WordPieceTokenizer

from . import contenders as of
from .rounds import interleave

SIZES = {"cpu": [("mini", 128)], "cuda": list(itertools.product(("mini", "small", "base"), (128, 512)))}
BATCH_TOKENS = {"cpu": 4096, "cuda": 32768}
MATRIX = {"cpu": (2048, 4), "cuda": (8192, 20)}  # size, products a round
COURSE = "bert_course"  # in all comparisons; the ratios are to it


def pretraining_batches(corpus: str | Path, tokenizer: WordPieceTokenizer, length: int, batch_tokens: int, count: int) -> list:
    """`count` full batches of the engine's own, drawn at random from the first four times as many, as lists."""
    recipe = pretraining.Recipe(steps=1, phases=((1, length, of.MASK_RATE, batch_tokens),))
    state = {"epoch": 0, "chunk": 0, "batch": 0, "phase_at": 0.0}
    found = (batch for batch, _ in pretraining.training_batches(corpus, tokenizer, recipe, state, lambda: 0.0))
    full = (batch for batch in found if len(batch["input_ids"]) == batch_tokens // length)
    chosen = random.Random(0).sample(list(itertools.islice(full, 4 * count)), count)
    return [{name: rows.tolist() for name, rows in batch.items()} for batch in chosen]


def flops_per_token(config: BertConfig, lengths: list[int], mask_rate: float = of.MASK_RATE) -> float:
    """Floating point operations of a training step for a token, the same for all contenders, padding not counted.

    6 N + 12 L D T (Chowdhery et al. 2022, "PaLM", appendix B): N weights in matrix products with every token, L layers, D = heads
    times head width, T tokens that a token listens to: here the mean over tokens of the row's length. The output layer is
    needed for masked tokens alone and counts by `mask_rate`. Embeddings, pooler, biases, norms and softmax are left out; the
    last layer counts in full, although `bert_course.fast` does not compute all of it.
    """
    wide, layers = config.hidden_size, config.num_hidden_layers
    weights = layers * (4 * wide**2 + 2 * wide * config.intermediate_size) + mask_rate * wide * (wide + config.vocab_size)
    return 6 * weights + 12 * layers * wide * sum(n * n for n in lengths) / sum(lengths)


def measure_pretraining(corpus, device: str, preset: str, length: int, count: int, rounds: int) -> dict:
    folder = data_path("bert-course-mini")
    tokenizer = WordPieceTokenizer.from_pretrained(folder)
    config = BertConfig.preset(preset, vocab_size=tokenizer.vocab_size)
    batches = pretraining_batches(corpus, tokenizer, length, BATCH_TOKENS[device], count)
    lengths = [sum(token != tokenizer.pad_id for token in row) for batch in batches for row in batch["input_ids"]]
    half = doctor.bfloat16_speedup(device) > 1.4  # as the engine decides
    job = {"config": config, "folder": str(folder), "batches": batches, "length": length, "batch_tokens": BATCH_TOKENS[device]}
    found = interleave({
        COURSE: (of.pretrain, job),
        "Trainer, default": (of.trainer_pretrain, job | {"tuned": False, "half": half}),
        "Trainer, tuned": (of.trainer_pretrain, job | {"tuned": True, "half": half}),
        "matrix products": (of.matrix_products, {"half": half, "size": MATRIX[device][0], "times": MATRIX[device][1]}),
    }, rounds, device)
    products = found.pop("matrix products")
    rates = [flops / seconds for flops, seconds in zip(products["flops"], products["seconds"])]
    facts = {"corpus": "docstrings" if corpus == "docstrings" else "a folder", "pairs": len(lengths)}
    facts |= {"faster_type": "bfloat16" if half else "float32", "flops_per_token": flops_per_token(config, lengths)}
    return {"what": f"pretraining {preset}, {length} tokens", "unit": "useful tokens", "amount": sum(lengths)} | facts | {
        "matrix_products_flops": rates, "contenders": found}


def measure_fine_tuning(device: str, count: int, rounds: int) -> dict:
    folder = str(data_path("bert-course-mini"))
    rows = random.Random(0).sample(tasks.load("sentiment")["train"].to_list(), count)
    return {"what": "fine-tuning mini, data/reviews", "unit": "samples", "amount": count, "contenders": interleave({
        COURSE: (of.fine_tune, {"folder": folder, "rows": rows}),
        "Trainer, padded to 128": (of.trainer_fine_tune, {"folder": folder, "rows": rows, "length": 128}),
        "Trainer, padded to the batch": (of.trainer_fine_tune, {"folder": folder, "rows": rows, "length": None}),
    }, rounds, device)}


def measure_prediction(device: str, count: int, rounds: int) -> dict:
    """All texts are different; the head is not trained, which changes what is said but not how long it takes."""
    texts = random.Random(0).sample(tasks.load("sentiment")["test"]["text"][:], count * (1 + rounds))
    parts = [texts[i : i + count] for i in range(0, len(texts), count)]
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        finetuning.save(finetuning.start_from("sentiment", data_path("bert-course-mini")), folder)
        WordPieceTokenizer.from_pretrained(data_path("bert-course-mini")).save_pretrained(folder)
        job = {"folder": folder, "rounds": parts}
        found = interleave({COURSE: (of.predict, job), "transformers.pipeline": (of.pipeline, job)}, rounds, device)
    mine, other = (sum(laps.pop("answers"), []) for laps in found.values())
    difference = max(abs(p - q) if label == name else 1.0 for (label, p), (name, q) in zip(mine, other))
    return {"what": "one text, mini, data/reviews", "unit": "texts", "amount": count, "largest_difference": difference,
            "contenders": found}


def hardware(device: str) -> dict:
    name = torch.cuda.get_device_name() if device == "cuda" else doctor.processor()
    return {"device": name, "cores": os.cpu_count(), "threads": torch.get_num_threads(), "system": platform.system()}


def versions() -> dict:
    return {"python": platform.python_version()} | {name: metadata.version(name) for name in ("torch", "transformers")}


def table(results: dict) -> str:
    """Medians of the rounds; the ratio is the median of those of each round, with the lowest and highest."""
    lines = ["| | contender | a second | bert_course to it | peak MiB | of matrix products | ms, median | ms, 90% |",
             "|---|---|---|---|---|---|---|---|"]
    for one in results["measurements"]:
        course = one["contenders"][COURSE]["seconds"]
        for name, laps in one["contenders"].items():
            rate = one["amount"] / median(laps["seconds"])
            ratios = sorted(theirs / mine for mine, theirs in zip(course, laps["seconds"]))
            share = milliseconds = tail = ""
            if "flops_per_token" in one:
                share = f"{rate * one['flops_per_token'] / median(one['matrix_products_flops']):.0%}"
            if "milliseconds" in laps:
                *_, tail = quantiles(times := sum(laps["milliseconds"], []), n=10)
                milliseconds, tail = f"{median(times):.2f}", f"{tail:.2f}"
            ratio = f"{median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})" if name != COURSE else ""
            a_second = f"{rate:,.0f} {one['unit']}"
            cells = one["what"], name, a_second, ratio, f"{laps['peak_mib']:,}", share, milliseconds, tail
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def run(corpus: str | Path, device: str, sizes: list, count: int, rows: int, texts: int, rounds: int) -> dict:
    """All measurements: `count` batches, `rows` to fine-tune on and `texts` to predict in each of the `rounds`."""
    measurements = [measure_pretraining(corpus, device, preset, length, count, rounds) for preset, length in sizes]
    measurements += [measure_fine_tuning(device, rows, rounds), measure_prediction(device, texts, rounds)]
    return {"date": date.today().isoformat(), "hardware": hardware(device), "versions": versions(), "measurements": measurements}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", default="docstrings", help="or a text file or folder, as for bert-course pretrain")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results", help="folder for the results")
    args = parser.parse_args()
    lesson.setup()
    device = lesson.device().type
    results = run(args.corpus, device, SIZES[device], count=4, rows=240, texts=50, rounds=6)
    found = results["hardware"]
    name = re.sub(r"[^a-z0-9]+", "-", f"{found['device']} {found['threads']} threads".lower()).strip("-")
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / f"{results['date']}-{name}.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(table(results))


if __name__ == "__main__":
    main()
