"""The command line: `bert-course …`, the same as `python -m bert_course …`."""

import argparse
import sys
from dataclasses import fields
from pathlib import Path


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bert-course", description="BERT Course on the command line.")
    commands = parser.add_subparsers(required=True, metavar="command")

    command = commands.add_parser("doctor", help="check this machine and the course's data")
    command.set_defaults(run=doctor)

    command = commands.add_parser("stamp", help="for authors: write the repository's address and data/SHA256SUMS anew")
    command.add_argument("--check", action="store_true", help="change nothing; exit 1 if something is out of date")
    command.set_defaults(run=stamp)

    command = commands.add_parser("pretrain", help="pretrain a BERT")
    command.add_argument("--corpus", default="docstrings", help="'docstrings' (default); a .txt, .gz or .xz file, or a folder")
    command.add_argument("--output", required=True, help="folder of the checkpoint; also of the log and the training state")
    command.add_argument("--preset", default="mini", help="tiny, mini (default), small, medium, base or large")
    command.add_argument("--vocab", help="a vocab.txt; without it one is trained on the start of the corpus")
    command.add_argument("--vocab-size", type=int, default=8192, help="pieces of the vocabulary to train; default: 8192")
    command.add_argument("--objective", choices=["mlm+nsp", "mlm"], help="default: mlm+nsp, as in the paper")
    command.add_argument("--dropout", type=float, help="while pretraining; default: none, since no text is read twice")
    budget = command.add_mutually_exclusive_group(required=True)
    budget.add_argument("--steps", type=int)
    budget.add_argument("--minutes", type=float)
    command.add_argument("--phases", type=phases,
                         help="share of the budget:sequence length:mask rate:tokens in a batch, one after the other, as in "
                              "0.9:128:0.15:4096,0.1:512:0.15:4096; default: those of the course's checkpoint")
    command.add_argument("--learning-rate", type=float, help="default: 1e-3")
    command.add_argument("--seed", type=int)
    command.add_argument("--no-warm-start", dest="warm_start", action="store_false", default=None,
                         help="start from noise, not from counts of neighbours")
    command.add_argument("--device", default="cpu")
    command.add_argument("--resume", action="store_true", help="go on from the last checkpoint in --output")
    command.set_defaults(run=pretrain)

    command = commands.add_parser("evaluate", help="held-out scores of a pretrained checkpoint, as JSON")
    command.add_argument("--model", default=None, help="folder; default: the course's own")
    command.add_argument("--corpus", default="docstrings")
    command.set_defaults(run=evaluate)

    command = commands.add_parser("fill-mask", help="guess the [MASK] in a text")
    command.add_argument("text")
    command.add_argument("--model", default=None, help="folder or Hub name; default: the course's own")
    command.set_defaults(run=fill_mask)

    command = commands.add_parser("study", help="the runs behind a table of lesson 02 (word2vec), 10 (nsp) or 12 (reviews)")
    command.add_argument("name", choices=["nsp", "reviews", "word2vec"])
    command.add_argument("--seeds", type=int, default=3)
    command.add_argument("--output", type=Path, help="goes on where it stopped; default: data/studies/NAME.json")
    command.add_argument("--corpus", type=Path, help="for word2vec: the folder that the checkpoint was trained on")
    command.add_argument("--word-pairs", type=Path, help="for word2vec: a folder of word, word, score lines (tabs between)")
    command.set_defaults(run=study)

    args = parser.parse_args(argv)
    sys.stdout.reconfigure(encoding="utf-8")
    try:
        return args.run(args)
    except KeyboardInterrupt:
        print("bert-course: stopped", file=sys.stderr)
    except (ValueError, OSError) as error:
        print(f"bert-course: {error}", file=sys.stderr)
    except ImportError as error:
        print(f"bert-course: {error}. Set the course up first: the README says how.", file=sys.stderr)
    return 1


def doctor(args: argparse.Namespace) -> int:
    from bert_course.doctor import checks

    rows = checks()
    for row in rows:
        print(f"{'✓' if row.ok else '✗'} {row.name:<22} {row.found}")
        if not row.ok:
            print(f"{'':<24} fix: {row.fix}")
    return 0 if all(row.ok for row in rows) else 1


def stamp(args: argparse.Namespace) -> int:
    from bert_course.stamp import stale

    files = stale()
    for path, text in files.items():
        print(f"{path}: {'out of date' if args.check else 'stamped'}")
        if not args.check:
            path.write_text(text, encoding="utf-8", newline="\n")
    return 1 if args.check and files else 0


def phases(text: str) -> tuple[tuple[float, int, float, int], ...]:
    try:
        parts = [phase.split(":") for phase in text.split(",")]
        return tuple((float(share), int(length), float(rate), int(tokens)) for share, length, rate, tokens in parts)
    except ValueError:
        message = f"'{text}': every phase is share:length:mask rate:tokens, as in 1:128:0.15:4096"
        raise argparse.ArgumentTypeError(message) from None


def pretrain(args: argparse.Namespace) -> int:
    from itertools import islice

    from bert_course.config import BertConfig
    from bert_course.pretraining import Recipe, pretrain, raw_documents
    from bert_course.wordpiece import WordPieceTokenizer, train_wordpiece

    settings = {field.name: getattr(args, field.name, None) for field in fields(Recipe)}
    recipe = Recipe(**{name: value for name, value in settings.items() if value is not None})
    if args.resume:
        tokenizer = WordPieceTokenizer.from_pretrained(args.output)
    elif args.vocab:
        tokenizer = WordPieceTokenizer.from_file(args.vocab)
    else:
        print(f"training a vocabulary of {args.vocab_size} pieces …")
        sample = islice(raw_documents(args.corpus), 6000)
        tokenizer = train_wordpiece((paragraph for document in sample for paragraph in document), args.vocab_size)
    config = BertConfig.preset(args.preset, vocab_size=tokenizer.vocab_size)
    pretrain(args.corpus, args.output, tokenizer, config, recipe, args.device, args.resume)
    return 0


def evaluate(args: argparse.Namespace) -> int:
    import json

    from bert_course import data_path
    from bert_course.checkpoint import find, from_pretrained
    from bert_course.model import BertForPreTraining
    from bert_course.pretraining import evaluate
    from bert_course.wordpiece import WordPieceTokenizer

    folder = find(args.model or data_path("bert-course-mini"))
    model = from_pretrained(BertForPreTraining, folder)
    scores = evaluate(model, args.corpus, WordPieceTokenizer.from_pretrained(folder))
    print(json.dumps({name: round(value, 4) for name, value in scores.items()}, indent=1))
    return 0


def fill_mask(args: argparse.Namespace) -> int:
    from bert_course import checkpoint, data_path
    from bert_course.model import BertForMaskedLM
    from bert_course.pretraining import fill_mask
    from bert_course.wordpiece import WordPieceTokenizer

    folder = checkpoint.find(args.model or data_path("bert-course-mini"))
    model, tokenizer = checkpoint.from_pretrained(BertForMaskedLM, folder), WordPieceTokenizer.from_pretrained(folder)
    for guesses in fill_mask(model, tokenizer, args.text):
        print("  ".join(f"{token} {probability:.1%}" for token, probability in guesses))
    return 0


def study(args: argparse.Namespace) -> int:
    from bert_course import studies

    output = args.output or Path(f"data/studies/{args.name}.json")
    output.parent.mkdir(parents=True, exist_ok=True)
    settings = {"output": output, "seeds": args.seeds}
    if args.name == "word2vec":
        if not (args.corpus and args.word_pairs):
            raise ValueError("the study word2vec needs --corpus FOLDER and --word-pairs FOLDER.")
        settings |= {"corpus": args.corpus, "word_pairs": args.word_pairs}
    getattr(studies, f"study_{args.name}")(**settings)
    return 0
