"""optimize, restore and report: what is swapped and what is left, and that nothing else about a model changes."""

from __future__ import annotations

import copy
import io
import random
import threading
from typing import Any

import numpy as np
import pytest
import torch
from networks import assert_same, generator, with_statistics
from parity import relative_error
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import aigc_fast
from aigc_fast.nn import FusedSequential
from aigc_fast.optimize.measure import Call
from aigc_fast.optimize.reporting import Entry, Report


class TestSwap:
    LAYERS = (
        (nn.ConvTranspose1d, (2, 3, 2), (1, 2, 5)),
        (nn.ConvTranspose2d, (2, 3, 2), (1, 2, 5, 5)),
        (nn.ConvTranspose3d, (2, 3, 2), (1, 2, 3, 3, 3)),
        (nn.Conv1d, (2, 3, 2), (1, 2, 5)),
        (nn.Conv2d, (2, 3, 2), (1, 2, 5, 5)),
        (nn.Conv3d, (2, 3, 2), (1, 2, 3, 3, 3)),
        (nn.Dropout, (0.5,), (4, 4)),
    )

    @pytest.mark.parametrize(("cls", "args", "shape"), LAYERS, ids=lambda value: getattr(value, "__name__", None))
    def test_every_type_there_and_back(self, cls: type[nn.Module], args: tuple, shape: tuple[int, ...]) -> None:
        layer = cls(*args).eval()
        stock = copy.deepcopy(layer)
        assert aigc_fast.optimize(layer) is layer
        assert type(layer) is getattr(aigc_fast.nn, cls.__name__)
        assert isinstance(layer, cls)
        assert_same(layer, stock, torch.randn(shape))
        assert aigc_fast.restore(layer) is layer
        assert type(layer) is cls
        assert vars(layer).keys() == vars(stock).keys()

    def test_parameters_buffers_hooks_keys_and_mode_stay(self) -> None:
        model = generator()
        seen = []
        model[4].register_forward_hook(lambda *_: seen.append("called"))
        keys, ids = list(model.state_dict()), [id(parameter) for parameter in model.parameters()]
        model.train()
        aigc_fast.optimize(model)
        assert list(model.state_dict()) == keys
        assert [id(parameter) for parameter in model.parameters()] == ids
        assert model.training
        assert model[4].training
        model(torch.randn(2, 10))
        assert seen == ["called"]

    def test_state_dicts_go_both_ways(self) -> None:
        model, stock = aigc_fast.optimize(generator()), generator()
        model.load_state_dict(stock.state_dict())
        assert_same(model.eval(), stock.eval(), torch.randn(2, 10))
        stock.load_state_dict(model.state_dict())

    def test_a_copy_leaves_the_original(self) -> None:
        model = generator()
        fast = aigc_fast.optimize(model, inplace=False)
        assert type(model[4]) is nn.ConvTranspose2d
        assert type(model) is nn.Sequential
        assert type(fast[4]) is aigc_fast.nn.ConvTranspose2d
        assert fast[4].weight is not model[4].weight

    def test_twice_is_as_once(self) -> None:
        model = aigc_fast.optimize(aigc_fast.optimize(generator()))
        assert len(aigc_fast.report(model).swapped) == 3
        assert type(aigc_fast.restore(model)[4]) is nn.ConvTranspose2d

    def test_deepcopy_and_pickle(self) -> None:
        model = with_statistics(aigc_fast.optimize(generator())).eval()
        input = torch.randn(2, 10)
        with torch.no_grad():
            model(input)
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        for twin in (copy.deepcopy(model), torch.load(file, weights_only=False)):
            assert type(twin[4]) is aigc_fast.nn.ConvTranspose2d
            assert type(twin) is FusedSequential
            assert_same(twin, model, input)
            assert [entry.name for entry in aigc_fast.report(twin).swapped] == ["0", "4", "7"]

    def test_a_shared_module_once(self) -> None:
        layer = nn.Conv2d(3, 3, 3)
        model = nn.ModuleDict({"a": layer, "b": nn.Sequential(layer, nn.Flatten())})
        report = aigc_fast.report(aigc_fast.optimize(model))
        assert [entry.name for entry in report.layers] == ["a"]
        assert model["a"] is model["b"][0]

    def test_gradients_are_stock_gradients(self) -> None:
        model = generator()
        stock = copy.deepcopy(model)
        aigc_fast.optimize(model)
        input = torch.randn(4, 10)
        for net in (model, stock):
            net(input).square().sum().backward()
        for ours, theirs in zip(model.parameters(), stock.parameters(), strict=True):
            assert relative_error(ours.grad, theirs.grad) < 1e-5

    def test_compiles_as_one_graph(self) -> None:
        model = generator().eval()
        stock = copy.deepcopy(model)
        aigc_fast.optimize(model)
        assert_same(torch.compile(model, fullgraph=True, backend="aot_eager"), stock, torch.randn(3, 10))


class MyConv(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


class TestLeft:
    def test_subclasses(self) -> None:
        model = nn.ModuleList([MyConv(1, 1, 1)])
        (entry,) = aigc_fast.report(aigc_fast.optimize(model)).layers
        assert type(model[0]) is MyConv
        assert not entry.swapped
        assert "MyConv is a subclass" in entry.note

    def test_lazy_modules_until_they_are_made(self) -> None:
        model = nn.Sequential(nn.LazyConvTranspose2d(3, 2))
        assert "lazy" in aigc_fast.report(aigc_fast.optimize(model)).layers[0].note
        model(torch.randn(1, 2, 3, 3))
        assert aigc_fast.report(aigc_fast.optimize(model)).layers[0].swapped

    def test_a_forward_replaced_on_the_instance(self) -> None:
        layer = nn.Conv2d(1, 1, 1)
        layer.forward = lambda input: input
        assert "replaced" in aigc_fast.report(aigc_fast.optimize(layer)).layers[0].note
        assert type(layer) is nn.Conv2d

    @pytest.mark.filterwarnings("ignore:.*quantize:UserWarning")
    def test_quantized_modules(self) -> None:
        quantized = pytest.importorskip("torch.ao.nn.quantized")
        model = nn.ModuleList([quantized.Conv2d(1, 1, 1)])
        assert aigc_fast.report(aigc_fast.optimize(model)).layers[0].note == "quantized"

    def test_what_attention_only_reads_is_none_of_them(self) -> None:
        assert aigc_fast.report(aigc_fast.optimize(nn.MultiheadAttention(8, 2))).others == {}

    def test_others_are_counted(self) -> None:
        assert aigc_fast.report(aigc_fast.optimize(generator())).others == {
            "BatchNorm1d": 1,
            "BatchNorm2d": 1,
            "LeakyReLU": 2,
            "Unflatten": 1,
            "Tanh": 1,
        }


class TestSpectralNorm:
    def test_parametrized_modules_are_swapped(self) -> None:
        layer = nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 4, 3)).eval()
        stock = copy.deepcopy(layer)
        keys = list(layer.state_dict())
        aigc_fast.optimize(layer)
        assert isinstance(layer, aigc_fast.nn.Conv2d)
        assert list(layer.state_dict()) == keys
        assert_same(layer, stock, torch.randn(1, 3, 5, 5))
        assert_same(copy.deepcopy(layer), stock, torch.randn(1, 3, 5, 5))
        aigc_fast.restore(layer)
        assert not isinstance(layer, aigc_fast.nn.Conv2d)
        nn.utils.parametrize.remove_parametrizations(layer, "weight")
        assert type(layer) is nn.Conv2d

    def test_parametrizations_can_go_after_the_swap(self) -> None:
        layer = aigc_fast.optimize(nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 4, 3)))
        nn.utils.parametrize.remove_parametrizations(layer, "weight")
        assert type(layer) is aigc_fast.nn.Conv2d

    @pytest.mark.filterwarnings("ignore:.*spectral_norm")
    def test_the_old_hook_works_on(self) -> None:
        layer = nn.utils.spectral_norm(nn.ConvTranspose2d(3, 4, 3)).eval()
        stock = copy.deepcopy(layer)
        aigc_fast.optimize(layer)
        assert_same(layer, stock, torch.randn(1, 3, 5, 5))


class Busy(nn.Module):
    """Changes about itself, its input and the world whatever a forward can change.

    Args:
        copyable: whether `copy.deepcopy` takes it.
    """

    def __init__(self, copyable: bool) -> None:
        super().__init__()
        self.conv, self.norm, self.drop = nn.Conv2d(2, 2, 3, padding=1), nn.BatchNorm2d(2), nn.Dropout(0.5)
        self.words = nn.Embedding(4, 3, max_norm=0.1)
        for name in ("rebound", "written", "deleted"):
            self.register_buffer(name, torch.zeros(1))
        self.plain, self.seen, self.count = torch.zeros(()), [], 0
        if not copyable:
            self.lock = threading.Lock()

    def forward(self, x: Tensor, state: Any) -> Any:
        self.rebound = self.rebound + 1
        self.written += 1
        del self.deleted
        self.register_buffer("added", torch.ones(1))
        self.plain = self.plain + 1
        self.seen.append(x)
        self.count += 1
        self.words(torch.tensor([0, 1]))
        with torch.no_grad():
            self.conv.weight.data.clamp_(-0.01, 0.01)
        x.data.add_(random.random() + np.random.random())
        state[1]["inner"].add_(1)
        self.eval()
        return self.drop(self.norm(self.conv(x))), state


class TestExampleInputs:
    @pytest.mark.parametrize("training", [True, False])
    def test_both_ways_are_timed_and_the_slower_is_left(self, training: bool) -> None:
        model = generator().train(training)
        stock = copy.deepcopy(model)
        report = aigc_fast.report(aigc_fast.optimize(model, example_inputs=torch.randn(4, 10)))
        assert report.timed == ("forward + backward" if training else "forward")
        for entry in report.layers:
            assert entry.torch_ms > 0
            assert entry.fast_ms > 0
            assert entry.swapped == (entry.fast_ms < entry.torch_ms)
            assert isinstance(model.get_submodule(entry.name), getattr(aigc_fast.nn, entry.layer)) == entry.swapped
        (fused,) = report.fused
        assert fused.swapped == (fused.fast_ms < fused.torch_ms) == (type(model) is FusedSequential)
        assert_same(model.eval(), stock.eval(), torch.randn(3, 10))

    def test_the_model_is_not_disturbed(self) -> None:
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Conv2d(4, 1, 3)).train()
        model[1].eval()
        input = torch.randn(2, 3, 8, 8, requires_grad=True)
        before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
        aigc_fast.optimize(model, example_inputs=(input,))
        for key, value in model.state_dict().items():
            assert torch.equal(value, before[key]), key
        assert torch.equal(torch.get_rng_state(), state)
        assert input.grad is None
        assert all(parameter.grad is None for parameter in model.parameters())
        assert [module.training for module in model] == [True, False, True, True]
        assert not any(module._forward_pre_hooks for module in model.modules())

    @pytest.mark.parametrize("training", [True, False])
    @pytest.mark.parametrize("copyable", [True, False])
    def test_nothing_that_a_forward_does_remains(self, copyable: bool, training: bool) -> None:
        model, calls = Busy(copyable).train(training), []
        model.conv.register_forward_hook(lambda *_: calls.append("conv"))
        model.register_forward_pre_hook(lambda *_: calls.append("model"))
        model.conv.weight.grad = torch.ones_like(model.conv.weight)
        inputs = (torch.randn(2, 2, 5, 5), (torch.zeros(1), {"inner": torch.zeros(1)}))
        kept, attributes = copy.deepcopy((model.state_dict(), inputs)), dict(vars(model))
        states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
        report = aigc_fast.report(aigc_fast.optimize(model, example_inputs=inputs))
        assert report.layers[0].torch_ms is not None
        assert calls == ["model", "conv"]
        assert model.state_dict().keys() == kept[0].keys()
        for found, expected in zip(tree_leaves((model.state_dict(), inputs)), tree_leaves(kept), strict=True):
            assert torch.equal(found, expected)
        assert vars(model).keys() == attributes.keys()
        assert all(vars(model)[name] is attributes[name] for name in ("plain", "seen", "count", "_buffers"))
        assert (model.plain.item(), model.seen, model.count, model.training) == (0, [], 0, training)
        assert torch.equal(model.conv.weight.grad, torch.ones_like(model.conv.weight))
        assert states == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())

    def test_hooks_of_modules_inside_are_not_called_for_the_times(self) -> None:
        model, calls = nn.Sequential(nn.Conv2d(2, 2, 3), nn.ReLU(), nn.Linear(3, 3)), []
        model[2].register_forward_hook(lambda *_: calls.append(1))
        aigc_fast.optimize(model, example_inputs=torch.randn(1, 2, 5, 5))
        assert calls == [1]
        model(torch.randn(1, 2, 5, 5))
        assert calls == [1, 1]

    def test_a_model_whose_weights_are_in_a_graph(self) -> None:
        model = nn.utils.weight_norm(nn.Conv2d(2, 3, 3)).train()
        (entry,) = aigc_fast.report(aigc_fast.optimize(model, example_inputs=torch.randn(1, 2, 5, 5))).layers
        assert entry.torch_ms is not None
        model(torch.randn(1, 2, 5, 5)).sum().backward()
        assert model.weight_v.grad is not None

    def test_a_lazy_model_stays_lazy(self) -> None:
        model = nn.Sequential(nn.LazyConv2d(3, 3))
        aigc_fast.optimize(model, example_inputs=torch.randn(1, 2, 5, 5))
        assert type(model[0]) is nn.LazyConv2d
        assert model(torch.randn(1, 4, 5, 5)).shape == (1, 3, 3, 3)

    @pytest.mark.parametrize("training", [True, False])
    def test_dropout_that_writes_to_its_input(self, training: bool) -> None:
        model = nn.Sequential(nn.Conv2d(2, 2, 1), nn.Dropout(0.5, inplace=True)).train(training)
        report = aigc_fast.report(aigc_fast.optimize(model, example_inputs=torch.randn(1, 2, 5, 5)))
        assert all(entry.torch_ms is not None for entry in report.layers)

    def test_self_attention_is_timed_as_self_attention(self) -> None:
        x = torch.randn(1, 3, 8)
        call = Call.of((x, x, [x]), {"key": {"value": x}})
        assert call.args[0] is call.args[1] is call.args[2][0] is call.kwargs["key"]["value"]
        assert call.signature() == ((x.shape, x.stride(), x.dtype, False),) * 4
        assert call.device() == x.device

    def test_arguments_come_in_three_forms(self) -> None:
        class Two(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv = nn.ConvTranspose1d(2, 3, 4)

            def forward(self, input: Tensor, size: list[int]) -> Tensor:
                return self.conv(input, output_size=size)

        input = torch.randn(1, 2, 5)
        for given in ((input, [8]), {"input": input, "size": [8]}):
            report = aigc_fast.report(aigc_fast.optimize(Two(), example_inputs=given))
            assert report.layers[0].torch_ms is not None

    def test_layers_that_are_never_reached_are_swapped_untimed(self) -> None:
        class Half(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.used, self.unused = nn.Conv1d(1, 1, 1), nn.Conv1d(1, 1, 1)

            def forward(self, input: Tensor) -> Tensor:
                return self.used(input)

        entries = {
            e.name: e for e in aigc_fast.report(aigc_fast.optimize(Half(), example_inputs=torch.ones(1, 1, 4))).layers
        }
        assert entries["unused"].swapped
        assert "never reach" in entries["unused"].note

    def test_inputs_that_do_not_fit(self) -> None:
        model = generator()
        with pytest.raises(ValueError, match=r"example_inputs: the model can't be called with them: RuntimeError"):
            aigc_fast.optimize(model, example_inputs=torch.randn(2, 11))
        assert type(model[4]) is nn.ConvTranspose2d
        assert not model[4]._forward_pre_hooks


class TestBadArguments:
    def test_a_model_that_is_none(self) -> None:
        for function in (aigc_fast.report, aigc_fast.restore):
            with pytest.raises(TypeError, match=r"model: expected a torch.nn.Module, got int"):
                function(3)
        with pytest.raises(TypeError, match=r"model: expected a torch.nn.Module, got function"):
            aigc_fast.optimize(generator)

    def test_precision(self) -> None:
        with pytest.raises(ValueError, match="precision='low': expected one of highest, high, medium"):
            aigc_fast.optimize(generator(), precision="low")


def test_precision_is_the_swapped_layers_own() -> None:
    layer = aigc_fast.optimize(nn.ConvTranspose2d(2, 3, 3), precision="medium")
    assert layer.float32_precision == "medium"
    assert aigc_fast.optimize(layer, precision="high").float32_precision == "high"
    assert "float32_precision" not in vars(aigc_fast.restore(layer))


class TestReport:
    def test_table(self) -> None:
        report = Report(
            layers=(
                Entry("g.4", "ConvTranspose2d", True, None, 12.3456, 7.0),
                Entry("d.0", "Conv2d", False, "no faster than PyTorch's here", 1.0, 1.5),
            ),
            fused=(Entry("g", "ConvTranspose2d + Tanh", True, "in training too"),),
            others={"Linear": 2},
            timed="forward",
        )
        assert str(report).splitlines() == [
            "1 of 2 layers swapped; times in ms, median, forward (fused chains: inference)",
            "",
            "module  type             swapped   torch  aigc_fast  note",
            "g.4     ConvTranspose2d  yes      12.346      7.000",
            "d.0     Conv2d           no        1.000      1.500  no faster than PyTorch's here",
            "",
            "module  type                    fused  note",
            "g       ConvTranspose2d + Tanh  yes    in training too",
            "",
            "no drop-in for: 2 Linear",
        ]

    @pytest.mark.parametrize(
        ("between", "when"),
        [
            ([nn.Conv2d(2, 3, 3), nn.ReLU()], "in training too"),
            ([nn.GroupNorm(1, 2), nn.SiLU(), nn.Upsample(scale_factor=2), nn.Conv2d(2, 3, 3, 1, 1)], "in training too"),
            ([nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 2, 3), nn.ReLU()], "at inference"),
            ([nn.ReflectionPad2d(1), nn.Conv2d(2, 3, 3)], "at inference"),
            ([nn.Linear(2, 3), nn.ReLU()], "at inference"),
        ],
    )
    def test_chains_tell_when_they_are_one_call(self, between: list[nn.Module], when: str) -> None:
        (entry,) = aigc_fast.report(aigc_fast.optimize(nn.Sequential(*between))).fused
        assert entry.note == when

    def test_of_a_model_without_layers(self) -> None:
        report = aigc_fast.report(aigc_fast.optimize(nn.Bilinear(2, 2, 2)))
        assert str(report) == "0 of 0 layers swapped\n\nno drop-in for: 1 Bilinear"

    def test_of_a_model_that_was_never_optimized(self) -> None:
        report = aigc_fast.report(generator())
        assert [entry.note for entry in report.left] == ["not optimized yet"] * 3
