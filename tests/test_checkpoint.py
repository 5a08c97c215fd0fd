"""Checkpoints: exchanged with `transformers` bit for bit, refused clearly when they do not fit, never half-written."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import stand_in
import torch
import transformers
from safetensors.torch import load_file, save_file

from bert_course import checkpoint
from bert_course import model as ours
from bert_course.checkpoint import from_pretrained, save_pretrained
from bert_course.config import BertConfig

AUTO = {
    "BertModel": "AutoModel",
    "BertForPreTraining": "AutoModelForPreTraining",
    "BertForMaskedLM": "AutoModelForMaskedLM",
    "BertForSequenceClassification": "AutoModelForSequenceClassification",
    "BertForTokenClassification": "AutoModelForTokenClassification",
    "BertForQuestionAnswering": "AutoModelForQuestionAnswering",
}
SIZES = dict(
    vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, max_position_embeddings=20
)


def tiny(head: str = "BertForPreTraining", **changes):
    torch.manual_seed(0)
    model = getattr(ours, head)(BertConfig(**(SIZES | changes))).eval()
    for parameter in model.parameters():  # biases and LayerNorm too: a test with zeros and ones would see no mix-up
        parameter.data.normal_(std=0.2)
    return model


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def edit(folder: Path, change) -> None:
    """Rewrite the tensors of a checkpoint: `change` gets and returns a dict."""
    save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors", metadata={"format": "pt"})


def assert_equal_bits(a: torch.nn.Module, b: torch.nn.Module) -> None:
    a, b = a.state_dict(), b.state_dict()
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


@pytest.fixture
def saved(tmp_path) -> Path:
    save_pretrained(tiny(), tmp_path)
    return tmp_path


# Exchange with transformers


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["float32", "float16"])
@pytest.mark.parametrize("head", AUTO)
def test_transformers_opens_what_the_course_saves(head, dtype, tmp_path):
    model = tiny(head)
    save_pretrained(model, tmp_path, dtype)
    auto = getattr(transformers, AUTO[head])
    theirs, info = auto.from_pretrained(tmp_path, dtype=torch.float32, output_loading_info=True)
    assert type(theirs).__name__ == head
    assert not any(info.values()), info
    assert_equal_bits(model.to(dtype).float(), theirs)
    assert_equal_bits(from_pretrained(getattr(ours, head), tmp_path), theirs)
    assert auto.from_pretrained(tmp_path).dtype == dtype  # as it is stored


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["float32", "float16"])
@pytest.mark.parametrize("head", AUTO)
def test_the_course_opens_what_transformers_saves(head, dtype, tmp_path):
    torch.manual_seed(1)
    theirs = getattr(transformers, head)(transformers.BertConfig(**SIZES)).to(dtype)
    for parameter in theirs.parameters():
        parameter.data.normal_(std=0.2)
    theirs.save_pretrained(tmp_path)
    model = from_pretrained(getattr(ours, head), tmp_path)
    assert_equal_bits(model, theirs.float())
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters()) and not model.training


def test_config_survives_the_round_trip(tmp_path):
    model = tiny("BertForSequenceClassification", id2label={0: "negative", 1: "mixed", 2: "positive"}, layer_norm_eps=1e-5)
    save_pretrained(model, tmp_path)
    theirs = transformers.AutoConfig.from_pretrained(tmp_path)
    assert theirs.id2label == model.config.id2label and theirs.num_labels == 3 and theirs.layer_norm_eps == 1e-5
    assert from_pretrained(ours.BertForSequenceClassification, tmp_path).config == model.config


def test_the_tied_output_layer_is_stored_once_and_tied_again(saved):
    assert not set(load_file(saved / "model.safetensors")) & set(checkpoint.TIED)
    model = from_pretrained(ours.BertForPreTraining, saved)
    assert model.cls.predictions.decoder.weight is model.bert.embeddings.word_embeddings.weight


def test_a_whole_model_opens_from_a_model_with_a_head_and_the_other_way_round(saved, tmp_path):
    assert_equal_bits(from_pretrained(ours.BertModel, saved), tiny().bert)
    save_pretrained(tiny().bert, tmp_path / "bare")
    assert_equal_bits(from_pretrained(ours.BertForSequenceClassification, tmp_path / "bare", new_head=True).bert, tiny().bert)


def old_names(tensors: dict) -> dict:
    """As in google-bert/bert-base-uncased: LayerNorm.gamma and beta, and in many files a buffer of positions."""
    renamed = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in tensors.items()
    }
    return renamed | {"bert.embeddings.position_ids": torch.arange(20)[None]}


def test_the_names_of_2018_are_understood(saved):
    edit(saved, old_names)
    assert "bert.embeddings.LayerNorm.gamma" in load_file(saved / "model.safetensors")
    assert_equal_bits(from_pretrained(ours.BertForPreTraining, saved), tiny())
    assert_equal_bits(from_pretrained(ours.BertModel, saved), tiny().bert)


# What does not fit is named


QUERY = "bert.encoder.layer.1.attention.self.query.weight"


@pytest.mark.parametrize("change, message", [
    (lambda t: {k: v for k, v in t.items() if k != QUERY}, f"does not fit BertForPreTraining: missing: {QUERY}.$"),
    (lambda t: t | {"bert.extra.weight": torch.ones(2)}, "BertForPreTraining: surplus: bert.extra.weight.$"),
    (lambda t: t | {QUERY: torch.ones(16, 8)}, rf"misshapen: {QUERY} \(16, 8\) instead of \(16, 16\).$"),
    (lambda t: {k: v for k, v in t.items() if k != QUERY} | {"bert.a": torch.ones(1), "bert.b": torch.ones(1)},
     f"missing: {QUERY}; surplus: bert.a, bert.b.$"),
], ids=["missing", "surplus", "misshapen", "several"])
@pytest.mark.parametrize("new_head", [False, True])
def test_tensors_that_do_not_fit_are_named(saved, change, message, new_head):
    edit(saved, change)
    with pytest.raises(ValueError, match=message):
        from_pretrained(ours.BertForPreTraining, saved, new_head=new_head)


def test_another_size_in_config_is_seen(saved):
    with pytest.raises(ValueError, match=r"misshapen: bert.embeddings.word_embeddings.weight \(40, 16\) instead of \(41, 16\)"):
        from_pretrained(ours.BertForPreTraining, saved, vocab_size=41)
    with pytest.raises(ValueError, match="surplus: bert.encoder.layer.1"):
        from_pretrained(ours.BertForPreTraining, saved, num_hidden_layers=1)


def test_a_misspelt_change_is_not_passed_over(saved):
    with pytest.raises(TypeError, match="BertConfig has no field id2lable"):
        from_pretrained(ours.BertForPreTraining, saved, id2lable={0: "no", 1: "yes"})


def test_a_missing_head_is_an_error_unless_it_is_to_be_new(saved):
    with pytest.raises(ValueError, match="missing: classifier.weight, classifier.bias. A head that is .* new_head=True.$"):
        from_pretrained(ours.BertForSequenceClassification, saved)
    labels = {0: "bad", 1: "so-so", 2: "good"}
    torch.manual_seed(1)
    model = from_pretrained(ours.BertForSequenceClassification, saved, new_head=True, id2label=labels)
    assert model.config.id2label == labels and model.classifier.weight.shape == (3, 16)
    assert 0 < model.classifier.weight.abs().max() <= 0.04 and (model.classifier.bias == 0).all()  # 2 x initializer_range
    assert_equal_bits(model.bert, tiny().bert)


def test_new_head_keeps_a_head_that_is_there(tmp_path):
    trained = tiny("BertForSequenceClassification")
    save_pretrained(trained, tmp_path)
    assert_equal_bits(from_pretrained(ours.BertForSequenceClassification, tmp_path, new_head=True), trained)
    with pytest.raises(ValueError, match=r"misshapen: classifier.weight \(2, 16\) instead of \(3, 16\)"):
        from_pretrained(ours.BertForSequenceClassification, tmp_path, new_head=True, id2label={0: "a", 1: "b", 2: "c"})


def test_a_missing_pooler_is_an_error_unless_it_is_to_be_new(tmp_path):
    save_pretrained(tiny("BertForMaskedLM"), tmp_path)
    with pytest.raises(ValueError, match="BertModel: missing: pooler.dense.weight, pooler.dense.bias. .*new_head=True"):
        from_pretrained(ours.BertModel, tmp_path)
    assert from_pretrained(ours.BertModel, tmp_path, new_head=True).pooler is not None


def test_a_vocabulary_larger_than_the_model_is_refused(saved):
    vocab = saved / "vocab.txt"
    vocab.write_text("".join(f"piece{i}\n" for i in range(41)))
    with pytest.raises(ValueError, match="vocab.txt has 41 pieces, but the model only 40 embeddings"):
        from_pretrained(ours.BertForPreTraining, saved)
    vocab.write_text("".join(f"piece{i}\n" for i in range(39)) + "a\u2028b\u0085c\n", encoding="utf-8")  # one piece, one line
    from_pretrained(ours.BertForPreTraining, saved)


# Damaged or absent


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_a_truncated_file_is_refused(saved, keep):
    path = saved / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match="model.safetensors is not a whole safetensors file .*Download or save it again"):
        from_pretrained(ours.BertForPreTraining, saved)


def test_a_pickle_is_not_opened(saved):
    torch.save(tiny().state_dict(), saved / "model.safetensors")
    with pytest.raises(ValueError, match="is not a whole safetensors file"):
        from_pretrained(ours.BertForPreTraining, saved)
    (saved / "model.safetensors").rename(saved / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match="model.safetensors is missing. Only safetensors"):
        from_pretrained(ours.BertForPreTraining, saved)


def test_a_bad_or_absent_config_is_refused(saved):
    config = saved / "config.json"
    config.write_text('{"model_type": "bert",')
    with pytest.raises(ValueError, match="config.json is not JSON"):
        from_pretrained(ours.BertModel, saved)
    config.write_text('{"model_type": "roberta"}')
    with pytest.raises(ValueError, match="model_type = 'roberta'"):
        from_pretrained(ours.BertModel, saved)
    config.unlink()
    with pytest.raises(FileNotFoundError, match="config.json"):
        from_pretrained(ours.BertModel, saved)


@pytest.mark.parametrize("name", ["nowhere", "./nowhere", "a/b/c", "/nowhere/at-all"])
def test_an_absent_folder_is_named(name):
    with pytest.raises(FileNotFoundError, match=f"no folder '{name}' with a checkpoint"):
        from_pretrained(ours.BertModel, name)


# Saving


def test_saving_again_replaces_both_files(saved):
    torch.manual_seed(5)
    model = ours.BertForMaskedLM(BertConfig(**SIZES))
    save_pretrained(model, saved)
    assert_equal_bits(from_pretrained(ours.BertForMaskedLM, saved), model)
    assert sorted(contents(saved)) == ["config.json", "model.safetensors"]


FULL_DISK = """
import resource, sys
from bert_course.checkpoint import from_pretrained, save_pretrained
from bert_course.model import BertForPreTraining
folder = sys.argv[1]
model = from_pretrained(BertForPreTraining, folder)
for parameter in model.parameters():
    parameter.data += 1
model.config.id2label = {0: "new", 1: "newer"}
for limit in (10_000, 20):  # the first is too little for the weights, the second for config.json too
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))  # no file may grow beyond this: the write truly fails
    try:
        save_pretrained(model, folder)
    except OSError as error:
        print(error)
    else:
        print("saved")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX resource limits")
def test_a_full_disk_leaves_the_old_checkpoint_whole(saved):
    before = contents(saved)
    assert 20 < len(before["config.json"]) < 10_000 < len(before["model.safetensors"])
    run = subprocess.run([sys.executable, "-c", FULL_DISK, str(saved)], capture_output=True, text=True, check=True)
    weights, config = run.stdout.splitlines()
    assert f"{saved}: not saved (" in weights and "What was there before is unchanged." in weights
    assert "File too large" in weights and "File too large" in config
    assert contents(saved) == before  # and no temporary file is left
    assert_equal_bits(from_pretrained(ours.BertForPreTraining, saved), tiny())


def test_weights_that_cannot_be_replaced_leave_both_files_as_they_were(saved, monkeypatch):
    before = contents(saved)
    replace = os.replace

    def refuse(source, target):
        if Path(target).name == "model.safetensors":
            raise PermissionError("the file is open in another program")
        replace(source, target)

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(PermissionError):
        save_pretrained(tiny("BertForMaskedLM"), saved)
    assert contents(saved) == before


# The Hub, by a stand-in on this machine

MODEL = checkpoint.HUB_MODEL
REVISION = checkpoint.HUB_REVISION
WANTED = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt"}
OTHERS = {".gitattributes", "LICENSE", "README.md", "coreml/fill-mask/float32_model.mlpackage/Data/weights.bin",
          "flax_model.msgpack", "model.onnx", "pytorch_model.bin", "rust_model.ot", "tf_model.h5"}
CONFIG = {"architectures": ["BertForMaskedLM"], "gradient_checkpointing": False, "hidden_act": "gelu", "model_type": "bert",
          "position_embedding_type": "absolute", "transformers_version": "4.6.0.dev0", "use_cache": True} | SIZES


@pytest.fixture
def hub(tmp_path):
    """An address that serves google-bert/bert-base-uncased, with its file layout and tiny random weights, and what was asked."""
    root = tmp_path / "hub"
    for name in WANTED | OTHERS:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("{}" if name.endswith(".json") else "not to be downloaded")
    (root / "config.json").write_text(json.dumps(CONFIG))
    (root / "vocab.txt").write_text("".join(f"piece{i}\n" for i in range(40)))
    tensors = {name: tensor for name, tensor in tiny().state_dict().items() if name not in checkpoint.TIED}
    save_file(old_names(tensors), root / "model.safetensors", metadata={"format": "pt"})
    with stand_in.hub({("models", MODEL, REVISION): root}) as served:
        yield served


LOAD = """
import sys, time
time.sleep = lambda seconds: None  # huggingface_hub tries six times and waits 23 seconds in all; here it only tries
from bert_course import model
from bert_course.checkpoint import HUB_MODEL, find, from_pretrained, save_pretrained
try:
    save_pretrained(from_pretrained(model.BertForPreTraining, HUB_MODEL), sys.argv[1])
except FileNotFoundError as error:
    print(error)
else:
    print(*sorted(path.name for path in find(HUB_MODEL).iterdir()))
"""


def load_from(endpoint: str, tmp_path: Path) -> str:
    command = [sys.executable, "-c", LOAD, str(tmp_path / "loaded")]
    environment = stand_in.environment(endpoint, tmp_path / "cache")
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout


def test_loading_from_the_hub_and_then_without_it(hub, tmp_path):
    endpoint, asked = hub
    assert set(load_from(endpoint, tmp_path).split()) == WANTED
    assert set(asked) == WANTED  # not one of the large files in other formats
    assert_equal_bits(from_pretrained(ours.BertForPreTraining, tmp_path / "loaded"), tiny())
    assert set(load_from(stand_in.DOWN, tmp_path).split()) == WANTED  # the Hub is gone: from the cache


def test_a_hub_that_is_down_is_said_clearly(tmp_path):
    message = load_from(stand_in.DOWN, tmp_path)
    assert message.startswith(f"'{MODEL}' is neither a folder here nor could it be fetched from the Hub (")
    assert "Check the name and the network." in message
    assert not (tmp_path / "loaded").exists()
