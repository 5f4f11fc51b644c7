"""Transposed convolution against PyTorch in both layouts and ONNX Runtime, and convolution against PyTorch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as TF
from convolution_cases import LAYERS
from parity import DTYPES, assert_parity

import aigc_fast.functional as AF
from aigc_fast.bench.peers import onnx_runtime

PEERS = ["aigc_fast", "aigc_fast channels_last", "torch", "torch channels_last"]


def tensors(case, dtype, channels_last):
    input, weight, bias = case.tensors(DTYPES[dtype])
    formats = {2: torch.channels_last, 3: torch.channels_last_3d}
    if channels_last:
        if len(case.size) not in formats:
            pytest.skip("channels_last needs two or three spatial dimensions")
        input, weight = (t.to(memory_format=formats[len(case.size)]) for t in (input, weight))
    return input, weight, bias


def gate(case, input, weight, bias):
    ours, theirs = (getattr(module, case.function) for module in (AF, TF))
    reference = theirs(input.double(), weight.double(), bias.double(), **case.arguments)
    assert_parity(ours(input, weight, bias, **case.arguments), theirs(input, weight, bias, **case.arguments), reference)


@pytest.mark.parametrize("name", PEERS)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("layer", LAYERS)
def test_forward(benchmark, layer, dtype, name):
    benchmark.group = f"{layer} forward, {dtype}"
    case = LAYERS[layer]
    input, weight, bias = tensors(case, dtype, "channels_last" in name)
    gate(case, input, weight, bias)
    function = getattr(AF if name.startswith("aigc") else TF, case.function)
    with torch.no_grad():
        benchmark(lambda: function(input, weight, bias, **case.arguments))


@pytest.mark.parametrize("name", PEERS)
@pytest.mark.parametrize("layer", LAYERS)
def test_training(benchmark, layer, name):
    benchmark.group = f"{layer} forward and backward, fp32"
    case = LAYERS[layer]
    input, weight, bias = tensors(case, "fp32", "channels_last" in name)
    gate(case, input, weight, bias)
    function = getattr(AF if name.startswith("aigc") else TF, case.function)
    upstream = torch.randn_like(function(input, weight, bias, **case.arguments))

    def step():
        leaves = [t.detach().requires_grad_() for t in (input, weight, bias)]
        return torch.autograd.grad(function(*leaves, **case.arguments), leaves, upstream)

    benchmark(step)


@pytest.mark.parametrize("layer", [name for name, case in LAYERS.items() if case.transposed])
def test_forward_onnxruntime(benchmark, layer):
    benchmark.group = f"{layer} forward, fp32"
    case = LAYERS[layer]
    input, weight, bias = tensors(case, "fp32", False)
    spatial = len(case.size)
    expected = getattr(TF, case.function)(input, weight, bias, **case.arguments)
    function = onnx_runtime(
        "ConvTranspose",
        {"x": input},
        {"w": weight, "b": bias},
        expected.shape,
        opset=17,
        strides=[case.stride] * spatial,
        pads=[case.padding] * 2 * spatial,
        output_padding=[case.output_padding] * spatial,
    )
    if function is None:
        pytest.skip("ONNX Runtime is not installed")
    torch.testing.assert_close(function()[0], expected, rtol=1e-3, atol=1e-4)
    benchmark(function)
