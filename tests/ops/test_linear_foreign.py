"""Linear layers where PyTorch's products are MKL's on another maker's processor: which are ours; their gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as TF
from cases import assert_parity
from convolution_checks import doubled, every_gradient, needs_native
from watching import launches

import aigc_fast.functional as AF
from aigc_fast.ops.linear import choice


@pytest.fixture
def foreign(monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes every product for one that is ours."""
    monkeypatch.setattr(choice, "has_foreign_products", lambda: True)
    for limit in ("FOREIGN_PRODUCTS", "FOREIGN_WEIGHT", "FOREIGN_PRODUCTS_OF_GRADIENTS"):
        monkeypatch.setattr(choice, limit, 1)


@needs_native
def test_linear_layers_train_on_them(foreign: None) -> None:
    tensors = [torch.randn(shape) for shape in ((300, 70), (270, 70), (270,))]
    upstream = torch.randn(300, 270)
    with launches("linear") as called:
        ours = every_gradient(AF.linear, tensors, upstream)
    assert called.count("linear") >= 3
    theirs = every_gradient(TF.linear, tensors, upstream)
    exact = every_gradient(TF.linear, doubled(tensors), upstream)
    for index, results in enumerate(zip(ours, theirs, exact, strict=True)):
        assert_parity(*results, f"result {index}")


@pytest.mark.parametrize(
    ("intels", "rows", "columns", "depth", "forward", "training"),
    [
        (False, 394, 3072, 768, True, True),
        (False, 64, 512, 512, True, False),
        (False, 3, 4000, 784, True, False),
        (False, 64, 128, 64, False, False),
        (False, 100_000, 8, 8, False, False),
        (True, 394, 3072, 768, False, False),
    ],
)
def test_what_is_taken(
    intels: bool, rows: int, columns: int, depth: int, forward: bool, training: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choice, "has_foreign_products", lambda: not intels)
    input, weight = torch.empty(rows, depth), torch.empty(columns, depth)
    assert (choice.slower(input, weight, None, "none", 0.0) is None) == forward
    assert (choice.leave(input, weight) is None) == training
