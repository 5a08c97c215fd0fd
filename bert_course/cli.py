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

    command = commands.add_parser("pretrain", help="pretrain a BERT, or what it is compared with")
    command.add_argument("--corpus", default="docstrings",
                         help="'docstrings' (default); a .txt, .gz or .xz file, or a folder; or hub:REPOSITORY:CONFIGURATION, as "
                              "in hub:Salesforce/wikitext:wikitext-103-raw-v1 and hub:wikimedia/wikipedia:20231101.en; other "
                              "repositories with @COMMIT at the end")
    command.add_argument("--output", required=True, help="folder of the checkpoint; also of the log and the training state")
    command.add_argument("--cache", help="folder for the tokenized corpus, for several runs; default: tokens in --output")
    command.add_argument("--model", help="folder or Hub name of a checkpoint that is to read on, with its vocabulary and config; "
                                         "default: a new model")
    command.add_argument("--preset", help="tiny, mini (default), small, medium, base or large")
    command.add_argument("--vocab", help="a vocab.txt; without it one is trained on the start of the corpus")
    command.add_argument("--vocab-size", type=int, help="pieces of the vocabulary to train; default: 8192")
    command.add_argument("--objective", choices=["mlm+nsp", "mlm", "causal", "recurrent", "bilm", "skipgram"],
                         help="mlm+nsp (default, as in the paper) and mlm: BERT; causal: GPT; recurrent: an LSTM language model; "
                              "bilm: ELMo; skipgram: Word2Vec; all of about as many parameters as the BERT of --preset")
    command.add_argument("--masking", choices=["dynamic", "static"],
                         help="dynamic (default): other tokens each time a text is read; static: the same every tenth time")
    command.add_argument("--whole-words", action="store_true", default=None, help="mask all pieces of a word together")
    command.add_argument("--dropout", type=float, help="while pretraining; default: none")
    budget = command.add_mutually_exclusive_group(required=True)
    budget.add_argument("--steps", type=int)
    budget.add_argument("--minutes", type=float)
    budget.add_argument("--tokens", type=int)
    command.add_argument("--phases", type=phases,
                         help="share of the budget:sequence length:mask rate:tokens in a batch, one after the other, as in "
                              "0.9:128:0.15:4096,0.1:512:0.15:4096; default: those of the course's checkpoint; with --model "
                              "1:128:0.15:4096")
    command.add_argument("--learning-rate", type=float, help="default: 1e-3, but none with --model")
    command.add_argument("--seed", type=int)
    command.add_argument("--no-warm-start", dest="warm_start", action="store_false", default=None,
                         help="start from noise, not from counts of neighbours")
    command.add_argument("--tensorboard", action="store_true", help="write the losses for TensorBoard too, to --output")
    command.add_argument("--resume", action="store_true", help="go on from the last checkpoint in --output, with its settings "
                                                               "where no others are given")
    command.set_defaults(run=pretrain)

    command = commands.add_parser("evaluate", help="held-out scores of a pretrained checkpoint, as JSON; or, with --tasks, "
                                                   "its scores on public benchmarks, as a table")
    command.add_argument("--model", default=None, help="folder; default: the course's own")
    command.add_argument("--corpus", help="text for the held-out scores; default: docstrings")
    command.add_argument("--tasks", type=Path, help="a folder with the files of SST-2, MRPC and others, as named in "
                                                    "bert_course/studies/benchmarks.py; what is not there is left out")
    command.add_argument("--seeds", type=int, help="with --tasks: training runs of each kind; default: 3")
    command.add_argument("--output", type=Path, help="with --tasks: goes on where it stopped; default: "
                                                     "data/studies/benchmarks.json")
    command.set_defaults(run=evaluate)

    command = commands.add_parser("fill-mask", help="guess the [MASK] in a text")
    command.add_argument("text")
    command.add_argument("--model", default=None, help="folder or Hub name; default: the course's own")
    command.set_defaults(run=fill_mask)

    command = commands.add_parser("finetune", help="fine-tune a BERT for one of four tasks")
    command.add_argument("--task", required=True, choices=["sentiment", "paraphrase", "entities", "passages"])
    command.add_argument("--train", type=Path, help="CSV or JSON lines (sentiment, paraphrase), CoNLL (entities) or SQuAD's JSON "
                         "(passages); default: the course's own data or, if BERT_COURSE_SOURCE is hub, public data")
    command.add_argument("--validation", type=Path, help="default: a tenth of --train, held out")
    command.add_argument("--labels", help="the label names of --train with commas between, if they are not the course's")
    command.add_argument("--model", help="folder or Hub name; default: the course's own")
    command.add_argument("--output", type=Path, required=True,
                         help="folder of the best epoch's model; while training, also of a checkpoint")
    command.add_argument("--epochs", type=int, default=3)
    command.add_argument("--batch-size", type=int, default=16)
    command.add_argument("--learning-rate", type=float, help="default: by task for small models, 3e-5 for BERT-base and larger")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--patience", type=int, help="stop after so many epochs without a better score; default: never")
    command.add_argument("--resume", action="store_true", help="go on from the last checkpoint in --output")
    command.set_defaults(run=finetune)

    command = commands.add_parser("predict", help="what a fine-tuned model says, as JSON: one line for each input")
    command.add_argument("--model", required=True, help="folder that `bert-course finetune` made, or Hub name")
    command.add_argument("--task", choices=["sentiment", "paraphrase", "entities", "passages"],
                         help="only needed for pairs with labels of your own: else config.json says it")
    command.add_argument("--text")
    command.add_argument("--text-pair", help="for a model that reads pairs")
    command.add_argument("--question")
    command.add_argument("--context", help="the passage to find the answer in")
    command.add_argument("--file", type=Path, help="many inputs, in the formats of `finetune --train`; labels are not needed")
    command.set_defaults(run=predict)

    command = commands.add_parser("study", help="the runs behind a table of lessons 01 to 04 (siblings), 01 (recall), "
                                                    "02 (word2vec), 10 (nsp), 11 (plateau), 12 (reviews), "
                                                    "13 (paraphrases), 14 (entities), 15 (passages) or 16 "
                                                    "(features), or of the checkpoint's card (recipes)")
    names = ["entities", "features", "nsp", "paraphrases", "passages", "plateau", "recall", "recipes", "reviews", "siblings",
             "word2vec"]
    command.add_argument("name", choices=names)
    command.add_argument("--seeds", type=int, default=3)
    command.add_argument("--output", type=Path, help="goes on where it stopped; default: data/studies/NAME.json")
    command.add_argument("--corpus", type=Path, help="for word2vec: the folder that the checkpoint was trained on; for recipes "
                                                     "and siblings: the text to train on; default: docstrings")
    command.add_argument("--tokens", type=int, help="for recipes and siblings: tokens that each model reads; default: 2,000,000")
    command.add_argument("--tasks", type=Path, help="for siblings: a folder with WiC in its folder wic; left out without it")
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

    from bert_course import lesson
    from bert_course.baselines import objectives, rnn
    from bert_course.checkpoint import find
    from bert_course.config import BertConfig
    from bert_course.model import BertForPreTraining
    from bert_course.objectives import OBJECTIVES
    from bert_course.pretraining import Recipe, pretrain, read_state
    from bert_course.shards import raw_documents
    from bert_course.wordpiece import WordPieceTokenizer, train_wordpiece

    settings = {field.name: getattr(args, field.name, None) for field in fields(Recipe)}
    settings = {name: value for name, value in settings.items() if value is not None}
    skipgram = args.objective == "skipgram"
    if skipgram:
        if args.resume or not args.tokens:
            raise ValueError("skipgram takes its budget as --tokens, and cannot be resumed.")
        refuse("skipgram", "it has a recipe of its own, and runs on the CPU",
               {"--phases": args.phases is not None, "--dropout": args.dropout is not None,
                "--no-warm-start": args.warm_start is False,
                "--masking": args.masking is not None, "--whole-words": args.whole_words is not None,
                "--cache": args.cache is not None, "--tensorboard": args.tensorboard, "--model": args.model is not None})
    if args.resume:
        tokenizer = WordPieceTokenizer.from_pretrained(args.output)
        kept = {field.name for field in fields(Recipe)} - {"steps", "minutes", "tokens"}
        settings = {name: value for name, value in read_state(args.output)["recipe"].items() if name in kept} | settings
    elif args.model:
        refuse("--model", "the checkpoint brings its own",
               {"--preset": args.preset is not None, "--vocab": args.vocab is not None,
                "--vocab-size": args.vocab_size is not None, "--no-warm-start": args.warm_start is False})
        if args.objective and args.objective not in OBJECTIVES:
            raise ValueError(f"--model reads on as a BERT, with --objective {' or '.join(OBJECTIVES)}.")
        if not args.learning_rate:
            raise ValueError("--model needs a --learning-rate: 5e-4 for data/bert-course-mini, less for a larger model.")
        settings = {"phases": ((1.0, 128, 0.15, 4096),), "warm_start": False} | settings
        tokenizer = WordPieceTokenizer.from_pretrained(find(args.model))
    elif args.vocab:
        tokenizer = WordPieceTokenizer.from_file(args.vocab)
    else:
        pieces = args.vocab_size or 8192
        print(f"training a vocabulary of {pieces} pieces …")
        sample = islice(raw_documents(args.corpus), 6000)
        tokenizer = train_wordpiece((paragraph for document in sample for paragraph in document), pieces)
    config = BertConfig.preset(args.preset or "mini", vocab_size=tokenizer.vocab_size)
    size = rnn.parameters(BertForPreTraining, config)
    if skipgram:
        from bert_course.baselines import word2vec

        settings = {name: settings[name] for name in ("learning_rate", "seed") if name in settings}
        word2vec.pretrain(args.corpus, args.output, tokenizer, round(size / tokenizer.vocab_size / 2), args.tokens, **settings)
        return 0
    objective = objectives()[settings.pop("objective", "mlm+nsp")]
    if objective.name in ("recurrent", "bilm"):
        config = rnn.sized(objective.model, config, size)
    where = {"device": lesson.device().type, "resume": args.resume, "cache": args.cache, "tensorboard": args.tensorboard}
    pretrain(args.corpus, args.output, tokenizer, config, Recipe(objective=objective, **settings), start=args.model, **where)
    return 0


def refuse(what: str, why: str, given: dict[str, bool]) -> None:
    if any(given.values()):
        raise ValueError(f"{what} takes no {', '.join(name for name, is_given in given.items() if is_given)}: {why}.")


def evaluate(args: argparse.Namespace) -> int:
    import json

    from bert_course import data_path, lesson
    from bert_course.checkpoint import find, from_pretrained
    from bert_course.model import BertForPreTraining
    from bert_course.pretraining import evaluate
    from bert_course.wordpiece import WordPieceTokenizer

    folder = find(args.model or data_path("bert-course-mini"))
    if args.tasks:
        from bert_course.studies import benchmarks

        if args.corpus:
            raise ValueError("--corpus is for the held-out scores. Leave it out, or --tasks.")
        output = args.output or Path("data/studies/benchmarks.json")
        output.parent.mkdir(parents=True, exist_ok=True)
        print(benchmarks.table(benchmarks.study_benchmarks(output, args.seeds or 3, args.tasks, folder)))
        return 0
    if args.seeds or args.output:
        raise ValueError("--seeds and --output go with --tasks FOLDER.")
    model = from_pretrained(BertForPreTraining, folder).to(lesson.device())
    scores = evaluate(model, args.corpus or "docstrings", WordPieceTokenizer.from_pretrained(folder))
    print(json.dumps({name: round(value, 4) for name, value in scores.items()}, indent=1))
    return 0


def fill_mask(args: argparse.Namespace) -> int:
    from bert_course import checkpoint, data_path, lesson
    from bert_course.model import BertForMaskedLM
    from bert_course.pretraining import fill_mask
    from bert_course.wordpiece import WordPieceTokenizer

    folder = checkpoint.find(args.model or data_path("bert-course-mini"))
    model = checkpoint.from_pretrained(BertForMaskedLM, folder).to(lesson.device())
    tokenizer = WordPieceTokenizer.from_pretrained(folder)
    for guesses in fill_mask(model, tokenizer, args.text):
        print("  ".join(f"{token} {probability:.1%}" for token, probability in guesses))
    return 0


def own_labels(task: str, given: str) -> list[str]:
    """The label names of --labels.

    Raises:
        ValueError: if they are no labels for the task.
    """
    import re

    labels, expected = given.split(","), None
    if task == "passages":
        raise ValueError(f"--labels is '{given}', but passages have answers, not labels. Leave it out.")
    if len(labels) < 2 or len(set(labels)) < len(labels):
        expected = "at least two different names with commas between"
    if task == "entities" and not all(re.fullmatch("O|[BI]-.+", label) for label in labels):
        expected = "O and, for each type of names, B-TYPE and I-TYPE, as in O,B-CITY,I-CITY"
    if expected:
        raise ValueError(f"--labels is '{given}', expected {expected}.")
    return labels


def finetune(args: argparse.Namespace) -> int:
    import json

    import torch

    from bert_course import data_path, finetuning, lesson, tasks
    from bert_course.checkpoint import find
    from bert_course.wordpiece import WordPieceTokenizer

    labels = None if args.labels is None else own_labels(args.task, args.labels)
    if args.train:
        train = tasks.read(args.task, args.train, labels)
        if args.validation:
            validation = tasks.read(args.task, args.validation, labels)
        else:
            train, validation = tasks.hold_out(train, args.seed)
            print(f"No --validation: {len(validation)} rows of {args.train} are held out for it.", file=sys.stderr)
    elif args.validation or labels:
        raise ValueError("--validation and --labels go with --train FILE.")
    else:
        data = tasks.load(args.task, lesson.source())
        train, validation = data["train"], data["validation"]
    folder = find(args.model or data_path("bert-course-mini"))
    torch.manual_seed(args.seed)
    model = finetuning.start_from(args.task, folder, **({"id2label": dict(enumerate(labels))} if labels else {}))
    history = finetuning.fine_tune(
        args.task, model.to(lesson.device()), WordPieceTokenizer.from_pretrained(folder), train, validation, args.output,
        epochs=args.epochs, batch_size=args.batch_size, learning_rate=args.learning_rate, seed=args.seed,
        patience=args.patience or args.epochs, resume=args.resume, progress_bar=True,
    )
    for epoch in history:
        print(json.dumps(epoch))
    best = max(history, key=lambda epoch: epoch[finetuning.MAIN_METRIC[args.task]])
    print(f"The model of epoch {best['epoch']} is in {args.output}.", file=sys.stderr)
    return 0


def predict(args: argparse.Namespace) -> int:
    import json

    from bert_course import finetuning, lesson, tasks
    from bert_course.checkpoint import find, from_pretrained
    from bert_course.wordpiece import WordPieceTokenizer

    folder = find(args.model)
    task = args.task or finetuning.task_of(folder)
    inputs = {name: getattr(args, name) for name in ("text", "text_pair", "question", "context")}
    given = {name: text for name, text in inputs.items() if text is not None}
    expected = {"entities": ("text",), "passages": ("question", "context")} | tasks.TEXTS
    if bool(given) == bool(args.file) or given and {*given} != {*expected[task]}:
        wanted = " and ".join("--" + name.replace("_", "-") for name in expected[task])
        raise ValueError(f"the model in {folder} is one for {task}: give it {wanted}, or --file.")
    rows = tasks.read(task, args.file, labelled=False) if args.file else [given]
    if task == "entities":
        rows = [{"tokens": tasks.words(row["text"])} | row if given else {"text": " ".join(row["tokens"])} | row for row in rows]
    model = from_pretrained(finetuning.HEADS[task], folder).to(lesson.device())
    for row, guess in zip(rows, finetuning.predict(task, model, WordPieceTokenizer.from_pretrained(folder), rows)):
        if task == "passages":
            row = {name: row[name] for name in ("id", "question") if name in row}
            found = {"answer": guess[0]["text"], "candidates": guess}
        elif task == "entities":
            found = {"tags": guess, "entities": finetuning.names_in(row["text"], row["tokens"], guess)}
        else:
            scores = {name: round(float(p), 4) for name, p in zip(model.config.id2label.values(), guess)}
            found = {"prediction": max(scores, key=scores.get), "scores": scores}
        print(json.dumps(row | found, ensure_ascii=False))
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
    if args.name in ("recipes", "siblings"):
        given = {"corpus": args.corpus, "tokens": args.tokens, "tasks_folder": args.tasks if args.name == "siblings" else None}
        settings |= {name: value for name, value in given.items() if value is not None}
    getattr(studies, f"study_{args.name}")(**settings)
    return 0
