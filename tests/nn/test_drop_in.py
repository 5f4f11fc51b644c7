"""Optimized models in the hands of torch.fx, TorchScript, ONNX, quantization and the like, beside PyTorch's own."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from parity import relative_error
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.nn.utils.fusion import fuse_conv_bn_eval

import aigc_fast
import aigc_fast.nn as fast_nn
from aigc_fast.nn import ARRecursion, FusedSequential, Reparameterize


class SelfAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x, x, x, need_weights=False)[0]


def chain() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.ConvTranspose2d(6, 3, 4, 2, 1), nn.Tanh()
    )


class Output(nn.Module):
    """The first of what a recurrent layer gives."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0]


# What makes a model, the shape to trace it with, and another one.
MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], tuple[int, ...]]] = {
    "Conv1d": (lambda: nn.Conv1d(4, 3, 3, 2), (1, 4, 16), (2, 4, 19)),
    "Conv2d": (lambda: nn.Conv2d(8, 8, 3, padding=1), (1, 8, 32, 32), (3, 8, 9, 11)),
    "Conv2d, same": (lambda: nn.Conv2d(8, 8, 3, padding="same"), (1, 8, 32, 32), (3, 8, 9, 11)),
    "Conv2d, circular": (lambda: nn.Conv2d(4, 3, 3, padding=1, padding_mode="circular"), (1, 4, 8, 8), (3, 4, 9, 11)),
    "Conv3d": (lambda: nn.Conv3d(4, 3, 3), (1, 4, 5, 5, 5), (2, 4, 6, 7, 5)),
    "ConvTranspose1d": (lambda: nn.ConvTranspose1d(4, 3, 4, 2, 1), (1, 4, 5), (2, 4, 9)),
    "ConvTranspose2d": (lambda: nn.ConvTranspose2d(4, 3, 4, 2, 1), (1, 4, 5, 5), (2, 4, 9, 7)),
    "ConvTranspose3d": (lambda: nn.ConvTranspose3d(4, 3, 4, 2, 1), (1, 4, 3, 5, 3), (2, 4, 4, 3, 3)),
    "Dropout": (lambda: nn.Dropout(0.5), (2, 3), (4, 5)),
    "GRU": (lambda: Output(nn.GRU(8, 70, 2, bidirectional=True)), (5, 2, 8), (7, 3, 8)),
    "GRUCell": (lambda: nn.GRUCell(8, 70), (2, 8), (3, 8)),
    "LSTM": (lambda: Output(nn.LSTM(8, 70, batch_first=True)), (2, 5, 8), (3, 7, 8)),
    "LSTMCell": (lambda: Output(nn.LSTMCell(8, 70)), (2, 8), (3, 8)),
    "MultiheadAttention": (SelfAttention, (2, 5, 8), (3, 200, 8)),
    "RNN": (lambda: Output(nn.RNN(8, 70, nonlinearity="relu")), (5, 2, 8), (7, 3, 8)),
    "RNNCell": (lambda: nn.RNNCell(8, 70), (2, 8), (3, 8)),
    "TransformerEncoderLayer": (lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), (2, 5, 8), (3, 300, 8)),
    "Sequential": (chain, (1, 4, 8, 8), (3, 4, 9, 11)),
}


def pair(name: str) -> tuple[nn.Module, nn.Module, list[Tensor]]:
    """A model after optimize, the stock one, and inputs of both shapes."""
    make, *shapes = MODELS[name]
    stock = nn.ModuleDict({"inner": make()}).eval().requires_grad_(False)["inner"]
    return aigc_fast.optimize(copy.deepcopy(stock)), stock, [torch.randn(shape) for shape in shapes]


def assert_alike(found: Callable[..., Tensor], expected: Callable[..., Tensor], inputs: list[Tensor]) -> None:
    for input in inputs:
        assert relative_error(found(input), expected(input)) < 5e-6


class TestFx:
    @pytest.mark.parametrize("name", MODELS)
    def test_the_graph_is_that_of_the_stock_model(self, name: str) -> None:
        ours, stock, inputs = pair(name)
        graphs = [torch.fx.symbolic_trace(nn.Sequential(model)) for model in (ours, stock)]
        nodes = [[(node.op, node.target) for node in graph.graph.nodes] for graph in graphs]
        assert nodes[0] == nodes[1]
        for found in (graphs[0], copy.deepcopy(graphs[0]), pickle.loads(pickle.dumps(graphs[0]))):
            assert_alike(found, stock, inputs)
            assert any(type(module).__module__.startswith("aigc_fast.nn") for module in found.modules())

    def test_a_tracer_that_has_no_leaves(self) -> None:
        class Tracer(torch.fx.Tracer):
            def is_leaf_module(self, module: nn.Module, name: str) -> bool:
                return False

        ours, stock, inputs = pair("Conv2d")
        root = nn.Sequential(ours, nn.ReLU())
        graph = torch.fx.GraphModule(root, Tracer().trace(root))
        assert [node.target for node in graph.graph.nodes if node.op == "call_module"] == ["0"]
        assert_alike(graph, lambda x: stock(x).relu(), inputs)

    def test_dropout_that_was_traced_in_eval_mode_drops_in_training(self) -> None:
        graph = torch.fx.symbolic_trace(aigc_fast.optimize(nn.Sequential(nn.Dropout(0.5), nn.ReLU())).eval())
        ones = torch.ones(1000)
        assert torch.equal(graph(ones), ones)
        assert 300 < int((graph.train()(ones) == 0).sum()) < 700

    @pytest.mark.parametrize("name", ["Conv2d", "Conv2d, same", "Conv2d, circular", "Dropout", "Sequential"])
    def test_a_layer_alone(self, name: str) -> None:
        ours, stock, inputs = pair(name)
        assert_alike(torch.fx.symbolic_trace(ours), stock, inputs)

    def test_a_transposed_convolution_alone(self) -> None:
        ours, stock, inputs = pair("ConvTranspose2d")
        assert_alike(torch.fx.symbolic_trace(ours, {"output_size": None}), stock, inputs)

    @pytest.mark.parametrize("stable", [False, True])
    @pytest.mark.parametrize("inside", [False, True])
    def test_a_recursion(self, stable: bool, inside: bool) -> None:
        layer = ARRecursion(3, stable=stable)
        layer.set_coeffs(torch.tensor([0.3, -0.2, 0.1]))
        graph = torch.fx.symbolic_trace(nn.Sequential(layer) if inside else layer)
        x = torch.randn(2, 9)
        assert torch.equal(graph(x), layer(x))
        graph(x).sum().backward()
        assert all(parameter.grad is not None for parameter in layer.parameters())

    def test_a_sample(self) -> None:
        class Model(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.sample = Reparameterize(return_kl=True)

            def forward(self, mu: Tensor, logvar: Tensor) -> Tensor:
                z, kl = self.sample(mu, logvar)
                return z + kl[:, None]

        model, inputs = Model(), (torch.randn(2, 3), torch.randn(2, 3))
        graph = torch.fx.symbolic_trace(model)
        assert [node.target for node in graph.graph.nodes if node.op == "call_module"] == ["sample"]
        found = []
        for call in (model, graph, torch.fx.symbolic_trace(model.sample)):
            torch.manual_seed(3)
            found.append(call(*inputs))
        assert torch.equal(found[0], found[1])
        assert torch.equal(found[2][0] + found[2][1][:, None], found[0])


class TestTorchScript:
    @pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # PyTorch's attention
    @pytest.mark.parametrize("name", MODELS)
    def test_a_trace_is_that_of_the_stock_model(self, name: str) -> None:
        ours, stock, inputs = pair(name)
        with torch.no_grad():
            found, expected = (torch.jit.trace(model, inputs[0]) for model in (ours, stock))
            assert "aigc_fast::" not in str(found.inlined_graph)
            assert_alike(found, expected, inputs)

    @pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # PyTorch's batch norm
    @pytest.mark.parametrize("name", ["Conv2d", "ConvTranspose2d", "Sequential"])
    def test_a_trace_in_training_mode(self, name: str) -> None:
        ours, stock, inputs = pair(name)
        found, expected = (torch.jit.trace(model.train(), inputs[0]) for model in (ours, stock))
        assert_alike(found, expected, inputs)

    @pytest.mark.parametrize("name", MODELS)
    def test_a_script_is_that_of_the_stock_model(self, name: str) -> None:
        ours, stock, inputs = pair(name)
        kinds = [type(module) for module in ours.modules()]
        file = io.BytesIO()
        torch.jit.save(torch.jit.script(ours), file)
        file.seek(0)
        assert_alike(torch.jit.load(file), torch.jit.script(stock), inputs)
        assert [type(module) for module in ours.modules()] == kinds

    @pytest.mark.parametrize("layer", [ARRecursion(2), Reparameterize()], ids=lambda layer: type(layer).__name__)
    def test_layers_that_pytorch_has_none_of(self, layer: nn.Module) -> None:
        with pytest.raises(RuntimeError, match=r"^torch.jit.script cannot compile aigc_fast.nn.*: use torch.jit.trace"):
            torch.jit.script(nn.Sequential(layer))


class Drawn(nn.Module):
    """Convolutions, dropout and attention, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.chain = nn.Sequential(
            nn.Conv2d(4, 8, 3, padding="same"), nn.BatchNorm2d(8), nn.ReLU(), nn.ConvTranspose2d(8, 8, 2, 2)
        )
        self.drop = nn.Dropout(0.5)
        self.attention = SelfAttention()

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(self.drop(self.chain(x)).flatten(2).transpose(1, 2))


def run_onnx(path: Path, *inputs: Tensor) -> list[Tensor]:
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(path)
    given = {named.name: input.numpy() for named, input in zip(session.get_inputs(), inputs, strict=True)}
    return [torch.from_numpy(output) for output in session.run(None, given)]


@pytest.fixture
def onnx_file(tmp_path: Path) -> Path:
    for module in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(module)
    return tmp_path / "model.onnx"


@pytest.mark.filterwarnings("ignore")  # the exporters' own
class TestOnnx:
    @pytest.mark.parametrize("way", ["old", "dynamo", "exported program"])
    def test_a_model_for_batches_of_any_size(self, way: str, onnx_file: Path) -> None:
        stock = Drawn().eval()
        ours, input, other = aigc_fast.optimize(copy.deepcopy(stock)), torch.randn(2, 4, 6, 6), torch.randn(3, 4, 6, 6)
        dynamic: dict[str, Any] = {"dynamic_shapes": {"x": {0: torch.export.Dim.DYNAMIC}}}
        if way == "old":
            named = {"input_names": ["x"], "dynamic_axes": {"x": {0: "batch"}}}
            torch.onnx.export(ours, (input,), onnx_file, dynamo=False, **named)
        elif way == "dynamo":
            torch.onnx.export(ours, (input,), onnx_file, dynamo=True, verbose=False, **dynamic)
        else:
            program = torch.export.export(ours, (input,), **dynamic)
            assert any("aigc_fast" in str(node.target) for node in program.graph.nodes)
            torch.onnx.export(program, (input,), onnx_file, dynamo=True, verbose=False)
        for x in (input, other):
            (found,) = run_onnx(onnx_file, x)
            assert relative_error(found, stock(x)) < 1e-5


@pytest.mark.filterwarnings("ignore")  # of deprecation, and of observers
class TestQuantization:
    @staticmethod
    def quantized(model: nn.Module, input: Tensor) -> nn.Module:
        quantization = torch.ao.quantization
        model = quantization.fuse_modules(model, [["1.0", "1.1", "1.2"]])
        model.qconfig = quantization.get_default_qconfig(torch.backends.quantized.engine)
        model[1][4].qconfig = quantization.QConfig(model.qconfig.activation, quantization.default_weight_observer)
        prepared = quantization.prepare(model)
        prepared(input)
        return quantization.convert(prepared)

    def test_fuse_prepare_and_convert(self) -> None:
        if torch.backends.quantized.engine == "none":
            pytest.skip("torch was built without quantized kernels")
        stub, back = torch.ao.quantization.QuantStub(), torch.ao.quantization.DeQuantStub()
        layers = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.1), nn.ConvTranspose2d(8, 4, 3)
        stock = nn.Sequential(stub, nn.Sequential(*layers), back).eval()
        ours, x = aigc_fast.optimize(copy.deepcopy(stock)), torch.randn(2, 3, 8, 8)
        found, expected = self.quantized(ours, x), self.quantized(stock, x)
        assert [type(module) for module in found.modules()] == [type(module) for module in expected.modules()]
        assert torch.equal(found(x), expected(x))
        assert type(ours[1]) is FusedSequential

    def test_training_aware_of_it(self) -> None:
        stock = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        ours = aigc_fast.optimize(copy.deepcopy(stock))
        fused = [torch.ao.quantization.fuse_modules_qat(model, [["0", "1", "2"]]) for model in (ours, stock)]
        x = torch.randn(2, 3, 8, 8)
        assert type(fused[0][0]) is type(fused[1][0])
        assert relative_error(fused[0](x), fused[1](x)) < 5e-6

    @pytest.mark.parametrize("name", [name for name in MODELS if name != "MultiheadAttention"])
    def test_a_layer_with_a_qconfig_is_pytorchs(self, name: str) -> None:
        ours, stock, _ = pair(name)
        assert not hasattr(ours, "qconfig")
        ours.qconfig = "any"
        assert type(ours) is type(stock)
        assert ours.qconfig == "any"

    def test_a_layer_with_a_qconfig_is_left(self) -> None:
        model = nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU())
        model.qconfig = model[0].qconfig = None
        (entry,) = aigc_fast.report(aigc_fast.optimize(model)).layers
        assert "qconfig" in entry.note
        assert type(model) is nn.Sequential


class TestOtherTools:
    @pytest.mark.parametrize(
        "tool", ["prune", "fuse_conv_bn_eval", "fx fuse", "SyncBatchNorm", "DataParallel", "functional_call"]
    )
    def test_after_optimize_as_before(self, tool: str) -> None:
        from torch.fx.experimental.optimization import fuse

        def pruned(model: nn.Module) -> nn.Module:
            prune.l1_unstructured(model[0], "weight", 0.5)
            return model

        tools: dict[str, Callable[[nn.Module], Callable[..., Any]]] = {
            "prune": pruned,
            "fuse_conv_bn_eval": lambda model: fuse_conv_bn_eval(model[0], model[1]),
            "fx fuse": fuse,
            "SyncBatchNorm": nn.SyncBatchNorm.convert_sync_batchnorm,
            "DataParallel": nn.DataParallel,
            "functional_call": lambda model: (
                lambda x: torch.func.functional_call(model, {name: p * 2 for name, p in model.named_parameters()}, x)
            ),
        }
        ours, stock, inputs = pair("Sequential")
        assert_alike(tools[tool](ours), tools[tool](stock), inputs)

    def test_skip_init(self) -> None:
        layer = nn.utils.skip_init(aigc_fast.nn.Conv2d, 3, 4, 3)
        assert layer.weight.shape == (4, 3, 3, 3)
        assert layer.weight.device.type == "cpu"


def test_each_class_has_a_forward_of_its_own_code() -> None:
    """Dynamo compiles one code for eight classes at most."""
    classes = [cls for cls in vars(fast_nn).values() if isinstance(cls, type) and "forward" in vars(cls)]
    assert len(classes) > 8
    assert len({id(cls.forward.__code__) for cls in classes}) == len(classes)
