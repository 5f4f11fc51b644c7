"""Small models for the tests, and what they give beside stock ones."""

from __future__ import annotations

from typing import Any

import torch
from parity import relative_error
from torch import nn


def generator() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(10, 128, bias=False),
        nn.BatchNorm1d(128),
        nn.LeakyReLU(0.2),
        nn.Unflatten(1, (8, 4, 4)),
        nn.ConvTranspose2d(8, 6, 5, 2, 2, 1, bias=False),
        nn.BatchNorm2d(6),
        nn.LeakyReLU(0.2),
        nn.ConvTranspose2d(6, 1, 5, 2, 2, 1),
        nn.Tanh(),
    )


def with_statistics(model: nn.Module) -> nn.Module:
    """Norms with statistics and scales that folding can't get right by luck."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            if module.running_mean is not None:
                module.running_mean.normal_()
                module.running_var.uniform_(0.2, 3)
            if module.affine:
                nn.init.normal_(module.weight)
                nn.init.normal_(module.bias)
    return model


def assert_same(model: nn.Module, stock: nn.Module, *inputs: Any) -> None:
    with torch.no_grad():
        assert relative_error(model(*inputs), stock(*inputs)) < 2e-6
