"""The public functions on torch.fx's proxies, on tensors with a `__torch_function__`, in traces and exports to ONNX."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as TF
from parity import relative_error
from torch import Tensor, nn

import aigc_fast.functional as F

Shapes = tuple[tuple[int, ...], ...]

# By name: the function of tensors, the shapes to trace it with, and others.
CASES: dict[str, tuple[Callable[..., Any], Shapes, Shapes]] = {
    "conv1d": (lambda x, w: F.conv1d(x, w, stride=2), ((1, 4, 16), (4, 4, 3)), ((2, 4, 19), (6, 4, 5))),
    "conv2d": (
        lambda x, w: F.conv2d(x, w, padding="same"),
        ((1, 8, 32, 32), (8, 8, 3, 3)),
        ((3, 8, 9, 7), (8, 8, 5, 3)),
    ),
    "conv3d": (
        lambda x, w: F.conv3d(x, w, padding=1),
        ((1, 2, 4, 4, 4), (2, 2, 3, 3, 3)),
        ((2, 2, 5, 3, 4), (3, 2, 3, 3, 3)),
    ),
    "conv_transpose1d": (
        lambda x, w: F.conv_transpose1d(x, w, None, 2),
        ((1, 4, 8), (4, 2, 4)),
        ((2, 4, 9), (4, 3, 3)),
    ),
    "conv_transpose2d": (
        lambda x, w, b: F.conv_transpose2d(x, w, b, 2, output_padding=1),
        ((1, 4, 8, 8), (4, 2, 4, 4), (2,)),
        ((2, 4, 9, 7), (4, 3, 3, 3), (3,)),
    ),
    "conv_transpose3d": (
        lambda x, w: F.conv_transpose3d(x, w, padding=1, groups=2),
        ((1, 2, 3, 3, 3), (2, 1, 3, 3, 3)),
        ((2, 2, 4, 3, 5), (2, 2, 3, 3, 3)),
    ),
    "attention": (
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
        ((1, 2, 3, 8), (1, 2, 4, 8), (1, 2, 4, 8)),
        ((2, 3, 40, 16), (2, 3, 50, 16), (2, 3, 50, 8)),
    ),
    "attention, window": (
        lambda q, k, v, m: F.scaled_dot_product_attention(
            q, k, v, m, window=(3, 0), alignment="lower_right", scale=0.1
        ),
        ((1, 2, 3, 8), (1, 2, 4, 8), (1, 2, 4, 8), (3, 4)),
        ((2, 3, 40, 16), (2, 3, 50, 16), (2, 3, 50, 8), (40, 50)),
    ),
    "ar_recursion": (lambda x, c, s: F.ar_recursion(x, c * 0.1, s), ((2, 9), (4,), (2, 4)), ((3, 30), (5,), (3, 5))),
    "sample_wise_lpc": (lambda x, a: F.sample_wise_lpc(x, a * 0.1), ((2, 9), (2, 9, 3)), ((3, 30), (3, 30, 4))),
    "lfilter": (lambda x, a, b: F.lfilter(x, a * 0.1 + 1, b), ((2, 9), (3,), (3,)), ((3, 30), (4,), (4,))),
    "kl_standard_normal": (F.kl_standard_normal, ((2, 3), (2, 3)), ((4, 5, 2), (4, 5, 2))),
}
RANDOM: dict[str, Callable[[Tensor], Any]] = {
    "dropout": lambda x: F.dropout(x, 0.5),
    "reparameterize": lambda x: F.reparameterize(x, x),
    "reparameterize_kl": lambda x: F.reparameterize_kl(x, x)[0],
    "randn": lambda x: F.randn(x.shape),
    "randn of sizes": lambda x: F.randn(x.shape[0], x.shape[1]),
    "rand": lambda x: F.rand([x.shape[0], x.shape[1]]),
}
# Those that PyTorch has too.
TWINS = [name for name in CASES if name.startswith(("conv", "attention"))]


def draw(shapes: tuple[tuple[int, ...], ...]) -> list[Tensor]:
    return [torch.randn(shape) for shape in shapes]


def module_of(function: Callable[..., Any], count: int) -> nn.Module:
    names = "abcd"[:count]
    scope = {"function": function, "nn": nn}
    exec(f"class Model(nn.Module):\n def forward(self, {', '.join(names)}): return function({', '.join(names)})", scope)
    return scope["Model"]()


class TestFx:
    @pytest.mark.parametrize("name", CASES)
    def test_the_graph_calls_the_function(self, name: str) -> None:
        function, *shapes = CASES[name]
        graph = torch.fx.symbolic_trace(module_of(function, len(shapes[0])))
        assert any("aigc_fast" in getattr(node.target, "__module__", "") for node in graph.graph.nodes)
        for found in (graph, pickle.loads(pickle.dumps(graph))):
            for inputs in map(draw, shapes):
                assert torch.equal(found(*inputs), function(*inputs))

    @pytest.mark.parametrize("name", RANDOM)
    def test_random_numbers(self, name: str) -> None:
        graph = torch.fx.symbolic_trace(module_of(RANDOM[name], 1))
        for shape in ((2, 3), (40, 5)):
            found = []
            for call in (graph, RANDOM[name]):
                torch.manual_seed(5)
                found.append(call(torch.ones(shape)))
            assert torch.equal(*found)

    def test_varlen_attn(self) -> None:
        def function(q: Tensor, bounds: Tensor) -> Tensor:
            return F.varlen_attn(q, q, q, bounds, window_size=(-1, 0))

        graph = torch.fx.symbolic_trace(module_of(function, 2))
        q, bounds = torch.randn(9, 2, 8), torch.tensor([0, 4, 9])
        assert torch.equal(graph(q, bounds), function(q, bounds))

    def test_under_a_default_device(self) -> None:
        with torch.device("cpu"):
            graph = torch.fx.symbolic_trace(module_of(CASES["conv2d"][0], 2))
        inputs = draw(CASES["conv2d"][2])
        assert torch.equal(graph(*inputs), F.conv2d(*inputs, padding="same"))


class Seen(Tensor):
    """A tensor that tells which functions it was given to."""

    functions: list[Any] = []  # noqa: RUF012

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        cls.functions.append(function)
        return super().__torch_function__(function, types, args, kwargs)


class TestSubclasses:
    @pytest.mark.parametrize(
        ("call", "torchs"),
        [
            (lambda x, w: F.conv2d(x, w, padding=1), torch.conv2d),
            (lambda x, w: F.conv_transpose2d(x, w, padding=1), torch.conv_transpose2d),
            (lambda x, w: F.scaled_dot_product_attention(x, w, w), TF.scaled_dot_product_attention),
            (lambda x, w: F.dropout(x, 0.0), TF.dropout),
        ],
        ids=["conv2d", "conv_transpose2d", "attention", "dropout"],
    )
    def test_see_pytorchs_function(
        self, call: Callable[..., Tensor], torchs: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(Seen, "functions", [])
        x, w = torch.randn(4, 4, 5, 5), torch.randn(4, 4, 5, 5)
        expected = call(x, w)
        found = call(x.as_subclass(Seen), w)
        assert torchs in Seen.functions
        assert type(found) is Seen
        assert relative_error(found.as_subclass(Tensor), expected) < 1e-6

    @pytest.mark.parametrize("name", CASES)
    def test_give_the_numbers_of_tensors(self, name: str) -> None:
        function, shapes, _ = CASES[name]
        inputs = draw(shapes)
        found = function(inputs[0].as_subclass(Seen), *inputs[1:])
        assert relative_error(found.as_subclass(Tensor), function(*inputs)) < 1e-5

    @pytest.mark.parametrize("name", CASES)
    def test_a_mode_sees_our_ops(self, name: str) -> None:
        seen = []

        class Mode(torch.overrides.TorchFunctionMode):
            def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                seen.append(getattr(function, "namespace", None))
                return function(*args, **(kwargs or {}))

        function, shapes, _ = CASES[name]
        with Mode():
            function(*draw(shapes))
        assert "aigc_fast" in seen


class TestTrace:
    @pytest.mark.parametrize("name", TWINS)
    def test_other_sizes(self, name: str) -> None:
        function, *shapes = CASES[name]
        inputs, others = map(draw, shapes)
        traced = torch.jit.trace(function, inputs)
        assert "aigc_fast::" not in str(traced.inlined_graph)
        assert relative_error(traced(*others), function(*others)) < 1e-5

    @pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
    @pytest.mark.parametrize("name", [name for name in CASES if name not in TWINS])
    def test_other_sizes_of_what_pytorch_has_not(self, name: str) -> None:
        function, *shapes = CASES[name]
        inputs, others = map(draw, shapes)
        if name == "lfilter":
            others = [others[0], *inputs[1:]]  # as many taps: they are a loop of Python's
        traced = torch.jit.trace(function, inputs)
        assert relative_error(traced(*others), function(*others)) < 1e-5

    @pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
    @pytest.mark.parametrize("name", RANDOM)
    def test_random_numbers(self, name: str) -> None:
        traced = torch.jit.trace(RANDOM[name], torch.ones(2, 3), check_trace=False)
        x = torch.ones(40, 5)
        first, second = traced(x), traced(x)
        assert first.shape == x.shape
        assert not torch.equal(first, second)


@pytest.mark.filterwarnings("ignore")  # the exporters' own
class TestOnnx:
    @pytest.mark.parametrize("dynamo", [False, True])
    def test_functions(self, dynamo: bool, tmp_path: Path) -> None:
        onnxruntime = pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
        names = ["conv2d", "conv_transpose1d", "attention", "attention, window", "ar_recursion", "kl_standard_normal"]
        functions, shapes = zip(*(CASES[name][:2] for name in names), strict=True)
        inputs = [tuple(draw(each)) for each in shapes]

        class Model(nn.Module):
            def forward(self, arguments: list[tuple[Tensor, ...]]) -> list[Tensor]:
                return [function(*each) for function, each in zip(functions, arguments, strict=True)]

        path = tmp_path / "functions.onnx"
        torch.onnx.export(Model(), (inputs,), path, dynamo=dynamo, verbose=False)
        session = onnxruntime.InferenceSession(path)
        given = [tensor.numpy() for each in inputs for tensor in each]
        named = {input.name: array for input, array in zip(session.get_inputs(), given, strict=True)}
        for found, expected in zip(session.run(None, named), Model()(inputs), strict=True):
            assert relative_error(torch.from_numpy(found), expected) < 1e-5

    @pytest.mark.parametrize("dynamo", [False, True])
    def test_random_numbers(self, dynamo: bool, tmp_path: Path) -> None:
        onnxruntime = pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")

        class Model(nn.Module):
            def forward(self, x: Tensor) -> list[Tensor]:
                return [function(x) for function in RANDOM.values()]

        path, x = tmp_path / "random.onnx", torch.ones(20, 30)
        training = {} if dynamo else {"training": torch.onnx.TrainingMode.PRESERVE}
        torch.onnx.export(Model(), (x,), path, dynamo=dynamo, verbose=False, **training)
        session = onnxruntime.InferenceSession(path)
        for found in session.run(None, {session.get_inputs()[0].name: x.numpy()}):
            assert found.shape == (20, 30)
