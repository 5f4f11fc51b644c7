"""The rows of the GPU: each op against PyTorch and those peers that are installed, in turns, as shares of a copy.

    python tests/gpu_speed.py

Medians of several rounds with CUDA events, after a check that both give the same numbers where they should.
"""

from __future__ import annotations

import importlib.util
import statistics
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import aigc_fast
import aigc_fast.functional as AF
from aigc_fast.models import GPT2, IdTokenizer
from aigc_fast.models.text.layers import Past
from aigc_fast.ops.decode.cuda import CudaEngine
from aigc_fast.runtime.weights import WEIGHTS

ROUNDS, CALLS = 9, 10


def milliseconds(function: Callable[[], Any]) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(CALLS):
        function()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / CALLS


def row(name: str, moved: int, ours: Callable[[], Any], peers: dict[str, Callable[[], Any] | None]) -> None:
    """One line: our median, our share of what a copy of so many bytes takes, and each peer's ratio to us."""
    source = torch.empty(moved // 2, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    ways = {"copy": lambda: target.copy_(source), "ours": ours}
    ways |= {peer: call for peer, call in peers.items() if call is not None}
    for call in ways.values():
        call()
    times = {way: [] for way in ways}
    for _ in range(ROUNDS):
        for way, call in ways.items():
            times[way].append(milliseconds(call))
    median = {way: statistics.median(found) for way, found in times.items()}
    told = [
        f"{peer} {median[peer] / median['ours']:.2f}x" if peer in median else f"{peer} not installed" for peer in peers
    ]
    print(f"{name:40s} {median['ours']:9.4f} ms  {median['copy'] / median['ours']:5.0%} of copy  {'  '.join(told)}")


def forced(backend: str, function: Callable[[], Any]) -> Callable[[], Any]:
    def run() -> Any:
        with aigc_fast.backend(backend):
            return function()

    return run


def random_rows() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(64, 64, 56, 56, device="cuda", dtype=dtype)
        for backend in ("cuda", "triton"):
            ours = forced(backend, lambda x=x: AF.dropout(x, 0.3))
            row(f"dropout {dtype} {backend}", 2 * x.nbytes, ours, {"torch": lambda x=x: torch.dropout(x, 0.3, True)})
        mu, logvar = x, x * 0.1
        peers = {"eager": lambda m=mu, l=logvar: m + torch.randn_like(m) * torch.exp(0.5 * l)}
        for backend in ("cuda", "triton"):
            ours = forced(backend, lambda m=mu, l=logvar: AF.reparameterize(m, l))
            row(f"reparameterize {dtype} {backend}", 3 * x.nbytes, ours, peers)


def torchlpc(x: Tensor, c: Tensor) -> Callable[[], Any] | None:
    if importlib.util.find_spec("torchlpc") is None:
        return None
    from torchlpc import sample_wise_lpc

    every = -c[:, None].expand(*x.shape, c.shape[-1]).contiguous()
    return lambda: sample_wise_lpc(x, every)


def torchaudio(x: Tensor, c: Tensor) -> Callable[[], Any] | None:
    if importlib.util.find_spec("torchaudio") is None:
        return None
    from torchaudio.functional import lfilter

    a = torch.cat([torch.ones_like(c[:, :1]), -c], 1)[0]
    b = torch.zeros_like(a)
    b[0] = 1
    return lambda: lfilter(x, a, b, clamp=False)


def recursion_rows() -> None:
    for count, length in ((64, 48_000), (4096, 4096)):
        for order in (1, 16):
            x, c = torch.randn(count, length, device="cuda"), torch.full((count, order), 0.5 / order, device="cuda")
            peers = {"torchlpc": torchlpc(x, c), "torchaudio": torchaudio(x, c)}
            ours = forced("cuda", lambda x=x, c=c: AF.ar_recursion(x, c[0]))
            row(f"recursion {count}x{length} order {order}", 2 * x.nbytes, ours, peers)


def convolution_rows() -> None:
    """A generator's layers: many channels by Triton, an image's by CUDA C++, against cuDNN in the same layout."""
    layers = (("triton", 64, 128, 64, 16), ("triton", 16, 512, 256, 8), ("cuda", 64, 64, 3, 32))
    for backend, batch, channels, outputs, size in layers:
        for dtype in (torch.float32, torch.bfloat16):
            shapes = (batch, channels, size, size), (channels, outputs, 4, 4)
            x, w = (
                torch.randn(shape, device="cuda", dtype=dtype).to(memory_format=torch.channels_last) for shape in shapes
            )
            call = {"stride": 2, "padding": 1}
            ours = forced(backend, lambda x=x, w=w, call=call: AF.conv_transpose2d(x, w, **call))
            peers = {"torch": lambda x=x, w=w, call=call: torch.nn.functional.conv_transpose2d(x, w, **call)}
            moved = x.nbytes + w.nbytes + 4 * batch * outputs * size * size * dtype.itemsize
            row(f"conv_transpose {channels}->{outputs} {size} {dtype} {backend}", moved, ours, peers)


def recurrent_rows() -> None:
    """Few sequences against cuDNN, as shares of copying the weights once for each step."""
    steps, size = 256, 1024
    for mode, gates in (("lstm", 4), ("gru", 3)):
        for batch in (1, 8):
            for dtype in (torch.float32, torch.bfloat16):
                params = [
                    torch.randn(shape, device="cuda", dtype=dtype) / size**0.5
                    for shape in ((gates * size, size), (gates * size, size), (gates * size,), (gates * size,))
                ]
                x, state = (torch.randn(count, batch, size, device="cuda", dtype=dtype) for count in (steps, 1))
                call = x, (state, state) if mode == "lstm" else state, params, True, 1, 0.0, False, False, False
                ours = forced("cuda", lambda mode=mode, call=call: getattr(AF, mode)(*call))
                peers = {"cuDNN": lambda mode=mode, call=call: getattr(torch._VF, mode)(*call)}
                row(f"{mode} {steps}x{batch}x{size} {dtype}", 2 * steps * params[1].nbytes, ours, peers)


def decoding_rows() -> None:
    """A step of one sequence in GPT-2 small's sizes; the share is of what copying as many bytes as there are takes."""
    tokenizer = IdTokenizer(50_257, 0, 0)
    model = GPT2(tokenizer=tokenizer, hidden=768, num_layers=12, num_heads=12, context=1024).eval().cuda()
    ids, position = torch.ones(1, dtype=torch.int64, device="cuda"), torch.full((1,), 16, device="cuda")
    prompt, places = ids.expand(1, 16), torch.arange(16, device="cuda")[None]

    def begun(state: Any) -> Callable[[], Any]:
        state.extend(prompt, places, None, 1)
        return lambda: state.step(ids, position)

    with torch.no_grad():
        peers = {"torch": begun(Past(model, 1))}
        for weights in WEIGHTS:
            engine = CudaEngine(model.spec(), weights)
            row(f"decode a token, {weights} weights", engine.nbytes, begun(engine.begin(1)), peers)


def main() -> None:
    if not torch.cuda.is_available():
        print("no CUDA device: nothing is measured")
        sys.exit(0)
    random_rows()
    recursion_rows()
    convolution_rows()
    recurrent_rows()
    decoding_rows()


if __name__ == "__main__":
    main()
