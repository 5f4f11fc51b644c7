"""Character models: what they compute, how probable text is to them, what they draw, and the Elman cell."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

import aigc_fast
from aigc_fast.errors import UserError
from aigc_fast.models import ByteTokenizer, CharRNN, CharTokenizer, ElmanCell, create, load, save
from aigc_fast.models.text.char_rnn import packed_places

CELLS = ("rnn", "lstm", "gru", "elman")
TOKENIZER = CharTokenizer("abcd \n", unknown=True)


def small(cell="lstm", **config):
    torch.manual_seed(0)
    config = {"hidden": 12, "embedding": 5, "dropout": 0.3, "tokenizer": TOKENIZER, **config}
    return CharRNN(cell=cell, **config).eval()


def stepwise(model, tokens):
    """Logits (T, V) of one sequence, by torch.nn's cells a step at a time."""
    found, recurrent = [], model.recurrent
    hidden = memory = torch.zeros(1, model.config["hidden"])
    for token in tokens:
        x = model.embedding(token[None])
        if isinstance(recurrent, ElmanCell):
            output, hidden = recurrent(x, hidden)
            found.append(output)
            continue
        kind = {"RNN_TANH": nn.RNNCell, "LSTM": nn.LSTMCell, "GRU": nn.GRUCell}[recurrent.mode]
        cell = kind(recurrent.input_size, recurrent.hidden_size)
        cell.load_state_dict({name.removesuffix("_l0"): value for name, value in recurrent.state_dict().items()})
        if recurrent.mode == "LSTM":
            hidden, memory = cell(x, (hidden, memory))
        else:
            hidden = cell(x, hidden)
        found.append(model.head(hidden))
    return torch.cat(found)


@pytest.mark.parametrize("cell", CELLS)
def test_logits_are_those_of_a_loop_over_torch_s_cells(cell):
    model, tokens = small(cell), torch.tensor([6, 0, 3, 1, 5])
    with torch.no_grad():
        expected = stepwise(model, tokens)
        found, state = model(tokens[None])
        torch.testing.assert_close(found[0], expected)
        first, between = model(tokens[None, :2])
        then, after = model(tokens[None, 2:], between)
    torch.testing.assert_close(torch.cat([first, then], dim=1), found)
    torch.testing.assert_close(after, state)


@pytest.mark.parametrize("cell", CELLS)
def test_packed_tokens_are_each_sequence_alone(cell):
    model = small(cell)
    sequences = [torch.tensor(part) for part in ([6, 1], [6, 2, 3, 0], [6], [4, 4, 1])]
    packed = pack_sequence(sequences, enforce_sorted=False)
    with torch.no_grad():
        found, state = model(packed)
        logits, lengths = nn.utils.rnn.pad_packed_sequence(found, batch_first=True)
        for row, sequence in enumerate(sequences):
            expected, last = model(sequence[None])
            assert lengths[row] == len(sequence)
            torch.testing.assert_close(logits[row, : len(sequence)], expected[0])
            parts = zip(state, last, strict=True) if cell == "lstm" else [(state, last)]
            for several, one in parts:
                torch.testing.assert_close(several[:, row], one[:, 0])


@pytest.mark.parametrize("cell", CELLS)
def test_gradients_are_those_of_the_loop(cell):
    model, tokens, targets = small(cell), torch.tensor([6, 0, 3, 1]), torch.tensor([0, 3, 1, 6])
    parameters = list(model.parameters())
    nn.functional.cross_entropy(model(tokens[None])[0][0], targets).backward()
    found = [parameter.grad for parameter in parameters]
    if cell == "elman":
        expected = torch.autograd.grad(nn.functional.cross_entropy(stepwise(model, tokens), targets), parameters)
    else:
        plain = getattr(nn, {"rnn": "RNN", "lstm": "LSTM", "gru": "GRU"}[cell])(5, 12, batch_first=True)
        twin = copy.deepcopy(model)
        plain.load_state_dict(twin.recurrent.state_dict())
        twin.recurrent = plain
        loss = nn.functional.cross_entropy(twin(tokens[None])[0][0], targets)
        expected = torch.autograd.grad(loss, list(twin.parameters()))
    torch.testing.assert_close(found, list(expected))


@pytest.mark.parametrize("cell", CELLS)
def test_probabilities_of_documents_do_not_depend_on_those_beside_them(cell, monkeypatch):
    model = small(cell)
    texts = ["ab cd", "", "d" * 40, "ba\n"]
    tokens = []
    for text in texts:
        tokens += [*TOKENIZER.encode(text), TOKENIZER.boundary]
    monkeypatch.setattr("aigc_fast.models.text.char_rnn._SCORED_AT_ONCE", 30)
    with torch.no_grad():
        together = model.log_probabilities(torch.tensor(tokens))
        parts = together.split([len(text) + 1 for text in texts])
        for text, part in zip(texts, parts, strict=True):
            whole = torch.tensor([TOKENIZER.boundary, *TOKENIZER.encode(text), TOKENIZER.boundary])
            expected = model(whole[None, :-1])[0][0].log_softmax(-1).gather(1, whole[1:, None])[:, 0]
            torch.testing.assert_close(part, expected)
            assert model.score(text) == pytest.approx(float(expected.sum()), rel=1e-5)
    assert model.log_probabilities(torch.tensor([], dtype=torch.int64)).shape == (0,)


def test_all_continuations_of_a_text_sum_to_one():
    model = small("gru")
    total = sum(math.exp(model.score(f"ab{one}", end=False) - model.score("ab", end=False)) for one in "abcd \n")
    ends = math.exp(model.score("ab") - model.score("ab", end=False))
    unknown = math.exp(model.score("abé", end=False) - model.score("ab", end=False))
    assert total + ends + unknown == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("cell", CELLS)
def test_what_is_drawn_depends_on_the_seed_alone(cell):
    model = small(cell, num_layers=1 if cell == "elman" else 2)
    drawn = [model.generate("ab", length=70, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert set(drawn[0]) <= set(TOKENIZER.characters)
    pieces = list(model.stream("ab", length=70, generator=torch.Generator().manual_seed(1)))
    assert "".join(pieces) == drawn[0]
    shorter = model.generate("ab", length=10, generator=torch.Generator().manual_seed(1))
    assert shorter == drawn[0][: len(shorter)]


@pytest.mark.parametrize("cell", CELLS)
def test_the_greedy_choice_is_the_most_probable(cell):
    model = small(cell)
    with torch.no_grad():
        (model.recurrent.i2o if cell == "elman" else model.head).bias[TOKENIZER.unknown] = 50
        text = model.generate("ab", length=6, temperature=0)
        tokens = [TOKENIZER.boundary, *TOKENIZER.encode("ab")]
        for character in text:
            logits = model(torch.tensor([tokens]))[0][0, -1]
            logits[TOKENIZER.unknown] = -math.inf
            assert int(logits.argmax()) == TOKENIZER.encode(character)[0]
            tokens += TOKENIZER.encode(character)


@pytest.mark.parametrize("cell", CELLS)
def test_a_model_is_its_file(tmp_path, cell):
    tied = {"tied": True, "embedding": 12} if cell == "gru" else {}
    model = small(cell, **tied)
    save(model, tmp_path / "model.safetensors")
    again = load(tmp_path / "model.safetensors")
    assert again.config == model.config
    assert again.tokenizer == model.tokenizer
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)
    draws = [one.generate("a", length=40, generator=torch.Generator().manual_seed(3)) for one in (model, again)]
    assert draws[0] == draws[1]
    if tied:
        assert again.head.weight is again.embedding.weight
        assert len(list(again.parameters())) == len(list(model.parameters())) == 6


@pytest.mark.parametrize("cell", CELLS)
def test_an_optimized_model_draws_the_same(cell):
    model = small(cell)
    fast = aigc_fast.optimize(copy.deepcopy(model))
    draws = [one.generate("a", length=40, generator=torch.Generator().manual_seed(3)) for one in (model, fast)]
    assert draws[0] == draws[1]


def test_bytes_are_drawn_as_characters():
    torch.manual_seed(0)
    model = create("char-rnn", tokenizer=ByteTokenizer(), hidden=8, embedding=4)
    text = model.generate("é", length=50, generator=torch.Generator().manual_seed(0))
    assert isinstance(text, str)
    assert model.score("é") < 0


@pytest.mark.parametrize("cell", CELLS)
def test_training_drops_elements_and_evaluation_none(cell):
    model, tokens = small(cell), torch.tensor([[6, 0, 1]])
    assert torch.equal(model(tokens)[0], model(tokens)[0])
    model.train()
    assert not torch.equal(model(tokens)[0], model(tokens)[0])


def test_the_elman_cell_is_two_linear_maps():
    torch.manual_seed(0)
    cell, x = ElmanCell(3, 4, 2), torch.randn(2, 3)
    assert list(cell.state_dict()) == ["i2h.weight", "i2h.bias", "i2o.weight", "i2o.bias"]
    hidden = cell.init_hidden(2)
    assert torch.equal(hidden, torch.zeros(2, 4))
    for _ in range(2):
        joined = torch.cat([x, hidden], dim=1)
        expected = (joined @ cell.i2o.weight.t() + cell.i2o.bias).log_softmax(1)
        after = (joined @ cell.i2h.weight.t() + cell.i2h.bias).tanh()
        output, hidden = cell(x, hidden)
        torch.testing.assert_close(output, expected)
        torch.testing.assert_close(hidden, after)
    assert cell.init_hidden().shape == (1, 4)


def test_packed_places_are_those_of_torch():
    text, starts, lengths = torch.arange(20), torch.tensor([3, 0, 12]), torch.tensor([5, 4, 1])
    places, batch_sizes = packed_places(starts, lengths)
    expected = pack_sequence([text[start : start + length] for start, length in zip(starts, lengths, strict=True)])
    assert torch.equal(text[places], expected.data)
    assert torch.equal(batch_sizes, expected.batch_sizes)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"cell": "qrnn"}, "cell='qrnn': expected one of rnn, lstm, gru, elman"),
        ({"hidden": 0}, "hidden=0: expected a positive number"),
        ({"embedding": 2.5}, r"embedding=2\.5"),
        ({"dropout": 1.0}, r"dropout=1\.0: expected at least 0 and below 1"),
        ({"cell": "elman", "num_layers": 2}, "num_layers=2, tied=False: expected 1 and False for cell='elman'"),
        ({"tied": True}, "tied: expected embedding=5 to be hidden=12"),
        ({"num_classes": 3}, "num_classes=3"),
    ],
)
def test_what_can_not_be_built(config, words):
    with pytest.raises(ValueError, match=words):
        small(**config)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"prompt": "abx"}, "unknown 'x'"),
        ({"temperature": -1.0}, r"temperature=-1\.0"),
        ({"temperature": math.nan}, "temperature=nan"),
        ({"top_k": 0}, "top_k=0"),
        ({"top_p": 1.5}, r"top_p=1\.5"),
        ({"length": -1}, "length=-1"),
        ({"stop": ""}, "stop=''"),
    ],
)
def test_what_can_not_be_drawn(settings, words):
    with pytest.raises(UserError, match=words):
        small().stream(**{"length": 5, **settings})
