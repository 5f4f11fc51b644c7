"""Where PyTorch's recurrent networks are taken by rule, on processors that these tests need not run on."""

from __future__ import annotations

import pytest
import torch
from convolution_checks import needs_native
from watching import launches

import aigc_fast.nn as fast_nn
from aigc_fast.ops.recurrent import choice


@needs_native
@pytest.mark.parametrize(
    ("name", "batch", "graded", "packed", "many", "left"),
    [
        ("LSTM", 8, True, False, 1 << 20, True),
        ("LSTM", 7, True, False, 1 << 20, False),
        ("LSTM", 8, False, False, 1 << 20, False),
        ("LSTM", 8, True, True, 1 << 20, False),
        ("LSTM", 8, True, False, 7 * 8 * 64, False),
        ("GRU", 8, True, False, 1 << 20, False),
    ],
)
@pytest.mark.parametrize("intels", [True, False])
def test_lstms_of_several_sequences_train_by_onednn_on_other_makers_processors(
    name: str,
    batch: int,
    graded: bool,
    packed: bool,
    many: int,
    left: bool,
    intels: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this PyTorch has no oneDNN")
    monkeypatch.setattr(choice, "is_intels", lambda: intels)
    monkeypatch.setattr(choice.native, "has_wide_vectors", lambda: True)
    monkeypatch.setattr(choice, "MANY_GRADIENT_UNITS", many)
    network, input = getattr(fast_nn, name)(64, 64), torch.randn(7, batch, 64)
    if packed:
        input = torch.nn.utils.rnn.pack_padded_sequence(input, torch.full((batch,), 7))
    with torch.set_grad_enabled(graded), launches("recurrent") as called:
        network(input)
    assert (not called) == (left and not intels)


@needs_native
@pytest.mark.parametrize(
    ("name", "steps", "graded", "left"),
    [
        ("RNN", 2, True, True),
        ("RNN", 3, True, False),
        ("RNN", 1, False, False),
        ("GRU", 1, True, True),
        ("GRU", 2, True, False),
        ("GRU", 1, False, False),
        ("LSTM", 1, True, False),
    ],
)
def test_few_steps_are_pytorchs_with_their_gradients(name: str, steps: int, graded: bool, left: bool) -> None:
    network, input = getattr(fast_nn, name)(64, 64), torch.randn(steps, 3, 64)
    with torch.set_grad_enabled(graded), launches("recurrent") as called:
        network(input)
    assert (not called) == left
