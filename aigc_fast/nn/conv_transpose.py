"""Convolution layers on aigc_fast's kernels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from aigc_fast import functional
from aigc_fast.nn.drop_in import drop_in
from aigc_fast.nn.folding import weight_of
from aigc_fast.nn.quantization import register_fusers


@drop_in
class Conv1d(torch.nn.Conv1d):
    """`torch.nn.Conv1d`: the same constructor, parameters, `state_dict` keys and results.

    See `aigc_fast.functional.conv1d`; padding modes other than "zeros" pad the input first, as in PyTorch.
    """

    float32_precision: str | None = None

    def forward(self, input: Tensor) -> Tensor:
        """The convolution of `input`."""
        return self._conv_forward(input, weight_of(self, input), self.bias)

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self.padding_mode != "zeros":
            input = torch.nn.functional.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            return functional.conv1d(
                input, weight, bias, self.stride, 0, self.dilation, self.groups, precision=self.float32_precision
            )
        return functional.conv1d(
            input,
            weight,
            bias,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            precision=self.float32_precision,
        )


@drop_in
class Conv2d(torch.nn.Conv2d):
    """`torch.nn.Conv2d`: the same constructor, parameters, `state_dict` keys and results.

    See `aigc_fast.functional.conv2d`; padding modes other than "zeros" pad the input first, as in PyTorch.
    """

    float32_precision: str | None = None

    def forward(self, input: Tensor) -> Tensor:
        """The convolution of `input`."""
        return self._conv_forward(input, weight_of(self, input), self.bias)

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self.padding_mode != "zeros":
            input = torch.nn.functional.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            return functional.conv2d(
                input, weight, bias, self.stride, 0, self.dilation, self.groups, precision=self.float32_precision
            )
        return functional.conv2d(
            input,
            weight,
            bias,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            precision=self.float32_precision,
        )


@drop_in
class Conv3d(torch.nn.Conv3d):
    """`torch.nn.Conv3d`: the same constructor, parameters, `state_dict` keys and results.

    See `aigc_fast.functional.conv3d`; padding modes other than "zeros" pad the input first, as in PyTorch.
    """

    float32_precision: str | None = None

    def forward(self, input: Tensor) -> Tensor:
        """The convolution of `input`."""
        return self._conv_forward(input, weight_of(self, input), self.bias)

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self.padding_mode != "zeros":
            input = torch.nn.functional.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            return functional.conv3d(
                input, weight, bias, self.stride, 0, self.dilation, self.groups, precision=self.float32_precision
            )
        return functional.conv3d(
            input,
            weight,
            bias,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            precision=self.float32_precision,
        )


def _output_padding(
    module: torch.nn.modules.conv._ConvTransposeNd, input: Tensor, size: Sequence[int] | None
) -> list[int]:
    spatial = len(module.kernel_size)
    return module._output_padding(
        input, size, module.stride, module.padding, module.kernel_size, spatial, module.dilation
    )


@drop_in
class ConvTranspose1d(torch.nn.ConvTranspose1d):
    """`torch.nn.ConvTranspose1d`: the same constructor, parameters, `state_dict` keys and results.

    See `aigc_fast.functional.conv_transpose1d`.
    """

    float32_precision: str | None = None

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """The transposed convolution of `input`; `output_size` picks one of the sizes that the stride allows."""
        extra = _output_padding(self, input, output_size)
        return functional.conv_transpose1d(
            input,
            weight_of(self, input),
            self.bias,
            self.stride,
            self.padding,
            extra,
            self.groups,
            self.dilation,
            precision=self.float32_precision,
        )


@drop_in
class ConvTranspose2d(torch.nn.ConvTranspose2d):
    """`torch.nn.ConvTranspose2d`: the same constructor, parameters, `state_dict` keys and results.

    See `aigc_fast.functional.conv_transpose2d`.
    """

    float32_precision: str | None = None

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """The transposed convolution of `input`; `output_size` picks one of the sizes that the stride allows."""
        extra = _output_padding(self, input, output_size)
        return functional.conv_transpose2d(
            input,
            weight_of(self, input),
            self.bias,
            self.stride,
            self.padding,
            extra,
            self.groups,
            self.dilation,
            precision=self.float32_precision,
        )


@drop_in
class ConvTranspose3d(torch.nn.ConvTranspose3d):
    """`torch.nn.ConvTranspose3d`: the same constructor, parameters, `state_dict` keys and results.

    See `aigc_fast.functional.conv_transpose3d`.
    """

    float32_precision: str | None = None

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """The transposed convolution of `input`; `output_size` picks one of the sizes that the stride allows."""
        extra = _output_padding(self, input, output_size)
        return functional.conv_transpose3d(
            input,
            weight_of(self, input),
            self.bias,
            self.stride,
            self.padding,
            extra,
            self.groups,
            self.dilation,
            precision=self.float32_precision,
        )


register_fusers({cls: cls.__bases__[0] for cls in (Conv1d, Conv2d, Conv3d)})
register_fusers({cls: cls.__bases__[0] for cls in (ConvTranspose1d, ConvTranspose2d, ConvTranspose3d)})
