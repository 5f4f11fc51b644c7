"""The encoder-decoder Transformer: torch.nn.Transformer's numbers, packed sequences, decoding, and what is refused."""

from __future__ import annotations

import itertools
import logging

import pytest
import torch
from torch import nn

import aigc_fast
from aigc_fast.errors import UserError
from aigc_fast.models import BPETokenizer, ByteTokenizer, CharTokenizer, Seq2SeqTransformer, create, load, save
from aigc_fast.models.text.packed import Lengths, attend_packed, attend_padded
from aigc_fast.models.text.seq2seq import Answers, sinusoids
from aigc_fast.runtime import native

SMALL = {
    "d_model": 16,
    "nhead": 2,
    "num_encoder_layers": 2,
    "num_decoder_layers": 2,
    "dim_feedforward": 24,
    "max_positions": 12,
}
LETTERS = CharTokenizer("abcdefgh", unknown=True)
BOTH = {"norm_first": (False, True), "bias": (True, False), "activation": ("relu", "gelu")}


def model_of(tokenizer=LETTERS, **config):
    torch.manual_seed(3)
    model = Seq2SeqTransformer(tokenizer=tokenizer, **{**SMALL, **config})
    # Larger than at the beginning, so that answers are of several letters.
    with torch.no_grad():
        for parameter in model.transformer.parameters():
            parameter.normal_(std=0.5)
    return model.eval()


def theirs_of(model):
    """torch.nn.Transformer with numbers of its own."""
    config = model.config
    names = ("d_model", "nhead", "num_encoder_layers", "num_decoder_layers", "dim_feedforward", "dropout")
    names += ("activation", "norm_first", "bias")
    torch.manual_seed(5)
    found = nn.Transformer(**{name: config[name] for name in names}, batch_first=True)
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.normal_(std=0.3)
    return found


def their_hidden(theirs, src, tgt, src_padding, tgt_padding):
    causal = nn.Transformer.generate_square_subsequent_mask(tgt.shape[1], dtype=torch.bool)
    return theirs(
        src,
        tgt,
        tgt_mask=causal,
        src_key_padding_mask=src_padding,
        tgt_key_padding_mask=tgt_padding,
        memory_key_padding_mask=src_padding,
    )


PADDINGS = (
    (None, None),
    (torch.arange(7) >= torch.tensor([[7], [4], [5]]), torch.arange(5) >= torch.tensor([[5], [3], [1]])),
    # Wherever it is.
    (torch.tensor([[1, 0, 0, 1, 0, 0, 0], [0] * 7, [0, 1] * 3 + [0]]).bool(), None),
)


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
@pytest.mark.parametrize(("norm_first", "bias", "activation"), itertools.product(*BOTH.values()))
def test_hidden_states_and_gradients_are_those_of_torch(norm_first, bias, activation):
    model = model_of(norm_first=norm_first, bias=bias, activation=activation, final_norm=True, dropout=0.0)
    theirs = theirs_of(model)
    model.load_transformer(theirs)
    # In training mode torch has no fast path of other rounding.
    model.train(), theirs.train()
    for src_padding, tgt_padding in PADDINGS:
        src, tgt = torch.randn(3, 7, 16), torch.randn(3, 5, 16)
        inputs = [tensor.clone().requires_grad_() for tensor in (src, tgt, src, tgt)]
        found = model.transformer(*inputs[:2], src_key_padding_mask=src_padding, tgt_key_padding_mask=tgt_padding)
        wanted = their_hidden(theirs, *inputs[2:], src_padding, tgt_padding)
        if tgt_padding is not None:
            wanted = wanted.masked_fill(tgt_padding[..., None], 0.0)
            assert not found[tgt_padding].any()
        torch.testing.assert_close(found, wanted, atol=2e-5, rtol=1e-5)
        weight = torch.randn_like(found)
        ours = torch.autograd.grad(found, [*inputs[:2], *model.transformer.parameters()], weight)
        others = torch.autograd.grad(wanted, [*inputs[2:], *theirs.parameters()], weight)
        for gradient, other in zip(ours, others, strict=True):
            torch.testing.assert_close(gradient, other, atol=1e-4, rtol=1e-4)


def test_the_weights_have_torchs_names():
    model = model_of(final_norm=True)
    assert list(model.transformer.state_dict()) == list(theirs_of(model).state_dict())


@pytest.mark.parametrize(
    ("ours", "torchs", "words"),
    [
        ({"norm_first": True}, {"norm_first": False}, "norm_first is False: expected True"),
        ({"activation": "gelu"}, {}, "activation is relu: expected gelu"),
        ({}, {"nhead": 4}, "nhead is 4: expected 2"),
        ({}, {"layer_norm_eps": 1e-6}, "layer_norm_eps is 1e-06"),
        ({}, {"num_decoder_layers": 3}, "decoder.layers.2"),
        ({"final_norm": False}, {}, "encoder.norm"),
    ],
)
@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
def test_another_transformer_is_refused(ours, torchs, words):
    model = model_of(**{"final_norm": True, **ours})
    sizes = {name: value for name, value in SMALL.items() if name != "max_positions"}
    with pytest.raises(ValueError, match=words):
        model.load_transformer(nn.Transformer(**{**sizes, **torchs}, batch_first=True))
    with pytest.raises(ValueError, match=r"is Linear: expected torch\.nn\.Transformer"):
        model.load_transformer(nn.Linear(2, 2))


def test_padding_changes_nothing():
    model = model_of()
    src, tgt = torch.randint(0, 8, (3, 7)), torch.randint(0, 8, (3, 5))
    src_padding, tgt_padding = PADDINGS[1]
    found = model(src, tgt, src_key_padding_mask=src_padding, tgt_key_padding_mask=tgt_padding)
    assert found.shape == (3, 5, 10)
    for row in range(3):
        alone = model(src[row : row + 1, ~src_padding[row]], tgt[row : row + 1, ~tgt_padding[row]])
        torch.testing.assert_close(found[row : row + 1, ~tgt_padding[row]], alone, atol=1e-5, rtol=1e-5)
        assert not found[row, tgt_padding[row]].any()


def test_tokens_do_not_see_what_comes_later():
    model = model_of()
    src, tgt = torch.randint(0, 8, (1, 4)), torch.randint(0, 8, (1, 6))
    before = model(src, tgt)
    tgt[0, 3] = (tgt[0, 3] + 1) % 8
    after = model(src, tgt)
    assert torch.equal(before[:, :3], after[:, :3])
    assert not torch.allclose(before[:, 3:], after[:, 3:])


def test_positions_are_the_papers_sinusoids():
    found = sinusoids(50, 6)
    for position, place in ((0, 0), (7, 0), (7, 3), (49, 4), (49, 5)):
        angle = torch.tensor(position / 10000 ** ((place - place % 2) / 6))
        assert found[position, place] == pytest.approx(float(angle.cos() if place % 2 else angle.sin()), abs=1e-5)
    assert sinusoids(3, 5).shape == (3, 5)


def test_embedding_and_head_are_one_and_scaled():
    model = model_of(dropout=0.0)
    assert sum(parameter.shape == (10, 16) for parameter in model.parameters()) == 1
    tokens = torch.tensor([1, 2])
    wanted = 4 * model.embedding.weight[1:3] + sinusoids(2, 16)
    torch.testing.assert_close(model.embedded(tokens, torch.arange(2)), wanted)
    torch.testing.assert_close(model.logits(wanted), wanted @ model.embedding.weight.t())


def test_dropout_acts_in_training_alone():
    model = model_of(dropout=0.3)
    src, tgt = torch.randint(0, 8, (3, 7)), torch.randint(0, 8, (3, 5))
    masks = dict(zip(("src_key_padding_mask", "tgt_key_padding_mask"), PADDINGS[1], strict=True))
    assert torch.equal(model(src, tgt, **masks), model(src, tgt, **masks))
    model.train()
    first, second = model(src, tgt, **masks), model(src, tgt, **masks)
    assert not torch.allclose(first, second)
    torch.manual_seed(0)
    first = model(src, tgt, **masks)
    torch.manual_seed(0)
    assert torch.equal(first, model(src, tgt, **masks))


@pytest.mark.parametrize("lengths", [[3, 1, 4], [2, 2], [0, 3], [1]])
@pytest.mark.parametrize("causal", [True, False])
def test_attention_with_padding_is_attention_without(lengths, causal):
    of_queries, of_keys = Lengths(lengths), Lengths(lengths if causal else [length + 1 for length in lengths])
    tensors = [torch.randn(total, 2, 4, requires_grad=True) for total in (of_queries.total, *[of_keys.total] * 2)]
    weight = torch.randn(of_queries.total, 2, 4)
    found = []
    for way in (attend_packed, attend_padded):
        output = way(*tensors, of_queries, of_keys, causal, 0.0)
        found.append([output, *torch.autograd.grad(output, tensors, weight)])
    torch.testing.assert_close(*found)


def test_padding_comes_behind():
    lengths = Lengths([2, 0, 3])
    x = torch.randn(5, 4)
    padded = lengths.padded(x)
    assert padded.shape == (3, 3, 4)
    assert not padded[0, 2].any()
    assert not padded[1].any()
    assert torch.equal(lengths.packed(padded), x)
    assert padded.bool().any(-1).tolist() == lengths.visible.tolist()
    assert lengths.positions.tolist() == [0, 1, 0, 1, 2]


WAYS = (
    {},
    {"num_beams": 3},
    {"num_beams": 4, "length_penalty": 2.0, "early_stopping": True, "num_return_sequences": 2},
    {"num_beams": 2, "length_penalty": -1.0, "early_stopping": "never"},
    {"no_repeat_ngram_size": 1},
    {"num_beams": 2, "no_repeat_ngram_size": 2, "max_new_tokens": 5},
    {"do_sample": True, "seed": 4, "num_return_sequences": 3},
    {"repetition_penalty": 1.5, "min_new_tokens": 4, "max_length": 8},
)


class Anew:
    """Answers that are computed from their beginning at each step, by `forward`."""

    def __init__(self, model, sources, padding, copies):
        self.model, self.ids = model, torch.empty(len(sources) * copies, 0, dtype=torch.int64)
        self.sources, self.padding = (part.repeat_interleave(copies, 0) for part in (sources, padding))

    def step(self, ids, positions):
        return self.extend(ids[:, None], positions[:, None], None, 1)[:, 0]

    def extend(self, ids, positions, visible, keep):
        self.ids = torch.cat([self.ids, ids], 1)
        return self.model(self.sources, self.ids, src_key_padding_mask=self.padding)[:, -keep:]

    def reorder(self, parents):
        self.ids = self.ids[parents]


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("how", WAYS)
def test_kept_keys_and_values_change_no_ids(how, norm_first, monkeypatch):
    model = model_of(norm_first=norm_first)
    sources = torch.randint(0, 8, (3, 6))
    padding = torch.arange(6) >= torch.tensor([[6], [3], [1]])
    found = model.generate(sources, attention_mask=~padding, **how)

    def anew(tokens, lengths, copies, steps):
        return Anew(model, sources, padding, copies)

    monkeypatch.setattr(model, "begin", anew)
    assert torch.equal(found, model.generate(sources, attention_mask=~padding, **how))
    assert (found[:, 0] == LETTERS.boundary).all()


def test_sources_are_answered_as_if_alone():
    model = model_of()
    sources = ["abc", "h", "gfedcba", "aa"]
    for how in ({}, {"num_beams": 3}, {"num_beams": 3, "num_return_sequences": 2}):
        together = model.generate(sources, **how)
        assert together == [answer for source in sources for answer in model.generate([source], **how)]
    assert model.generate("abc") == model.generate(["abc"])[0]
    assert len(model.generate("abc", num_beams=2, num_return_sequences=2)) == 2


def test_many_sources_are_answered_in_parts(monkeypatch):
    monkeypatch.setattr("aigc_fast.models.text.seq2seq._ANSWERED_AT_ONCE", 2)
    model, sources = model_of(), ["abc", "h", "gfedcba", "aa", "bd"]
    assert model.generate(sources) == [model.generate(source) for source in sources]


def test_answers_never_hold_what_has_no_letter():
    model = model_of(CharTokenizer("ab", unknown=True))
    with torch.no_grad():
        model.embedding.weight[model.tokenizer.unknown] *= 100
    assert "\N{REPLACEMENT CHARACTER}" not in model.generate("ab")


def test_tokens_are_streamed():
    class Kept:
        def __init__(self):
            self.values, self.ended = [], False

        def put(self, value):
            self.values += value.flatten().tolist()

        def end(self):
            self.ended = True

    model, kept = model_of(), Kept()
    ids = model.generate(torch.tensor([[1, 2, LETTERS.boundary]]), streamer=kept)
    assert kept.ended
    assert kept.values == ids[0].tolist()
    assert model.speed.tokens == ids.shape[1] - 1


@pytest.mark.parametrize(
    ("inputs", "how", "words"),
    [
        ("abcdefghabcd", {}, "a source of 13 tokens, with its end, is more than the 12"),
        ("abz", {}, "unknown 'z'"),
        ([], {}, "inputs: expected a text"),
        (["a", 1], {}, "inputs: expected a text"),
        ("ab", {"max_new_tokens": 13}, "max_length=14: expected at most 13"),
        ("ab", {"num_beams": 0}, "num_beams=0"),
        ("ab", {"beams": 2}, "beams: no such option"),
        ("ab", {"eos_token_id": 10}, "eos_token_id=\\[10\\]: expected 0 to 9"),
        ("ab", {"attention_mask": torch.ones(1, 2)}, "attention_mask: expected only with ids"),
        (torch.tensor([[1, 10]]), {}, "expected ids of 0 to 9, got 1 to 10"),
        (torch.tensor([[1, 2]]), {"attention_mask": torch.ones(1, 3)}, "attention_mask: expected \\(1, 2\\)"),
        (torch.rand(1, 2), {}, "inputs: expected a text"),
    ],
)
def test_bad_arguments_of_generate_are_refused(inputs, how, words):
    with pytest.raises(UserError, match=words):
        model_of().generate(inputs, **how)


def test_a_score_is_the_sum_of_the_logarithms():
    model = model_of()
    logits = model(torch.tensor([[0, 1, 2, 8]]), torch.tensor([[8, 3, 4]]))
    wanted = logits.log_softmax(-1)[0].gather(1, torch.tensor([[3], [4], [8]])).sum().detach()
    assert model.score("abc", "de") == pytest.approx(float(wanted), abs=1e-4)
    both, tokens = model.score_all([("abc", "de"), ("h", "")])
    assert tokens == 4
    assert both == pytest.approx(float(wanted) + model.score("h", ""), abs=1e-4)
    with pytest.raises(UserError, match="at most 12 tokens"):
        model.score("a" * 12, "b")


def test_pairs_are_scored_in_parts(monkeypatch):
    model, pairs = model_of(), [("abc", "de"), ("h", ""), ("aaaa", "bbbbbb")]
    whole = model.score_all(pairs)
    monkeypatch.setattr("aigc_fast.models.text.seq2seq._SCORED_AT_ONCE", 8)
    assert model.score_all(pairs) == pytest.approx(whole)


@pytest.mark.parametrize("tokenizer", [LETTERS, ByteTokenizer(), BPETokenizer.train(["to be or not to be"], 260)])
def test_files_keep_the_model(tokenizer, tmp_path):
    model = model_of(tokenizer)
    save(model, tmp_path / "model.safetensors")
    found = load(tmp_path / "model.safetensors")
    assert found.generate("ab", num_beams=2) == model.generate("ab", num_beams=2)
    assert found.tokenizer == tokenizer


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"d_model": 15}, "nhead=2: expected a divisor of d_model=15"),
        ({"nhead": 0}, "nhead=0"),
        ({"dropout": 1.0}, "dropout=1.0"),
        ({"activation": "tanh"}, "activation='tanh': expected one of relu, gelu"),
        ({"max_positions": 1}, "max_positions=1"),
        ({"vocab_size": -3}, "vocab_size=-3"),
        ({"num_classes": 3}, "text has no classes"),
    ],
)
def test_bad_sizes_are_refused(config, words):
    with pytest.raises(ValueError, match=words):
        Seq2SeqTransformer(tokenizer=LETTERS, **{**SMALL, **config})
    with pytest.raises(UserError, match="seq2seq cannot be built"):
        create("seq2seq", tokenizer=LETTERS, **{**SMALL, **config})


def test_a_sequence_beyond_the_positions_is_refused():
    with pytest.raises(ValueError, match="13 tokens in a row: expected at most max_positions=12"):
        model_of()(torch.zeros(1, 13, dtype=torch.int64), torch.zeros(1, 2, dtype=torch.int64))


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("how", WAYS)
def test_without_the_engine_ids_are_the_same(how, norm_first):
    model, sources = model_of(norm_first=norm_first), torch.randint(0, 8, (3, 6))
    mask = torch.arange(6) < torch.tensor([[6], [3], [1]])
    found = {}
    for backend in ("auto", "reference"):
        with aigc_fast.backend(backend):
            state = model.begin(*Lengths.of([model.source_of("ab")], model.device), 1, 5)
            assert isinstance(state, Answers) == (backend == "reference" or native.cpu_reason() is not None)
            found[backend] = model.generate(sources, attention_mask=mask, **how)
    assert torch.equal(found["auto"], found["reference"])


@pytest.mark.parametrize(("norm_first", "bias", "activation"), itertools.product(*BOTH.values()))
def test_the_engines_logits_are_pytorchs(norm_first, bias, activation):
    model = model_of(norm_first=norm_first, bias=bias, activation=activation, final_norm=not norm_first)
    sources = Lengths.of(list(map(model.source_of, ("abc", "h", "gfedcba"))), model.device)
    ids, logits = torch.randint(0, 8, (6, 5)), {}
    for backend in ("auto", "reference"):
        with aigc_fast.backend(backend), torch.no_grad():
            state = model.begin(*sources, 2, 5)
            for place in range(5):
                logits[backend] = state.step(ids[:, place], torch.full((6,), place))
                state.reorder(torch.tensor([1, 0, 2, 2, 5, 4]))
    torch.testing.assert_close(logits["auto"], logits["reference"], atol=1e-4, rtol=1e-4)


@pytest.mark.skipif(native.cpu_reason() is not None, reason="no native library")
def test_the_engine_follows_the_weights_and_leaves_what_it_cannot_read(caplog):
    model, sources = model_of(), ["abc", "h", "gfedcba"]
    before = model.generate(sources)
    with torch.no_grad():
        model.embedding.weight.neg_()
    after = model.generate(sources)
    with aigc_fast.backend("reference"):
        assert model.generate(sources) == after != before
    changes = (
        (lambda: model.transformer.decoder.layers[1].linear1.register_forward_hook(lambda *args: None), "has hooks"),
        (lambda: setattr(model.transformer.decoder, "norm", nn.RMSNorm(16)), "LayerNorm was replaced by RMSNorm"),
        (lambda: setattr(model.transformer.decoder.layers[0], "activation", torch.tanh), "an activation of its own"),
    )
    for change, words in changes:
        model = model_of()
        change()
        with caplog.at_level(logging.WARNING, logger="aigc_fast"):
            model.generate("abc")
        assert words in caplog.text


@pytest.mark.skipif(native.cpu_reason() is not None, reason="no native library")
@pytest.mark.parametrize("weights", ["bf16", "int8"])
def test_weights_may_be_kept_otherwise(weights):
    model = model_of()
    model.weights = weights
    state = model.begin(*Lengths.of([model.source_of("ab")], model.device), 1, 5)
    assert state.engine.weights == weights
    assert isinstance(model.generate("ab", num_beams=2), str)
