"""Attention against PyTorch's, with a mask where the call has a window, against ONNX Runtime's and FlexAttention."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as TF
from attention_cases import ATTENTION_CALLS
from parity import DTYPES, assert_parity

import aigc_fast.functional as AF
from aigc_fast.bench.peers import onnx_runtime

TRAINED = ["prefill of 128", "prefill of 1024", "vision, 256", "padded batch of 1024"]


def ours(case, arguments):
    return lambda *tensors: AF.scaled_dot_product_attention(*tensors, **arguments)


def theirs(case, arguments):
    """PyTorch's call of the same meaning; a window has to be a mask."""
    given = {name: arguments[name] for name in ("attn_mask", "is_causal", "enable_gqa")}
    if case.window is not None:
        left, right = case.window
        distance = torch.arange(case.keys) - torch.arange(case.queries)[:, None]
        given["attn_mask"] = (distance >= -left) & (distance <= right)
    return lambda *tensors: TF.scaled_dot_product_attention(*tensors, **given)


SIDES = {"aigc_fast": ours, "torch": theirs}


def gate(case, arguments, tensors):
    found, peer = ours(case, arguments)(*tensors), theirs(case, arguments)(*tensors)
    if case.queries * case.keys <= 2**21:
        assert_parity(found, peer, theirs(case, arguments)(*(t.double() for t in tensors)))
    else:
        assert_parity(found, peer, peer.double())


@pytest.mark.parametrize("name", SIDES)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("call", ATTENTION_CALLS)
def test_forward(benchmark, call, dtype, name):
    benchmark.group = f"{call} forward, {dtype}"
    case = ATTENTION_CALLS[call]
    tensors, arguments = case.tensors(DTYPES[dtype]), case.arguments()
    gate(case, arguments, tensors)
    function = SIDES[name](case, arguments)
    with torch.no_grad():
        benchmark(function, *tensors)


@pytest.mark.parametrize("name", SIDES)
@pytest.mark.parametrize("dropout_p", [0.0, 0.1])
@pytest.mark.parametrize("call", TRAINED)
def test_training(benchmark, call, dropout_p, name):
    benchmark.group = f"{call} forward and backward, dropout {dropout_p}"
    case = ATTENTION_CALLS[call]
    tensors, arguments = case.tensors(), case.arguments()
    gate(case, arguments, tensors)
    given = {key: arguments[key] for key in ("attn_mask", "is_causal", "enable_gqa")}
    function = (AF if name == "aigc_fast" else TF).scaled_dot_product_attention
    upstream = torch.randn_like(tensors[0])

    def step():
        inputs = [t.detach().requires_grad_() for t in tensors]
        return torch.autograd.grad(function(*inputs, dropout_p=dropout_p, **given), inputs, upstream)

    benchmark(step)


@pytest.mark.parametrize("call", [name for name, case in ATTENTION_CALLS.items() if case.window is None])
def test_forward_onnxruntime(benchmark, call):
    benchmark.group = f"{call} forward, fp32"
    case = ATTENTION_CALLS[call]
    tensors, arguments = case.tensors(), case.arguments()
    inputs = dict(zip("qkv", tensors, strict=True))
    if arguments["attn_mask"] is not None:
        inputs["mask"] = arguments["attn_mask"]
    function = onnx_runtime("Attention", inputs, {}, tensors[0].shape, opset=23, is_causal=int(case.causal))
    if function is None:
        pytest.skip("ONNX Runtime is not installed")
    torch.testing.assert_close(function()[0], theirs(case, arguments)(*tensors), rtol=1e-3, atol=1e-4)
    benchmark(function)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_window_flex_attention(benchmark, dtype):
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    call = "window of 256 in 4096"
    benchmark.group = f"{call} forward, {dtype}"
    case = ATTENTION_CALLS[call]
    left, right = case.window
    mask = create_block_mask(
        lambda b, h, i, j: (j >= i - left) & (j <= i + right), None, None, case.queries, case.keys, device="cpu"
    )
    function, tensors = torch.compile(flex_attention), case.tensors(DTYPES[dtype])
    with torch.no_grad():
        peer = theirs(case, case.arguments())(*tensors)
        assert_parity(function(*tensors, block_mask=mask), peer, peer.double())
        benchmark(lambda: function(*tensors, block_mask=mask))
