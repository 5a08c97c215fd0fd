"""How many word pieces should the vocabulary of bert-course-mini have?

    python benchmarks/vocabulary.py FOLDER --minutes 6

Pretrains the mini model for equal time with vocabularies of three sizes and scores *whole words* of held-out text, the same
words for all: hidden word by hidden word, the probabilities of its pieces multiplied. A loss per piece could not be compared,
since the pieces differ. Run it on a machine that does nothing else. Prints a Markdown table.
"""

import argparse
import itertools
import json
import random
import tempfile
from pathlib import Path

import torch

from bert_course.config import BertConfig
from bert_course.pretraining import Recipe, pretrain
from bert_course.shards import raw_documents, split_sentences
from bert_course.wordpiece import train_wordpiece

PHASES = ((0.4, 32, 0.2, 1024), (0.6, 64, 0.2, 2048))


@torch.no_grad()
def word_loss(model, tokenizer, sentences) -> tuple[float, float]:
    """Mean loss of a hidden word in nats, and the share of words with every piece guessed right."""
    dice = random.Random(0)
    losses, right = [], []
    for sentence in sentences:
        words = [word for word in sentence.split() if tokenizer.encode(word)]
        if not words:
            continue
        hidden = {i for i in range(len(words)) if dice.random() < 0.15} or {dice.randrange(len(words))}
        pieces = [(i, piece) for i, word in enumerate(words) for piece in tokenizer.encode(word)]
        ids = [tokenizer.cls_id, *(tokenizer.mask_id if i in hidden else p for i, p in pieces), tokenizer.sep_id]
        states = model.bert(torch.tensor([ids])).last_hidden_state[0, 1:-1]
        scores = model.cls.predictions(states).log_softmax(-1)
        for word in hidden:
            places = [(place, piece) for place, (i, piece) in enumerate(pieces) if i == word]
            losses.append(-sum(scores[place, piece].item() for place, piece in places))
            right.append(all(scores[place].argmax() == piece for place, piece in places))
    return sum(losses) / len(losses), sum(right) / len(right)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus")
    parser.add_argument("--minutes", type=float, default=6)
    parser.add_argument("--sizes", type=int, nargs="+", default=[8192, 12288, 16384])
    args = parser.parse_args()
    held_out = (s for document in raw_documents(args.corpus, held_out=True) for p in document for s in split_sentences(p))
    sentences = list(itertools.islice((s for s in held_out if 8 <= len(s.split()) <= 25), 3000))
    print("| pieces | pieces a word | nats a word | words right | million words read |\n|---:|---:|---:|---:|---:|")
    for size in args.sizes:
        sample = itertools.islice(raw_documents(args.corpus), 6000)
        tokenizer = train_wordpiece((paragraph for document in sample for paragraph in document), size)
        per_word = sum(len(tokenizer.encode(s)) for s in sentences) / sum(len(s.split()) for s in sentences)
        with tempfile.TemporaryDirectory() as folder:
            config = BertConfig.preset("mini", vocab_size=size)
            recipe = Recipe(minutes=args.minutes, phases=PHASES)
            model = pretrain(args.corpus, folder, tokenizer, config, recipe, progress_bar=False)
            log = (Path(folder) / "log.jsonl").read_text(encoding="utf-8").splitlines()
        tokens = json.loads(log[-1])["tokens"]
        loss, right = word_loss(model, tokenizer, sentences)
        print(f"| {size:,} | {per_word:.2f} | {loss:.2f} | {right:.1%} | {tokens / per_word / 1e6:.1f} |", flush=True)


if __name__ == "__main__":
    main()
