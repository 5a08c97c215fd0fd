"""Fine-tuning a pretrained BERT, and using the result (Devlin et al. 2019, section 4 and appendix A.3)."""

import random
from collections import defaultdict
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from . import tasks
from .inputs import Encoding, batch, encode
from .model import BertForSequenceClassification, parameter_groups
from .wordpiece import WordPieceTokenizer

Text = str | tuple[str, str]  # one sequence, or a pair

# For data/reviews, tried on the validation split and 150 pairs kept out of the training split. Eight epochs from pretrained
# weights, one seed: 2e-4 0.76, 4e-4 0.78, 6e-4 0.77, 8e-4 0.75; four epochs, two seeds: 0.69, 0.75, 0.76, 0.76. From random
# weights (of an earlier checkpoint's trial): 3e-4 0.73; 1.5e-4 (three epochs) 0.57; 6e-4 stayed at chance.
LEARNING_RATES = {"pretrained": 6e-4, "random": 3e-4}


def train_classifier(
    model: BertForSequenceClassification,
    tokenizer: WordPieceTokenizer,
    train: Sequence[dict],
    validation: Sequence[dict],
    epochs: int = 4,
    batch_size: int = 16,
    learning_rate: float = 3e-4,
    warmup: float = 0.1,
    seed: int = 0,
) -> list[dict]:
    """Train in place with AdamW, linear warm-up and decay, and gradients clipped at norm 1.

    Args:
        train, validation: rows with "text", one text or a pair of texts, and "label" (a class id).
        learning_rate: at its peak. The paper's 2e-5 to 5e-5 are for base and large; a small model wants more.
        warmup: share of the steps in which the learning rate rises.
        seed: decides the order of the rows and what dropout drops.
    Returns:
        for each epoch the mean training loss and the accuracy on `validation`.
    Raises:
        ValueError: if there is nothing to train on or to validate with, a label the model does not have, or a text too long.
    """
    unknown = {row["label"] for row in (*train, *validation)} - set(range(model.config.num_labels))
    if unknown:
        raise ValueError(f"labels {sorted(unknown)} are not among the model's {model.config.id2label}.")
    if not train or not validation:
        raise ValueError(f"no rows to {'validate with' if train else 'train on'}.")
    rng = random.Random(seed)
    torch.manual_seed(seed)
    encode_all(model, tokenizer, (row["text"] for row in validation))  # a text too long is refused here, not after an epoch
    encodings = encode_all(model, tokenizer, (row["text"] for row in train))
    rows = list(zip(encodings, (row["label"] for row in train)))
    optimizer = torch.optim.AdamW(parameter_groups(model), lr=learning_rate, fused=True)
    steps = epochs * -(-len(rows) // batch_size)
    rising = max(1, warmup * steps)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / rising, (steps - step) / max(1, steps - rising))
    )
    history = []
    for _ in range(epochs):
        model.train()
        losses = []
        for chosen in similar_lengths(rows, batch_size, rng):
            encodings, labels = zip(*chosen)
            loss = model(**to_model(model, tokenizer, encodings), labels=torch.tensor(labels, device=device_of(model))).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            losses.append(loss.item())
        history.append({"loss": sum(losses) / len(losses), "accuracy": accuracy(model, tokenizer, validation)})
    return history


def similar_lengths(rows: list[tuple], batch_size: int, rng: random.Random) -> list[list[tuple]]:
    """Batches in random order, of rows of about equal length, so that little of a batch is padding."""
    jittered = sorted(rows, key=lambda row: len(row[0]) + rng.uniform(-4, 4))
    batches = [jittered[i : i + batch_size] for i in range(0, len(rows), batch_size)]
    rng.shuffle(batches)
    return batches


@torch.no_grad()
def predict(
    model: BertForSequenceClassification, tokenizer: WordPieceTokenizer, texts: Sequence[Text], batch_size: int = 64
) -> Tensor:
    """Probabilities (len(texts), labels) of each class, on the CPU, in the order of the texts."""
    model.eval()
    encodings = encode_all(model, tokenizer, texts)
    order = sorted(range(len(texts)), key=lambda i: len(encodings[i]))
    probabilities = torch.empty(len(texts), model.config.num_labels)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        logits = model(**to_model(model, tokenizer, [encodings[i] for i in chosen])).logits
        probabilities[chosen] = logits.softmax(-1).float().cpu()
    return probabilities


def accuracy(model: BertForSequenceClassification, tokenizer: WordPieceTokenizer, rows: Sequence[dict]) -> float:
    guesses = predict(model, tokenizer, [row["text"] for row in rows]).argmax(-1)
    return sum(guess == row["label"] for guess, row in zip(guesses.tolist(), rows)) / len(rows)


def encode_all(model: torch.nn.Module, tokenizer: WordPieceTokenizer, texts: Iterable[Text]) -> list[Encoding]:
    parts = ([text] if isinstance(text, str) else text for text in texts)
    return [encode(tokenizer, *part, max_length=model.config.max_position_embeddings) for part in parts]


def to_model(model: torch.nn.Module, tokenizer: WordPieceTokenizer, encodings: Sequence[Encoding]) -> dict[str, Tensor]:
    return {name: ids.to(device_of(model)) for name, ids in batch(encodings, tokenizer.pad_id).items()}


def device_of(model: torch.nn.Module) -> torch.device:
    return next(model.parameters()).device


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
