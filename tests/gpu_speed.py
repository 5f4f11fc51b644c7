"""The rows of the GPU: each op against PyTorch and those peers that are installed, in turns, as shares of a copy.

    python tests/gpu_speed.py

Medians of several rounds with CUDA events, and how far a peer's numbers are from ours, where they should be the same.
"""

from __future__ import annotations

import importlib.util
import statistics
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

import aigc_fast
import aigc_fast.functional as AF
from aigc_fast.models import GPT2, IdTokenizer
from aigc_fast.models.text.layers import Past
from aigc_fast.nn import LayerNormLSTM
from aigc_fast.ops.decode.cuda import CudaEngine
from aigc_fast.runtime.weights import WEIGHTS

ROUNDS, CALLS = 9, 10


class Row(NamedTuple):
    """What is timed.

    Attributes:
        name: what it is.
        moved: bytes that it reads and writes at least.
        ours: our call.
        peers: others' by their names; None for one that is not installed.
        backend: whose kernel ours is.
        tokens: that a call makes, of a decoder.
        is_same: whether peers should give the same numbers.
    """

    name: str
    moved: int
    ours: Callable[[], Any]
    peers: dict[str, Callable[[], Any] | None]
    backend: str = "cuda"
    tokens: int = 0
    is_same: bool = True

    def run(self) -> Any:
        """Our result."""
        with aigc_fast.backend(self.backend):
            return self.ours()


class Sizes(NamedTuple):
    """Where rows are made, and by what their sizes are divided.

    Attributes:
        device: of the tensors.
        cut: 1 for what is timed.
    """

    device: str = "cuda"
    cut: int = 1

    def of(self, size: int) -> int:
        """A size, or as much of it as there is to be."""
        return max(1, size // self.cut)

    def randn(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(shape, device=self.device, dtype=dtype)


def first_of(result: Any) -> Tensor:
    return result if isinstance(result, Tensor) else first_of(result[0])


def apart(found: Any, other: Any) -> float:
    """The norm of the difference of two results' first tensors, as a share of the first one's."""
    ours, theirs = first_of(found).float(), first_of(other).float()
    return float((ours - theirs).norm() / ours.norm())


def milliseconds(function: Callable[[], Any]) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(CALLS):
        function()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / CALLS


def measure(row: Row) -> str:
    """One line: our median, our share of what a copy of so many bytes takes, and each peer's ratio to us."""
    source = torch.empty(row.moved // 2, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    ways = {"copy": lambda: target.copy_(source), "ours": row.run}
    ways |= {peer: call for peer, call in row.peers.items() if call is not None}
    found = {way: call() for way, call in ways.items()}
    told_apart = {peer: f", {apart(found['ours'], found[peer]):.0e} apart" for peer in row.peers if peer in found}
    del found
    times = {way: [] for way in ways}
    for _ in range(ROUNDS):
        for way, call in ways.items():
            times[way].append(milliseconds(call))
    median = {way: statistics.median(found) for way, found in times.items()}
    told = [f"{row.tokens / median['ours'] * 1000:.0f} tokens/s"] if row.tokens else []
    told += [
        f"{peer} {median[peer] / median['ours']:.2f}x{told_apart[peer] * row.is_same}"
        if peer in median
        else f"{peer} not installed"
        for peer in row.peers
    ]
    return f"{row.name:44s} {median['ours']:9.4f} ms  {median['copy'] / median['ours']:5.0%} of copy  {'  '.join(told)}"


def random_rows(at: Sizes) -> Iterator[Row]:
    for dtype in (torch.float32, torch.bfloat16):
        x = at.randn(at.of(64), 64, 56, 56, dtype=dtype)
        for backend in ("cuda", "triton"):
            peers = {"torch": lambda x=x: torch.dropout(x, 0.3, True)}
            ours = lambda x=x: AF.dropout(x, 0.3)  # noqa: E731
            yield Row(f"dropout {dtype} {backend}", 2 * x.nbytes, ours, peers, backend, is_same=False)
        mu, logvar = x, x * 0.1
        peers = {"eager": lambda m=mu, l=logvar: m + torch.randn_like(m) * torch.exp(0.5 * l)}
        for backend in ("cuda", "triton"):
            ours = lambda m=mu, l=logvar: AF.reparameterize(m, l)  # noqa: E731
            yield Row(f"reparameterize {dtype} {backend}", 3 * x.nbytes, ours, peers, backend, is_same=False)


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


def recursion_rows(at: Sizes) -> Iterator[Row]:
    for count, length in ((64, 48_000), (4096, 4096)):
        for order in (1, 16):
            x = at.randn(at.of(count), at.of(length))
            c = torch.full((len(x), order), 0.5 / order, device=at.device)
            peers = {"torchlpc": torchlpc(x, c), "torchaudio": torchaudio(x, c)}
            ours = lambda x=x, c=c: AF.ar_recursion(x, c[0])  # noqa: E731
            yield Row(f"recursion {count}x{length} order {order}", 2 * x.nbytes, ours, peers)


def convolution_rows(at: Sizes) -> Iterator[Row]:
    """A generator's layers: many channels by Triton, an image's by CUDA C++, against cuDNN in the same layout."""
    layers = (("triton", 64, 128, 64, 16), ("triton", 16, 512, 256, 8), ("cuda", 64, 64, 3, 32))
    for backend, batch, channels, outputs, size in layers:
        for dtype in (torch.float32, torch.bfloat16):
            shapes = (at.of(batch), channels, size, size), (channels, outputs, 4, 4)
            x, w = (at.randn(*shape, dtype=dtype).to(memory_format=torch.channels_last) for shape in shapes)
            call = {"stride": 2, "padding": 1}
            ours = lambda x=x, w=w, call=call: AF.conv_transpose2d(x, w, **call)  # noqa: E731
            peers = {"torch": lambda x=x, w=w, call=call: torch.nn.functional.conv_transpose2d(x, w, **call)}
            moved = x.nbytes + w.nbytes + 4 * len(x) * outputs * size * size * dtype.itemsize
            yield Row(f"conv_transpose {channels}->{outputs} {size} {dtype} {backend}", moved, ours, peers, backend)


def attention_rows(at: Sizes) -> Iterator[Row]:
    """One query of each of 32 heads, of which four share keys; and a window, against all keys before a query."""
    heads, groups, size, dtype = 32, 8, 128, torch.bfloat16
    for batch, keys in ((1, 8192), (8, 8192)):
        query = at.randn(at.of(batch), heads, 1, size, dtype=dtype)
        key, value = (at.randn(len(query), groups, at.of(keys), size, dtype=dtype) for _ in range(2))
        call = (query, key, value), {"enable_gqa": True}
        peers = {"torch": lambda c=call: torch.nn.functional.scaled_dot_product_attention(*c[0], **c[1])}
        for backend in ("cuda", "triton"):
            ours = lambda c=call: AF.scaled_dot_product_attention(*c[0], **c[1])  # noqa: E731
            yield Row(f"attention of a query, {batch}x{keys} keys {backend}", 2 * key.nbytes, ours, peers, backend)
    length, window = at.of(32_768), at.of(1024)
    query, key, value = (at.randn(1, groups, length, size, dtype=dtype) for _ in range(3))
    call = (query, key, value), {"is_causal": True}
    peers = {"torch, no window": lambda c=call: torch.nn.functional.scaled_dot_product_attention(*c[0], **c[1])}
    ours = lambda c=call: AF.scaled_dot_product_attention(*c[0], **c[1], window=(window - 1, 0))  # noqa: E731
    yield Row(f"attention, window {window} of {length} triton", 4 * key.nbytes, ours, peers, "triton", is_same=False)


def recurrent_rows(at: Sizes) -> Iterator[Row]:
    """Few sequences against cuDNN, as shares of copying the weights once for each step; of what it lacks, eager."""
    steps, size = at.of(256), at.of(1024)
    for mode, gates in (("lstm", 4), ("gru", 3)):
        for batch in (1, 8):
            for dtype in (torch.float32, torch.bfloat16):
                shapes = (gates * size, size), (gates * size, size), (gates * size,), (gates * size,)
                params = [at.randn(*shape, dtype=dtype) / size**0.5 for shape in shapes]
                x, state = (at.randn(count, batch, size, dtype=dtype) for count in (steps, 1))
                call = x, (state, state) if mode == "lstm" else state, params, True, 1, 0.0, False, False, False
                ours = lambda mode=mode, call=call: getattr(AF, mode)(*call)  # noqa: E731
                peers = {"cuDNN": lambda mode=mode, call=call: getattr(torch._VF, mode)(*call)}
                yield Row(f"{mode} {steps}x{batch}x{size} {dtype}", 2 * steps * params[1].nbytes, ours, peers)
    module, x = LayerNormLSTM(size, size, device=at.device), at.randn(steps, 1, size)

    def eager() -> Any:
        with torch.no_grad(), aigc_fast.backend("reference"):
            return module(x)

    def ours() -> Any:
        with torch.no_grad():
            return module(x)

    moved = 2 * steps * module.weight_hh_l0.nbytes
    yield Row(f"layer-normalized lstm {steps}x1x{size}", moved, ours, {"eager": eager})


@torch.no_grad()
def decoding_rows(at: Sizes) -> Iterator[Row]:
    """A step in GPT-2 small's sizes; the share is of what copying as many bytes as there are weights takes."""
    sizes = {"hidden": 768 // at.cut, "num_layers": at.of(12), "num_heads": 12, "context": 1024}
    model = GPT2(tokenizer=IdTokenizer(50_257 // at.cut, 0, 0), **sizes).eval().to(at.device)
    for rows in (1, 8):
        ids = torch.ones(rows, dtype=torch.int64, device=at.device)
        position, places = torch.full((1,), 16, device=at.device), torch.arange(16, device=at.device)

        def begun(state: Any, ids: Tensor = ids, position: Tensor = position, places: Tensor = places) -> Any:
            state.extend(ids[:, None].expand(-1, 16), places.expand(len(ids), 16), None, 1)
            return torch.no_grad()(lambda: state.step(ids, position))

        peers = {"torch": begun(Past(model, rows))}
        for weights in WEIGHTS:
            engine = CudaEngine(model.spec(), weights)
            yield Row(f"decode {rows}, {weights} weights", engine.nbytes, begun(engine.begin(rows)), peers, tokens=rows)


ROOMS = random_rows, recursion_rows, convolution_rows, attention_rows, recurrent_rows, decoding_rows


def main() -> None:
    if not torch.cuda.is_available():
        print("no CUDA device: nothing is measured")
        sys.exit(0)
    for room in ROOMS:
        for row in room(Sizes()):
            print(measure(row), flush=True)


if __name__ == "__main__":
    main()
