"""Checkpoints in the Hugging Face layout: config.json, model.safetensors, vocab.txt. No pickles.

What `save_pretrained` writes opens with `transformers.AutoModel.from_pretrained`, and `from_pretrained` opens what
`transformers` writes, tensor for tensor.
"""

import json
import logging
from dataclasses import fields
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from .config import BertConfig
from .files import download, read_json, replacing

logger = logging.getLogger(__name__)

HUB_MODEL = "google-bert/bert-base-uncased"
HUB_REVISION = "86b5e0934494bd15c9632b12f734a8a67f723594"
HEADS = ("cls.", "classifier.", "qa_outputs.", "pooler.")  # what a model of another class may lack or bring
TIED = ("cls.predictions.decoder.weight", "cls.predictions.decoder.bias")  # stored once, under their other names


def from_pretrained(model_class: type[nn.Module], name: str | Path, new_head: bool = False, **config_changes) -> nn.Module:
    """Build a `model_class` with the weights of a checkpoint, in float32 and evaluation mode.

    Args:
        name: a folder in the Hugging Face layout, or the name of a model on the Hub.
        new_head: start a head that the checkpoint lacks at random, to be fine-tuned.
        config_changes: fields of `BertConfig` to override, such as id2label={0: "negative", 1: "positive"}.
    Raises:
        FileNotFoundError: if there is no config.json or model.safetensors.
        ValueError: if the file is damaged, or a tensor is missing, unknown or of the wrong shape; says which.
        TypeError: if a change is to a field that `BertConfig` does not have.
    """
    if unknown := config_changes.keys() - {field.name for field in fields(BertConfig)}:
        raise TypeError(f"BertConfig has no field {', '.join(sorted(unknown))}.")
    folder = find(name)
    config = BertConfig.from_dict(read_json(folder / "config.json") | config_changes)
    model = model_class(config)
    if (folder / "vocab.txt").exists():
        with open(folder / "vocab.txt", encoding="utf-8") as lines:  # unlike splitlines, ends a line at line feeds only
            pieces = sum(1 for _ in lines)
        if pieces > config.vocab_size:
            raise ValueError(f"{folder}: vocab.txt has {pieces} pieces, but the model only {config.vocab_size} embeddings.")

    tensors = _rename(read_tensors(folder / "model.safetensors"), model)
    expected = {k: v for k, v in model.state_dict().items() if k not in TIED}
    missing = [k for k in expected if k not in tensors and not (new_head and _in_head(k))]
    surplus = [k for k in tensors if k not in expected and not _in_head(k)]
    misshapen = [
        f"{k} {tuple(tensors[k].shape)} instead of {tuple(v.shape)}"
        for k, v in expected.items()
        if k in tensors and tensors[k].shape != v.shape
    ]
    problems = {"missing": missing, "surplus": surplus, "misshapen": misshapen}
    if any(problems.values()):
        hint = " A head that is to be trained afresh: new_head=True." if missing and all(map(_in_head, missing)) else ""
        found = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in problems.items() if names)
        raise ValueError(f"{folder} does not fit {model_class.__name__}: {found}.{hint}")
    fresh, unused = [k for k in expected if k not in tensors], [k for k in tensors if k not in expected]
    logger.info("%s: started at random %s; not used %s", folder, fresh or "nothing", unused or "nothing")
    model.load_state_dict({k: tensors[k] for k in expected if k in tensors}, strict=False)
    return model.eval()


def save_pretrained(model: nn.Module, folder: str | Path, dtype: torch.dtype | None = None) -> None:
    """Write config.json and model.safetensors; `dtype` (e.g. torch.float16) converts.

    Raises:
        OSError: if they cannot be written, on a full disk for example. What was in `folder` before is then unchanged.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {k: v.to("cpu", dtype or v.dtype).contiguous() for k, v in model.state_dict().items() if k not in TIED}
    stored = str(next(iter(tensors.values())).dtype).removeprefix("torch.")
    config = {"architectures": [type(model).__name__], "dtype": stored} | model.config.to_dict()
    # The weights are renamed first: Windows refuses that while another program has them open, and config.json then stays.
    with replacing(folder / "config.json") as config_path, replacing(folder / "model.safetensors") as weights_path:
        config_path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        write_tensors(tensors, weights_path)


def find(name: str | Path) -> Path:
    """The folder of a checkpoint: `name` itself, or the Hub model of that name, downloaded once."""
    if Path(name).is_dir():
        return Path(name)
    if str(name).count("/") != 1 or Path(name).is_absolute() or str(name).startswith("."):
        raise FileNotFoundError(f"no folder '{name}' with a checkpoint (config.json, model.safetensors, vocab.txt).")
    revision = HUB_REVISION if name == HUB_MODEL else None
    try:
        return download(str(name), ["*.json", "vocab.txt", "model.safetensors"], revision)
    except Exception as error:
        raise FileNotFoundError(
            f"'{name}' is neither a folder here nor could it be fetched from the Hub ({type(error).__name__}: {error}). "
            "Check the name and the network."
        ) from error


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a safetensors file."""
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing. Only safetensors checkpoints are read.")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file ({error}). Download or save it again.") from None


def write_tensors(tensors: dict[str, torch.Tensor], path: Path) -> None:
    """A safetensors file. Raises OSError if it cannot be written."""
    try:
        save_file(tensors, path, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(f"{path.parent}: not saved ({error}). Is the disk full? What was there before is unchanged.") from error


def _rename(tensors: dict, model: nn.Module) -> dict:
    """Undo what differs between files of one network: the "bert." prefix and the LayerNorm names of 2018."""
    renamed = {}
    whole = not hasattr(model, "bert")
    for name, tensor in tensors.items():
        name = name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
        if whole:
            name = name.removeprefix("bert.")
        elif not name.startswith(("bert.", *HEADS[:3])):
            name = "bert." + name
        if name not in TIED and not name.endswith("embeddings.position_ids"):
            renamed[name] = tensor
    return renamed


def _in_head(name: str) -> bool:
    return name.removeprefix("bert.").startswith(HEADS)
