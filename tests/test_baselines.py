"""The models that BERT is compared with."""

import json
import random
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from torch.testing import assert_close

from bert_course import cli, data_path, pretraining, probes, tasks
from bert_course.baselines import elmo, gpt, objectives, rnn, word2vec
from bert_course.checkpoint import from_pretrained, save_pretrained
from bert_course.config import BertConfig
from bert_course.model import BertForMaskedLM, BertForPreTraining, BertModel, parameter_groups
from bert_course.pretraining import Recipe, pretrain
from bert_course.studies import siblings
from bert_course.wordpiece import WordPieceTokenizer, train_wordpiece

SMALL = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, max_position_embeddings=32,
             hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
CONFIG = BertConfig(vocab_size=50, initializer_range=0.25, **SMALL)
WORDS = "the a river bank money tree walks sings under over green small old new quiet loud morning night bread stone".split()


@pytest.fixture(autouse=True)
def float32_and_seeded(monkeypatch):
    monkeypatch.setattr(pretraining, "bfloat16_speedup", lambda device: 0.0)
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    rng = random.Random(0)
    path = tmp_path_factory.mktemp("corpus") / "text.txt"
    lines = [[" ".join(rng.choices(WORDS, k=rng.randint(3, 12))) + "." for _ in range(rng.randint(3, 20))] for _ in range(600)]
    path.write_text("\n\n".join("\n".join(document) for document in lines))
    return path


@pytest.fixture(scope="module")
def tokenizer(corpus):
    return train_wordpiece(corpus.read_text().splitlines(), 120)


def ids(rows: int, length: int) -> torch.Tensor:
    return torch.randint(5, 50, (rows, length))


# ---- what reaches whom


def test_in_bert_every_token_reaches_every_state():
    assert (probes.influence(BertModel(CONFIG), ids(1, 7)[0]) > 0).all()


@pytest.mark.parametrize("layer", [1, 2])
@pytest.mark.parametrize("body", [gpt.CausalModel, rnn.RecurrentModel])
def test_in_gpt_and_in_an_lstm_nothing_comes_from_the_right(body, layer):
    reached = probes.influence(body(CONFIG), ids(1, 7)[0], layer)
    assert (np.triu(reached, 1) == 0).all() and (reached[np.tril_indices(7)] > 0).all()


@pytest.mark.parametrize("layer", [1, 2])
def test_each_half_of_elmo_sees_one_side_only(layer):
    model, text = elmo.ElmoModel(CONFIG), ids(1, 7)[0]
    ahead, back = (probes.influence(model, text, layer, part) for part in (slice(0, 16), slice(16, 32)))
    assert (np.triu(ahead, 1) == 0).all() and (ahead[np.tril_indices(7)] > 0).all()
    assert (np.tril(back, -1) == 0).all() and (back[np.triu_indices(7)] > 0).all()


def test_influence_runs_without_cudnn_which_cannot_go_back_through_an_lstm_in_eval_mode():
    model, seen = rnn.RecurrentModel(CONFIG), []
    model.register_forward_hook(lambda *args: seen.append(torch.backends.cudnn.enabled))
    probes.influence(model, ids(1, 4)[0])
    assert seen == [False] and torch.backends.cudnn.enabled


def test_influence_is_the_size_of_the_derivatives():
    """Against the whole Jacobian, with many directions."""
    model, text = BertModel(CONFIG).double().eval(), ids(1, 4)[0]
    table = model.embeddings.word_embeddings

    def last_state(vectors):
        handle = table.register_forward_hook(lambda *_: vectors[None])
        states = model(text[None]).last_hidden_state[0]
        handle.remove()
        return states

    jacobian = torch.autograd.functional.jacobian(last_state, table(text).detach())  # (S, D, S, D)
    whole = jacobian.pow(2).sum((1, 3)).sqrt().numpy()
    np.testing.assert_allclose(probes.influence(model, text, draws=400), whole, rtol=0.15)


# ---- GPT


def test_gpt_is_bert_with_another_mask():
    bert = BertForMaskedLM(CONFIG).eval()
    model = gpt.CausalLM(CONFIG).eval()
    model.load_state_dict(bert.state_dict(), strict=True)
    one = ids(3, 1)
    assert_close(model(one).logits, bert(one).logits)
    more = ids(3, 5)
    assert_close(model(more).logits[:, 0], bert(more[:, :1]).logits[:, 0])
    assert_close(model(more).logits[:, 0], model(more[:, :1]).logits[:, 0])
    assert (model(more).logits[:, 0] - bert(more).logits[:, 0]).abs().max() > 0.01


def test_gpt_equals_the_decoder_of_transformers():
    """Logits, loss, every gradient; with padding."""
    mine = gpt.CausalLM(CONFIG).double()
    settings = transformers.BertConfig(**CONFIG.to_dict() | {"is_decoder": True}, attn_implementation="eager")
    theirs = transformers.BertLMHeadModel(settings).double()
    theirs.load_state_dict(mine.state_dict(), strict=True)
    text, mask = ids(3, 9), torch.tensor([[1] * 9, [1] * 6 + [0] * 3, [1] * 2 + [0] * 7])
    inputs = {"input_ids": text, "attention_mask": mask, "labels": text.masked_fill(mask == 0, -100)}
    a, b = mine(**inputs), theirs(**inputs)
    assert_close(a.logits, b.logits)
    assert_close(a.loss, b.loss, check_dtype=False)  # theirs is in float32
    for output in (a, b):
        output.logits.square().mean().backward()
    other = dict(theirs.named_parameters())
    for name, parameter in mine.named_parameters():
        assert_close(parameter.grad, other[name].grad)


@pytest.mark.parametrize("model_class", [gpt.CausalLM, rnn.RecurrentLM])
def test_the_next_token_loss_is_the_mean_over_positions(model_class, tokenizer):
    model = model_class(replace(CONFIG, vocab_size=tokenizer.vocab_size)).eval()
    text = [2, *tokenizer.encode("the river sings."), 3]
    batch = {"input_ids": torch.tensor([text, [2, 9, 3, *[0] * (len(text) - 3)]])}
    ready = rnn.next_tokens(batch, tokenizer, 0.15, torch.default_generator)
    losses = []
    for row, length in zip(batch["input_ids"].tolist(), (len(text), 3)):
        for i in range(1, length - 1):  # all but [CLS] and [SEP]
            losses.append(-model(torch.tensor([row[:i]])).logits[0, -1].log_softmax(-1)[row[i]])
    objective = next(o for o in objectives().values() if o.model is model_class)
    assert_close(objective.losses(model, ready)["next_loss"], torch.stack(losses).mean())
    assert_close(model(**ready).loss, torch.stack(losses).mean())


# ---- ELMo and recurrent networks


def padded() -> tuple[torch.Tensor, torch.Tensor]:
    text = ids(3, 8)
    mask = torch.tensor([[1] * 8, [1] * 5 + [0] * 3, [1] + [0] * 7])
    return text * mask, mask


def test_elmos_backward_half_is_a_forward_model_of_the_text_turned_around():
    model = elmo.ElmoModel(CONFIG).eval()
    model.backwards.load_state_dict(model.forwards.state_dict())
    text, mask = padded()
    back = model(text, mask, output_hidden_states=True).hidden_states
    for row, length in enumerate(mask.sum(1).tolist()):
        ahead = model(text[row : row + 1, :length].flip(1), output_hidden_states=True).hidden_states
        for a, b in zip(ahead, back):
            assert_close(a[0, :, :16].flip(0), b[row, :length, 16:])


def test_the_bilm_guesses_the_next_and_the_last_token(tokenizer):
    model = elmo.BiLM(replace(CONFIG, vocab_size=tokenizer.vocab_size)).eval()
    text = [2, *tokenizer.encode("the river sings."), 3]
    batch = {"input_ids": torch.tensor([text, [2, 9, 3, *[0] * (len(text) - 3)]])}
    losses = elmo.BILM.losses(model, rnn.next_tokens(batch, tokenizer, 0.15, torch.default_generator))
    ahead, back = [], []
    for row, length in zip(batch["input_ids"].tolist(), (len(text), 3)):
        for i in range(1, length - 1):
            ahead.append(-model(torch.tensor([row[:i]])).forward_logits[0, -1].log_softmax(-1)[row[i]])
            back.append(-model(torch.tensor([row[i + 1 : length]])).backward_logits[0, 0].log_softmax(-1)[row[i]])
    assert_close(losses["forward_loss"], torch.stack(ahead).mean())
    assert_close(losses["backward_loss"], torch.stack(back).mean())


def test_the_layer_mix_is_equation_1():
    mix = elmo.LayerMix(3)
    with torch.no_grad():
        mix.s.copy_(torch.tensor([0.0, 1.0, -1.0]))
        mix.gamma.fill_(2.0)
    layers = torch.randn(3, 2, 4, 5)
    weights = np.exp([0.0, 1.0, -1.0]) / np.exp([0.0, 1.0, -1.0]).sum()
    assert_close(mix(layers), 2.0 * sum(w * layer for w, layer in zip(weights.tolist(), layers)))


CLASSIFIERS = [
    rnn.LSTMForSequenceClassification,
    rnn.BiLSTMForSequenceClassification,
    elmo.ElmoForSequenceClassification,
    gpt.CausalForSequenceClassification,
]


@pytest.mark.parametrize("model_class", CLASSIFIERS)
def test_padding_changes_no_label(model_class):
    model = model_class(CONFIG).eval()
    text, mask = padded()
    together = model(text, mask).logits
    for row, length in enumerate(mask.sum(1).tolist()):
        assert_close(together[row], model(text[row : row + 1, :length]).logits[0])


@pytest.mark.parametrize("model_class", CLASSIFIERS)
def test_a_classifier_learns_which_of_two_tokens_came_first(model_class):
    model = model_class(CONFIG).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(150):
        labels = torch.randint(2, (32,))
        text = torch.stack([labels + 10, 11 - labels], dim=1)
        text = torch.cat([ids(32, 2).clamp(min=12), text], dim=1)
        loss = model(text, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.1
    assert_close(loss, F.cross_entropy(model(text).logits, labels), atol=0.1, rtol=0)


def test_a_bilstm_ends_with_both_directions():
    """What torch's own bidirectional nn.LSTM says at the last token going forward and at the first going back."""
    model = rnn.BiLSTMForSequenceClassification(CONFIG).eval()
    text = ids(2, 6)
    states = model.lstm(model.embeddings(text))[0]  # (B, S, 2U)
    final = torch.cat([states[:, -1, :24], states[:, 0, 24:]], dim=-1)
    assert_close(model(text).logits, model.classifier(final))


# ---- one loop for all


def test_all_siblings_are_of_one_size():
    config = BertConfig.preset("tiny", vocab_size=8192, max_position_embeddings=128)
    size = rnn.parameters(BertForPreTraining, config)
    assert size == sum(p.numel() for p in BertForPreTraining(config).parameters())
    for objective in objectives().values():
        mine = rnn.sized(objective.model, config, size) if objective.name in ("recurrent", "bilm") else config
        assert rnn.parameters(objective.model, mine) == pytest.approx(size, rel=0.02)
    assert 2 * 8192 * round(size / 8192 / 2) == pytest.approx(size, rel=0.02)


def run(corpus, folder, tokenizer, objective, resume=False, **changes):
    config = BertConfig(vocab_size=tokenizer.vocab_size, **SMALL)
    settings = {"steps": 12, "phases": ((0.5, 16, 0.15, 128), (0.5, 32, 0.15, 256)), "learning_rate": 5e-3, "warm_start": False}
    recipe = Recipe(**settings | {"objective": objective} | changes)
    return pretrain(corpus, folder, tokenizer, config, recipe, resume=resume, progress_bar=False)


OTHERS = [gpt.CAUSAL, rnn.RECURRENT, elmo.BILM]


@pytest.mark.parametrize("objective", OTHERS, ids=lambda objective: objective.name)
def test_every_sibling_learns_saves_and_resumes_as_bert_does(objective, corpus, tokenizer, tmp_path, monkeypatch):
    whole = run(corpus, tmp_path / "whole", tokenizer, objective, steps=60)
    log = [json.loads(line) for line in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
    name = next(iter(objective.weights))
    assert log[-1][name] < log[0][name] - 0.1
    assert json.loads((tmp_path / "whole" / "training_state.json").read_text())["recipe"]["objective"] == objective.name

    step, calls = torch.optim.AdamW.step, []

    def stopping(self, *args):
        calls.append(1)
        if len(calls) == 25:
            pretraining.signal.raise_signal(pretraining.signal.SIGINT)
        return step(self, *args)

    monkeypatch.setattr(torch.optim.AdamW, "step", stopping)
    run(corpus, tmp_path / "parts", tokenizer, objective, steps=60)
    resumed = run(corpus, tmp_path / "parts", tokenizer, objective, steps=60, resume=True)
    assert len(calls) == 60
    stored = from_pretrained(objective.model, tmp_path / "parts")
    for (name, a), b, c in zip(whole.named_parameters(), resumed.parameters(), stored.parameters()):
        assert torch.equal(a, b) and torch.equal(b, c), name


@pytest.mark.parametrize("objective", OTHERS, ids=lambda objective: objective.name)
def test_warm_start_helps_every_sibling(objective, tmp_path):
    """Words that come in pairs: before the first step, less loss than from noise; positions are sinusoids where there are any."""
    rng = random.Random(0)
    texts = [" ".join(rng.choice(["salt pepper", "bread butter", "night day"]) for _ in range(12)) for _ in range(300)]
    path = tmp_path / "text.txt"
    path.write_text("\n\n".join(texts))
    tokenizer = train_wordpiece(texts, 60)
    model = objective.model(BertConfig(vocab_size=tokenizer.vocab_size, **SMALL | {"initializer_range": 0.25})).eval()
    documents = next(pretraining.tokenized_chunks(path, tokenizer, held_out=False))
    cold = siblings.held_out_losses(model, objective, tokenizer, documents)
    pretraining.warm_start(model, tokenizer, path)
    warm = siblings.held_out_losses(model, objective, tokenizer, documents)
    assert all(warm[name] < cold[name] - 0.3 for name in objective.weights)
    if objective is gpt.CAUSAL:
        assert_close(model.bert.embeddings.position_embeddings.weight[0, 8:], torch.full((8,), 0.25 * 2**0.5))


def test_a_token_budget_is_kept(corpus, tokenizer, tmp_path):
    run(corpus, tmp_path, tokenizer, "mlm", steps=None, tokens=3000)
    assert 3000 <= json.loads((tmp_path / "training_state.json").read_text())["tokens"] < 3000 + 256


@pytest.mark.parametrize("classifier, objective", [
    (gpt.CausalForSequenceClassification, gpt.CAUSAL), (elmo.ElmoForSequenceClassification, elmo.BILM),
])
def test_a_classifier_starts_from_what_was_pretrained(classifier, objective, tmp_path):
    model = objective.model(CONFIG)
    save_pretrained(model, tmp_path)
    with pytest.raises(ValueError, match="missing: classifier"):
        from_pretrained(classifier, tmp_path)
    tuned = from_pretrained(classifier, tmp_path, new_head=True)
    body = "bert" if objective is gpt.CAUSAL else "elmo"
    for a, b in zip(getattr(model, body).parameters(), getattr(tuned, body).parameters()):
        assert torch.equal(a, b)


def test_the_command_line_pretrains_a_sibling(corpus, tokenizer, tmp_path):
    tokenizer.save(tmp_path / "vocab.txt")
    common = ["pretrain", "--corpus", str(corpus), "--vocab", str(tmp_path / "vocab.txt"), "--preset", "tiny"]
    assert cli.main([*common, "--objective", "bilm", "--output", str(tmp_path / "bilm"), "--tokens", "2000",
                     "--phases", "1:16:0.15:256"]) == 0
    model = from_pretrained(elmo.BiLM, tmp_path / "bilm")
    bert = BertConfig.preset("tiny", vocab_size=tokenizer.vocab_size)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(rnn.parameters(BertForPreTraining, bert), rel=0.03)
    assert cli.main([*common, "--objective", "skipgram", "--output", str(tmp_path / "sg"), "--tokens", "2000"]) == 0
    assert word2vec.load(tmp_path / "sg")[0].shape[0] == tokenizer.vocab_size


def test_skipgram_says_what_budget_it_wants(capsys):
    assert cli.main(["pretrain", "--objective", "skipgram", "--output", "nowhere", "--steps", "5"]) == 1
    assert "skipgram takes its budget as --tokens" in capsys.readouterr().err


def test_skipgram_says_that_a_corpus_is_too_small(tokenizer, tmp_path):
    (tmp_path / "one.txt").write_text("The river sings. It is the only document.")
    with pytest.raises(ValueError, match="is too small: there are not two documents"):
        word2vec.pretrain(tmp_path / "one.txt", tmp_path / "out", tokenizer, 4, 1000)


@pytest.mark.parametrize("option", ["--phases 1:64:0.15:512", "--dropout 0.0", "--no-warm-start", "--tensorboard"])
def test_skipgram_refuses_what_it_has_no_use_for(capsys, option):
    assert cli.main(["pretrain", "--objective", "skipgram", "--output", "nowhere", "--tokens", "5", *option.split()]) == 1
    assert f"skipgram takes no {option.split()[0]}" in capsys.readouterr().err


def test_lstm_biases_do_not_decay():
    model = rnn.RecurrentLM(CONFIG)
    decay, plain = parameter_groups(model)
    assert all(p.dim() == 1 for p in plain["params"]) and all(p.dim() == 2 for p in decay["params"])
    spared = {id(p) for p in plain["params"]}
    names = {name for name, p in model.named_parameters() if id(p) in spared}
    assert any("bias_ih_l0" in name for name in names) and not any("weight" in name for name in names if "LayerNorm" not in name)


def test_elmos_weights_of_its_layers_do_not_decay():
    model = elmo.ElmoForSequenceClassification(CONFIG)
    spared = {id(p) for p in parameter_groups(model)[1]["params"]}
    assert {name for name, p in model.named_parameters() if id(p) in spared} >= {"classifier.mix.s", "classifier.mix.gamma"}


# ---- Word2Vec


def test_skip_gram_brings_words_of_equal_company_together_and_repeats_itself():
    rng = random.Random(0)
    animals, tools = ["cat", "dog", "horse"], ["saw", "drill", "hammer"]
    company = {"animal": "eats sleeps runs drinks barks jumps".split(), "tool": "cuts breaks rusts drops bends shines".split()}
    sentences = []
    for _ in range(3000):
        kind = rng.choice(["animal", "tool"])
        names = animals if kind == "animal" else tools
        sentences.append([rng.choice(names), *rng.sample(company[kind], 3)])
    vectors = word2vec.skip_gram(sentences, size=16, epochs=5, seed=1).wv
    for group in (animals, tools):
        for word in group:
            assert {other for other, _ in vectors.most_similar(word, topn=2)} <= {*group, *company["animal"], *company["tool"]}
            others = tools if group is animals else animals
            assert min(vectors.similarity(word, w) for w in group) > max(vectors.similarity(word, w) for w in others)
    again = word2vec.skip_gram(sentences, size=16, epochs=5, seed=1).wv
    np.testing.assert_array_equal(vectors.vectors, again.vectors)


def test_skip_gram_over_pieces_reads_the_budget_and_no_more(corpus, tokenizer, tmp_path, monkeypatch):
    read = []
    train = word2vec.skip_gram

    def spy(sentences, *args, **kwargs):
        read.extend(sentences)
        return train(sentences, *args, **kwargs)

    monkeypatch.setattr(word2vec, "skip_gram", spy)
    vectors, contexts = word2vec.pretrain(corpus, tmp_path, tokenizer, 8, 500)
    pieces = [piece for sentence in read for piece in sentence]
    assert len(pieces) == 500
    first = next(pretraining.tokenized_chunks(corpus, tokenizer, held_out=False))
    assert pieces == [tokenizer.tokens[t] for document in first for sentence in document for t in sentence][:500]
    seen = {tokenizer.vocab[piece] for piece in pieces}
    assert {i for i, row in enumerate(vectors) if row.any()} == seen
    assert all(torch.equal(a, b) for a, b in zip(word2vec.load(tmp_path), (vectors, contexts)))
    with pytest.raises(FileExistsError, match="already holds a checkpoint"):
        word2vec.pretrain(corpus, tmp_path, tokenizer, 8, 500)


# ---- a gap, and the side that gives it away


def test_bert_scores_a_gap_as_it_fills_a_mask(tokenizer):
    model = BertForPreTraining(replace(CONFIG, vocab_size=tokenizer.vocab_size))
    left, right = tokenizer.encode("the river"), tokenizer.encode("under a tree.")
    scores = probes.gap_scores(model, tokenizer, left, right)
    [best] = pretraining.fill_mask(model, tokenizer, "the river [MASK] under a tree.", top=3)
    for token, probability in best:
        assert scores[tokenizer.vocab[token]].exp().item() == pytest.approx(probability, rel=1e-4)


def test_a_gap_is_scored_from_the_sides_a_model_reads(tokenizer):
    config = replace(CONFIG, vocab_size=tokenizer.vocab_size)
    left, right, other = (tokenizer.encode(text) for text in ("the river", "under a tree.", "over bread."))
    bert, lm, bilm = BertForMaskedLM(config), gpt.CausalLM(config), elmo.BiLM(config)
    assert not torch.equal(*(probes.gap_scores(bert, tokenizer, left, after) for after in (right, other)))
    assert torch.equal(*(rnn.gap_scores(lm, tokenizer, left, after) for after in (right, other)))
    sides = {side: elmo.gap_scores(bilm, tokenizer, left, right, side) for side in ("left", "right", "both")}
    assert_close(sides["both"], sides["left"] + sides["right"])
    assert torch.equal(sides["right"], elmo.gap_scores(bilm, tokenizer, other, right, "right"))
    assert torch.equal(sides["left"], elmo.gap_scores(bilm, tokenizer, left, other, "left"))
    tables = torch.randn(2, tokenizer.vocab_size, 4)
    mean = tables[0][[*left, *right]].mean(0)
    assert_close(word2vec.gap_scores(*tables, left, right)[7], tables[1][7] @ mean)


def test_a_pair_of_twins_is_right_by_the_sum_of_both(tokenizer):
    rows = [
        {"text": "the bank sings", "word": "bank", "other": "tree", "start": 4, "side": "right", "distance": 2, "pair": 1},
        {"text": "the tree walks", "word": "tree", "other": "bank", "start": 4, "side": "right", "distance": 1, "pair": 1},
    ]
    bank, sings = (tokenizer.vocab[word] for word in ("bank", "sings"))

    def likes_banks(left, right, seen=0.0):
        return torch.eye(tokenizer.vocab_size)[bank] * (5.0 + seen * (sings in right))

    blind = probes.cloze_margins(tokenizer, rows, likes_banks)
    assert blind.tolist() == [5.0, -5.0]
    assert probes.cloze_pairs(rows, blind) == [{"side": "right", "distance": 1, "right": 0.5}]
    seeing = probes.cloze_margins(tokenizer, rows, partial(likes_banks, seen=1.0))
    assert probes.cloze_pairs(rows, seeing)[0]["right"] == 1.0
    with pytest.raises(ValueError, match="'unbelievable' is not a single piece"):
        probes.cloze_margins(tokenizer, [rows[0] | {"other": "unbelievable"}], likes_banks)


# ---- the study


@pytest.fixture
def small_questions(monkeypatch):
    """A part of the course's data, so that the study takes seconds."""
    read, senses, cloze = tasks.read, tasks.read_senses, tasks.read_cloze
    monkeypatch.setattr(tasks, "read", lambda *args: read(*args)[:24])

    def banks(path):  # read_cloze, which has pairs, reads through it too
        return [row for row in senses(path) if "pair" in row or row["word"] == "bank"]

    monkeypatch.setattr(tasks, "read_senses", banks)
    monkeypatch.setattr(tasks, "read_cloze", lambda path: cloze(path)[:20])
    monkeypatch.setattr(pretraining, "warm_start", lambda *args: None)
    monkeypatch.setattr(siblings, "TRIED_RATES", dict.fromkeys(siblings.TRIED_RATES, (1e-3,)) | {"causal": (1e-3, 2e-3)})
    monkeypatch.setattr(siblings, "FINE_TUNING_RATES", (1e-3,))


def test_the_sibling_study_goes_on_where_it_stopped(corpus, small_questions, tmp_path, monkeypatch):
    (tmp_path / "wic").mkdir()
    header = "word\tpos\tidx\tsentence1\tsentence2\tlabel"
    lines = [header, "bank\tN\t1-2\tA bank .\tOn the bank .\tF", "sun\tN\t0-1\tSun .\tThe sun .\tT"]
    for split in ("dev", "test"):
        (tmp_path / "wic" / f"{split}.tsv").write_text("\n".join(lines))
    settings = {"seeds": 1, "corpus": corpus, "tokens": 9000, "tasks_folder": tmp_path}
    output = tmp_path / "siblings.json"
    siblings.study_siblings(output, **settings, kinds=("skipgram",))
    trained = []
    train = pretraining.pretrain

    def spy(text, folder, *args, **kwargs):
        trained.append(folder.name)
        return train(text, folder, *args, **kwargs)

    monkeypatch.setattr(siblings, "pretrain", spy)
    siblings.study_siblings(output, **settings, kinds=("skipgram", "causal", "bilm"))
    assert trained == ["causal 0.001", "causal 0.002", "bilm 0.001", "causal seed 0", "bilm seed 0"]
    stored = json.loads(output.read_text())
    assert output.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    siblings.study_siblings(output, **settings, kinds=("skipgram", "causal", "bilm"))
    assert json.loads(output.read_text()) == stored and len(trained) == 5
    assert [run["kind"] for run in stored["runs"]] == ["skipgram", "causal", "bilm"]
    for run in stored["runs"]:
        assert len(run["cloze"]) == 20 and run["tokens_per_second"] > 0 and run["megabytes"] > 4 * 1.4
        assert run["parameters"] == pytest.approx(1.5e6, rel=0.02)
        layers = 1 if run["kind"] == "skipgram" else 2
        assert np.shape(run["senses"]) == (layers, 5) and len(run["wic"]) == layers
        assert 0 <= run["reviews"]["frozen"]["all"] <= 1
        assert run["gaps"].keys() == {"left", "right", "both"} and all(0 <= share <= 1 for share in run["gaps"].values())
    assert stored["runs"][1]["gaps"]["both"] == stored["runs"][1]["gaps"]["left"]  # GPT sees nothing of what comes after
    assert len(stored["runs"][1]["cloze sentence"]) == 20 and 0 < stored["most frequent word"] < 1
    halves = stored["runs"][2]
    np.testing.assert_allclose(np.add(halves["cloze left"], halves["cloze right"]), halves["cloze"], atol=0.0021)
    with pytest.raises(ValueError, match="was made with another checkpoint, data or settings"):
        siblings.study_siblings(output, **settings | {"tokens": 8000})
    monkeypatch.setattr(siblings, "FINE_TUNING_RATES", (2e-3,))
    with pytest.raises(ValueError, match="was made with another checkpoint, data or settings"):
        siblings.study_siblings(output, **settings)
    changed = tmp_path / corpus.name
    changed.write_text("One more. " + corpus.read_text())
    monkeypatch.setattr(siblings, "FINE_TUNING_RATES", (1e-3,))
    with pytest.raises(ValueError, match="was made with another checkpoint, data or settings"):
        siblings.study_siblings(output, **settings | {"corpus": changed})


def test_the_study_says_when_there_is_too_little_text(corpus, small_questions, tmp_path):
    with pytest.raises(ValueError, match=r"tokens; needed are 9,000,000 and some to measure with"):
        siblings.study_siblings(tmp_path / "siblings.json", 1, corpus, 9_000_000)


def test_the_text_of_the_study_is_as_long_as_asked_and_what_is_measured_is_not_in_it(corpus, tokenizer, tmp_path):
    held_out = siblings.sibling_text(corpus, tokenizer, 5000, tmp_path / "text.txt")
    assert held_out
    written = [[t for line in text.splitlines() for t in tokenizer.encode(line)]
               for text in (tmp_path / "text.txt").read_text().split("\n\n")]
    assert 5000 <= sum(map(len, written)) < 5000 + 10 * 40
    assert not {tuple(document) for document in written} & {tuple(t for s in document for t in s) for document in held_out}


def test_a_gap_is_a_whole_word_and_is_scored_from_the_sides_shown(corpus, tokenizer, tmp_path):
    held_out = siblings.sibling_text(corpus, tokenizer, 5000, tmp_path / "text.txt")
    gaps = siblings.held_out_gaps(held_out, tokenizer, 20)
    sentences = [sentence for document in held_out for sentence in document]
    for left, piece, right in gaps:
        assert [*left, piece, *right] in sentences and len(left) >= 4 <= len(right)
        assert tokenizer.tokens[piece].isalpha() and not tokenizer.tokens[right[0]].startswith("##")
    answers = {len(left): piece for left, piece, _ in gaps}

    def scores(left, right):  # knows the answer if it sees the left side
        return torch.eye(tokenizer.vocab_size)[answers[len(left)] if left else 0]

    one_of_each = [gap for gap in gaps if answers[len(gap[0])] == gap[1]]
    shares = {side: siblings.filled(one_of_each, scores, side) for side in siblings.SHOWN}
    assert one_of_each and shares == {"left": 1.0, "right": 0.0, "both": 1.0}


@torch.no_grad()
def test_a_sentence_scores_the_sum_of_its_next_token_losses(tokenizer):
    model = gpt.CausalLM(replace(CONFIG, vocab_size=tokenizer.vocab_size))
    left, right, pieces = tokenizer.encode("the river"), tokenizer.encode("bank ."), tokenizer.encode("a the")
    found = gpt.sentence_scores(model, tokenizer, left, pieces, right)
    for piece, score in zip(pieces, found, strict=True):
        ids = torch.tensor([[tokenizer.cls_id, *left, piece, *right, tokenizer.sep_id]])
        assert score == pytest.approx(-float(model(ids, labels=ids).loss) * (ids.shape[1] - 1), rel=1e-5)


def test_what_gpt_says_of_whole_sentences_is_a_bar_of_its_own():
    runs = [{"kind": "causal", "gaps": {"left": 0.2, "both": 0.2}, "gaps sentence": share} for share in (0.3, 0.4)]
    shares = siblings.gap_shares([*runs, {"kind": "mlm", "gaps": {"left": 0.1, "both": 0.5}}])
    assert shares == {"left side only": {"GPT": [0.2, 0.2], "BERT without NSP": [0.1]},
                      "both sides": {"GPT": [0.2, 0.2], "GPT, comparing 20 sentences": [0.3, 0.4], "BERT without NSP": [0.5]}}


def test_the_best_rate_has_the_least_held_out_loss():
    trials = [{"kind": "bilm", "learning_rate": rate, "held_out": {"forward_loss": a, "backward_loss": b}}
              for rate, a, b in ((1e-3, 5.0, 6.0), (2e-3, 5.2, 5.1), (4e-3, 5.5, 5.5))]
    assert siblings.best_rate([*trials, {"kind": "mlm", "learning_rate": 9.0, "held_out": {}}], "bilm") == 2e-3


def test_a_curve_is_the_mean_between_two_points(tmp_path):
    log = [{"step": i, "tokens": 10 * i, "next_loss": float(i), "next_accuracy": 0.5} for i in range(1, 81)]
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, log)))
    found = siblings.curve(tmp_path / "log.jsonl")
    assert found["tokens"][:2] == [20, 40] and found["next_loss"][:2] == [1.5, 3.5] and set(found) == {"tokens", "next_loss"}


def test_same_sense_takes_its_threshold_from_the_development_split():
    near, far = np.array([1.0, 0.1]), np.array([0.1, 1.0])
    first = np.stack([[near], [near], [near], [near]])  # (pairs, layers, D)
    known = ([first, np.stack([[near], [far], [near], [far]])], np.array([True, False, True, False]))
    asked = ([first[:2], np.stack([[near], [near]])], np.array([True, False]))
    assert siblings.same_sense(known, asked) == [0.5] and siblings.same_sense(known, known) == [1.0]


def test_frozen_vectors_are_judged_by_the_layer_that_is_best_on_validation():
    rng = np.random.default_rng(0)
    rows = [[{"label": i % 2, "case": "plain", "domain": "film", "pair": str(i)} for i in range(60)] for _ in range(3)]
    signal = np.array([row["label"] for row in rows[0]])[:, None] + rng.normal(0, 0.05, (60, 4))
    vectors = [np.stack([rng.normal(0, 1, (60, 4)), signal]) for _ in range(3)]  # (layers, rows, D)
    scores = siblings.frozen_scores(vectors, *rows)
    assert scores["all"] == 1.0 and scores["layer"] == 1


def test_the_cost_counts_weights_and_what_waits_for_the_backward_pass():
    tokenizer = WordPieceTokenizer.from_pretrained(data_path("bert-course-mini"))
    config = BertConfig.preset("tiny", vocab_size=tokenizer.vocab_size, max_position_embeddings=128)
    objective = objectives()["mlm"]
    model = objective.model(config)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    cost = siblings.cost(model, objective, tokenizer)
    assert cost["megabytes"] > 16 * rnn.parameters(BertForPreTraining, config) / 1e6 + 2 * 32 * 64 * 512 * 4 / 1e6
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    scores = 32 * 62 * 8192 * 4 / 1e6  # GPT's, of all tokens; BERT's are of 15%
    assert siblings.cost(gpt.CausalLM(config), gpt.CAUSAL, tokenizer)["megabytes"] > cost["megabytes"] + 0.8 * scores
