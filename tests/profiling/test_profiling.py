"""Profiles: whose time is whose, that nothing is changed, and what is written; no time is asserted."""

import copy
import gzip
import io
import json
from itertools import takewhile

import pytest
import torch
import torch.utils.checkpoint
from rich.console import Console
from test_backends import needs_native
from torch import nn

import aigc_fast
from aigc_fast.errors import UserError
from aigc_fast.optimize.reporting import Entry, Report
from aigc_fast.profiling import ModuleTimes, Profile, watch
from aigc_fast.profiling import recorder as recording
from aigc_fast.profiling.recorder import Recorder
from aigc_fast.runtime.timing import Timing


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(inplace=True))
        self.body_again = self.body
        self.head = nn.Linear(4, 3)

    def forward(self, x, scale=1.0):
        return self.head(self.body(x).mean((2, 3))) * scale


@pytest.fixture
def clock(monkeypatch):
    """A clock that goes on by a second each time that somebody looks."""
    seconds = iter(range(10**6))
    monkeypatch.setattr(recording, "now", lambda: float(next(seconds)))


def recorded(run, **options):
    recorder = Recorder(**options)
    with recorder.watching():
        run()
    return recorder, {recorder.name(module): times for module, times in recorder.times.items()}


@pytest.mark.usefixtures("clock")
def test_time_is_of_the_module_that_takes_it_and_of_those_around_it():
    net = Net()
    _, times = recorded(lambda: net(torch.randn(1, 2, 5, 5)))
    assert {name: found.calls for name, found in times.items()} == dict.fromkeys(
        ("Net", "Net.body", "Net.body.0", "Net.body.1", "Net.head"), 1
    )
    assert times["Net.body"].forward > times["Net.body.0"].forward + times["Net.body.1"].forward
    assert times["Net.body"].own < times["Net.body"].forward
    assert times["Net.body.0"].own == times["Net.body.0"].forward
    assert all(found.backward == 0 for found in times.values())


@pytest.mark.usefixtures("clock")
def test_backward_is_told_apart_by_module_and_what_stands_outside_is_nobodys():
    net, criterion = Net(), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)

    def run():
        criterion(net(torch.randn(3, 2, 5, 5)) + 1, torch.tensor([0, 1, 2])).backward()
        optimizer.step()

    recorder, times = recorded(run)
    assert [recorder.name(top) for top in recorder.tops] == ["Net", "CrossEntropyLoss"]
    for name in ("Net.body.0", "Net.body.1", "Net.head", "CrossEntropyLoss", "Net"):
        assert times[name].own_backward > 0
    assert times["Net.body"].own_backward == 0
    assert times["Net.body"].backward == times["Net.body.0"].backward + times["Net.body.1"].backward
    parts = sum(found.own_backward for name, found in times.items())
    assert 0 < parts < recorder.phases["backward"]
    assert recorder.phases["optimizer"] > 0
    assert recorder.steps == 1


def test_nothing_is_left_behind_and_gradients_are_the_same():
    net = Net()
    x = torch.randn(2, 2, 5, 5)
    wanted = torch.autograd.grad(net(x).sum(), list(net.parameters()))
    backward, grad = torch.autograd.backward, torch.autograd.grad
    hooks = {name: dict(value) for name, value in vars(torch.nn.modules.module).items() if isinstance(value, dict)}
    recorded(lambda: net(x).sum().backward())
    assert all(dict(vars(torch.nn.modules.module)[name]) == value for name, value in hooks.items())
    assert (torch.autograd.backward, torch.autograd.grad) == (backward, grad)
    for parameter, gradient in zip(net.parameters(), wanted, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)
    before = Recorder()
    net(x)
    assert not before.times


def test_a_call_that_raises_is_left_and_the_next_is_right():
    net, outcomes = Net(), []

    def run():
        for shape in ((1, 3, 5, 5), (1, 2, 5, 5)):
            try:
                outcomes.append(net(torch.randn(shape)))
            except RuntimeError:
                outcomes.append(None)

    recorder, times = recorded(run)
    assert outcomes[0] is None
    assert outcomes[1] is not None
    assert [recorder.name(top) for top in recorder.tops] == ["Net"]
    assert times["Net.head"].calls == 1


@needs_native
@pytest.mark.parametrize("training", [False, True])
def test_a_profile_of_a_model_leaves_it_as_it_was_and_tells_its_twins(training, tmp_path):
    net = Net().train(training)
    before, x = copy.deepcopy(net.state_dict()), torch.randn(2, 2, 9, 9)
    state = torch.get_rng_state()
    found = aigc_fast.profile(net, x, scale=2.0, seconds=0.01, html=tmp_path / "a.html", trace=tmp_path / "a.json")
    assert torch.equal(torch.get_rng_state(), state)
    assert type(net.body[0]) is nn.Conv2d
    assert all(parameter.grad is None for parameter in net.parameters())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    rows = {row.name: row for row in found.modules}
    assert rows["body.0"].kind == "Conv2d"
    assert rows["body.0"].calls == 1
    assert rows["body.0"].twin.torch_ms > 0
    assert rows["body.0"].of_limit > 0
    assert sum(row.share for row in found.modules) == pytest.approx(1)
    assert set(found.whole) == ({"forward", "training step"} if training else {"forward"})
    assert (rows["head"].backward > 0) == training
    assert "(model)" in rows
    assert "forward: PyTorch" in str(found)
    assert "body.0" in (tmp_path / "a.html").read_text(encoding="utf-8")
    names = {event.get("name") for event in json.loads((tmp_path / "a.json").read_text())["traceEvents"]}
    assert {"Net.body.0", "Net.head"} <= names


@pytest.mark.usefixtures("clock")
def test_backward_inside_of_backward_counts_once():
    net = Net()

    def run():
        x = torch.randn(1, 2, 5, 5, requires_grad=True)
        for reentrant in (False, True):
            torch.utils.checkpoint.checkpoint(net, x, use_reentrant=reentrant).sum().backward()

    recorder, times = recorded(run)
    assert [recorder.name(top) for top in recorder.tops] == ["Net"]
    assert times["Net"].calls >= 3
    assert recorder.phases["backward"] > times["Net"].backward > 0


class Refusing(nn.Module):
    def forward(self, x):
        raise RuntimeError("one\ntwo")


def test_a_trace_is_written_whole_or_refused_before_anything_runs(tmp_path):
    net, x = nn.Linear(3, 3), torch.randn(2, 3)
    with pytest.raises(UserError, match=r"cannot write .*there/a\.json"):
        aigc_fast.profile(net, x, seconds=0.01, trace=tmp_path / "not" / "there" / "a.json")
    aigc_fast.profile(net, x, seconds=0.01, trace=tmp_path / "a.json.gz")
    assert [path.name for path in tmp_path.iterdir()] == ["a.json.gz"]
    with gzip.open(tmp_path / "a.json.gz", "rt") as file:
        assert json.load(file)["traceEvents"]


def test_what_is_no_model_or_no_input_is_refused():
    with pytest.raises(TypeError, match=r"model: expected a torch.nn.Module, got int"):
        aigc_fast.profile(3)
    with pytest.raises(ValueError, match="inputs: the model can't be called with them: RuntimeError"):
        aigc_fast.profile(Net(), torch.randn(1, 3, 5, 5))
    with pytest.raises(ValueError, match=r"RuntimeError: one$"):
        aigc_fast.profile(Refusing(), torch.randn(1))
    with pytest.raises(ValueError, match=r"nothing: calls no torch.nn.Module"):
        watch("nothing", lambda: None)


def test_a_program_is_left_after_its_steps_and_the_first_does_not_count():
    net, made = Net(), []
    optimizer = torch.optim.SGD(net.parameters(), 0.1)

    def run():
        for index in range(100):
            made.append(index)
            optimizer.zero_grad()
            net(torch.randn(2, 2, 5, 5)).sum().backward()
            optimizer.step()

    found = watch("a program", run, 3)
    assert len(made) == 4
    assert found.steps == 3
    assert {row.name: row.calls for row in found.modules}["Net.head"] == 1
    assert list(found.phases) == ["Net forward", "backward", "optimizer", "everything else"]


@needs_native
def test_the_twins_of_a_program_are_timed_in_its_own_calls():
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten())
    found = watch("a program", lambda: net(torch.randn(2, 2, 5, 5)))
    (entry,) = found.reports["Sequential"].layers
    assert entry.torch_ms > 0
    assert type(net[0]) is nn.Conv2d


@pytest.mark.filterwarnings("ignore:Using `torch.compile")
def test_a_compiled_module_is_timed_as_one():
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten())
    fast = torch.compile(net, backend="eager", fullgraph=True)
    found = watch("compiled", lambda: fast(torch.randn(2, 2, 5, 5)).sum().backward())
    (row,) = found.modules
    assert row.calls == 1
    assert row.backward > 0
    assert "0 of 1 layer have a faster twin here; 1 were not called by themselves, and not timed" in str(found)


def test_the_table_and_the_page_say_what_is_found():
    fast = Entry("a", "Conv2d", True, None, 4.0, 1.0)
    slow = Entry("b", "Conv2d", False, "no faster than PyTorch's here", 1.0, 2.0)
    modules = (
        ModuleTimes("a", "Conv2d", 2, 4.0, 4.0, 0.0, 0.8, 0.5, fast),
        ModuleTimes("b <i>", "Conv2d", 1, 1.0, 1.0, 0.0, 0.2, None, slow),
    )
    whole = {"forward": {"PyTorch": Timing(6, 6, 6), "aigc_fast": Timing(3, 3, 3)}}
    found = Profile("Net", "a machine", modules, {"Net": Report((fast, slow), others={"Linear": 2})}, whole)
    assert found.gains == 6
    text = str(found)
    assert "forward: PyTorch 6 ms, aigc_fast 3 ms: 2.00× after optimize" in text
    assert "4.00×" in text
    assert "Net: 1 of 2 layers have a faster twin here\n" in text
    assert "0.50×, stays" in text
    assert "stays: b: no faster than PyTorch's here" in text
    assert "no drop-in for: 2 Linear" in text
    page = found.page().html()
    assert "b &lt;i&gt;" in page
    assert '<span class="win">4.00×</span>' in page


def test_a_narrow_terminal_breaks_the_names_of_modules_alone():
    fast = Entry("a", "ConvTranspose2d", True, None, 4.0, 0.95)
    name = "generator.up_blocks.0.upsamplers.0"
    modules = (ModuleTimes(name, "ConvTranspose2d", 12, 31.4, 9.14, 46.9, 0.28, 0.05, fast),)
    output = Console(file=io.StringIO(), width=80)
    output.print(Profile("Net", "a machine", modules, {}, {}))
    lines = output.file.getvalue().splitlines()
    (line,) = (line for line in lines if "ConvTranspose2d" in line)
    assert all(cell in line.split() for cell in ("12", "31.4", "9.14", "46.9", "28%", "5%", "4.21×"))
    row = takewhile(str.strip, lines[lines.index(line) :])
    assert "".join(part.split()[0] for part in row) == name
