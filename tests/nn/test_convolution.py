"""nn.ConvTranspose1d/2d/3d and nn.Conv1d/2d/3d."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from parity import assert_parity
from torch import Tensor

import aigc_fast


class TestModules:
    """nn.ConvTranspose1d/2d/3d and nn.Conv1d/2d/3d."""

    NAMES = ("ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d", "Conv1d", "Conv2d", "Conv3d")

    @staticmethod
    def pair(name: str, **kwargs: Any) -> tuple[torch.nn.Module, torch.nn.Module, Tensor]:
        ours = getattr(aigc_fast.nn, name)(6, 4, 3, stride=2, padding=1, **kwargs)
        theirs = getattr(torch.nn, name)(6, 4, 3, stride=2, padding=1, **kwargs)
        return ours, theirs, torch.randn(2, 6, *[5] * int(name[-2]))

    @pytest.mark.parametrize("name", NAMES)
    @pytest.mark.parametrize("kwargs", [{}, {"bias": False}, {"groups": 2}, {"dilation": 2}], ids=str)
    def test_state_dict_goes_both_ways(self, name: str, kwargs: dict[str, Any]) -> None:
        ours, theirs, input = self.pair(name, **kwargs)
        assert isinstance(ours, getattr(torch.nn, name))
        assert repr(ours) == repr(theirs)
        ours.load_state_dict(theirs.state_dict())
        expected = theirs.double()(input.double())
        assert_parity(ours(input), theirs.float()(input), expected)
        theirs.load_state_dict(ours.state_dict())

    @pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
    def test_padding_modes(self, mode: str) -> None:
        ours, theirs, input = self.pair("Conv2d", padding_mode=mode)
        ours.load_state_dict(theirs.state_dict())
        torch.testing.assert_close(ours(input), theirs(input))

    def test_output_size(self) -> None:
        ours, theirs, input = self.pair("ConvTranspose2d")
        ours.load_state_dict(theirs.state_dict())
        for size in ([9, 10], [10, 9]):
            torch.testing.assert_close(ours(input, output_size=size), theirs(input, output_size=size))
        with pytest.raises(ValueError, match=r"output_size|output size"):
            ours(input, output_size=[30, 30])
