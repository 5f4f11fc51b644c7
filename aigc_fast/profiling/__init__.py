"""Where a model's time goes, which of its layers have a faster twin, and what that gains, measured on the spot."""

from __future__ import annotations

import inspect
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from aigc_fast.bench.machine import CPU, described, limits_text, machine_text, placed, probe
from aigc_fast.files import atomic
from aigc_fast.optimize import measurable, measure, optimize, report, restore, swapped, times_of
from aigc_fast.optimize.reporting import Report
from aigc_fast.profiling.found import OURS, PYTORCH, ModuleTimes, Profile
from aigc_fast.profiling.recorder import BACKWARD, OPTIMIZER, Recorder, Times, now
from aigc_fast.runtime.machine import description
from aigc_fast.runtime.timing import interleaved
from aigc_fast.wording import told

__all__ = ["ModuleTimes", "Profile", "profile", "watch"]

FORWARD, STEP = "forward", "training step"
_RECORDED = 5
_WHOLE = "(model)"


class _EnoughError(BaseException):
    """Ends what is watched: enough steps were made."""


def profile(
    model: nn.Module,
    *inputs: Any,
    seconds: float = 2.0,
    trace: str | Path | None = None,
    html: str | Path | None = None,
    **named: Any,
) -> Profile:
    """Where the time of a model's call goes, and what would be faster.

    The model is called as `model(*inputs, **named)`: its forward and, in training mode, a step too, with the gradients
    of the output's loss where it has one, as outputs of transformers do, or else of the sum of its outputs. All this is
    done to a copy; a model that can't be copied is used itself and put back as it was, as by `aigc_fast.optimize`.
    Each layer that has a counterpart here is timed both ways in the calls that it gets, and the whole model both ways
    in turns.

    Args:
        model: any module.
        *inputs: its positional arguments.
        seconds: about how long each measurement of the whole model takes.
        trace: the file to write a Chrome trace of some calls to, by torch.profiler, in which modules are spans.
        html: the file to write an HTML page to.
        **named: its keyword arguments.

    Returns:
        The profile; `print` it for a table.

    Raises:
        TypeError: when `model` is not a module.
        ValueError: when the model can't be called with these arguments.
        UserError: when a file can't be written.

    Example:
        >>> print(aigc_fast.profile(model, x))
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    with measure.rehearsal(model) as stage:
        restore(stage)
        calls = {FORWARD: lambda: _forward(stage, inputs, named)}
        if stage.training:
            calls[STEP] = lambda: _step(stage, inputs, named)
        _check(calls[FORWARD])
        with _traced(trace) as spans:
            recorder = _recorded(calls, spans)
        operations = _operations(stage, calls[FORWARD])
        stocks = _classes(stage)
        optimize(stage, example_inputs=_example(stage, inputs, named))
        whole, found = _in_turns(calls, stocks, _classes(stage), seconds), report(stage)
        limits, machine = _limits(model)
    kind = type(model).__name__
    rate = limits[f"gemm_{_dtype(model)}"]
    rows = _modules(recorder, {kind: found}, 1, {name: count / rate for name, count in operations.items()})
    rows = tuple(replace(row, name=row.name.partition(".")[2] or _WHOLE) for row in rows)
    result = Profile(kind, machine, rows, {kind: found}, whole)
    if html is not None:
        result.write_html(html)
    return result


def watch(
    title: str,
    run: Callable[[], None],
    steps: int | None = None,
    trace: str | Path | None = None,
    html: str | Path | None = None,
) -> Profile:
    """Where the time of a program goes that calls modules, and what would be faster; the program is not changed.

    Args:
        title: what it is called.
        run: the program: it trains, or only calls models.
        steps: of optimizers, after which it is left; None lets it end. A step before them, that warms up, does not
            count.
        trace: as for `profile`.
        html: as for `profile`.

    Returns:
        The profile of all steps, with times of one; of a program without optimizers, of the whole.

    Raises:
        ValueError: when it calls no module.
        UserError: when a file can't be written.
    """

    first: list[Any] = []
    begin = now()

    def after_step() -> None:
        nonlocal begin
        if not first:
            first.append((*recorder.restart(), now() - begin))
            begin = now()
        if recorder.steps == steps:
            raise _EnoughError

    with _traced(trace) as spans:
        recorder = Recorder(spans=spans, after_step=after_step)
        with recorder.watching(), suppress(_EnoughError):
            run()
        taken = now() - begin
    if not recorder.tops:
        raise ValueError(f"{title}: calls no torch.nn.Module")
    if first and not recorder.steps:
        times, phases, taken = first[0]
        recorder.times.update(times)
        recorder.phases.update(phases)
    count = max(1, recorder.steps)
    reports = {recorder.name(top): _twins(top, recorder) for top in recorder.tops if measurable(top)}
    rows, (_, machine) = _modules(recorder, reports, count, {}), _limits(recorder.tops[0])
    result = Profile(title, machine, rows, reports, {}, _phases(recorder, taken, count), count)
    if html is not None:
        result.write_html(html)
    return result


def _check(forward: Callable[[], Any]) -> None:
    try:
        forward()
    except Exception as error:
        message = f"inputs: the model can't be called with them: {told(error)}"
        raise ValueError(message) from error


def _forward(model: nn.Module, inputs: tuple[Any, ...], named: Mapping[str, Any]) -> Any:
    with torch.no_grad():
        return model(*inputs, **named)


def _step(model: nn.Module, inputs: tuple[Any, ...], named: Mapping[str, Any]) -> None:
    """Forward and the gradients of all parameters; those that the model keeps stay what they are."""
    with torch.enable_grad():
        found = model(*inputs, **named)
        loss = getattr(found, "loss", None)
        outputs = [leaf for leaf in tree_leaves(found if loss is None else loss) if _is_trained(leaf)]
        wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if outputs and wanted:
            torch.autograd.grad(outputs, wanted, [torch.ones_like(leaf) for leaf in outputs], allow_unused=True)


def _is_trained(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.requires_grad


def _recorded(calls: Mapping[str, Callable[[], Any]], spans: bool) -> Recorder:
    run = calls.get(STEP, calls[FORWARD])
    run()
    recorder, rounds = Recorder(keep_calls=False, spans=spans), []
    with recorder.watching():
        for _ in range(_RECORDED):
            run()
            rounds.append(recorder.restart()[0])
    recorder.times.update(_typical(rounds))
    return recorder


def _typical(rounds: Sequence[Mapping[nn.Module, Times]]) -> dict[nn.Module, Times]:
    """Medians: a moment in which the machine did something else is nobody's time."""
    found = {}
    for module in rounds[0]:
        all_of = [astuple(times[module]) for times in rounds if module in times]
        found[module] = Times(*map(statistics.median, zip(*all_of, strict=True)))
    return found


@contextmanager
def _traced(path: str | Path | None) -> Iterator[bool]:
    """Writes what torch.profiler sees in a `with` block, which is told whether it does."""
    if path is None:
        yield False
        return
    activities = [torch.profiler.ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with atomic(path) as temporary:
        with torch.profiler.profile(activities=activities) as found:
            yield True
        # By the end of its name PyTorch tells whether to compress it.
        written = temporary.with_name(temporary.name + Path(path).suffix)
        found.export_chrome_trace(str(written))
        written.replace(temporary)


def _example(model: nn.Module, inputs: tuple[Any, ...], named: Mapping[str, Any]) -> Any:
    """The arguments as `optimize` takes them: of one kind."""
    if not named:
        return inputs
    if not inputs:
        return dict(named)
    bound = inspect.signature(model.forward).bind(*inputs, **named)
    found = dict(bound.arguments)
    for name, parameter in bound.signature.parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            found |= found.pop(name, {})
    return found


def _classes(model: nn.Module) -> dict[nn.Module, type[nn.Module]]:
    return {module: type(module) for module in model.modules()}


def _in_turns(
    calls: Mapping[str, Callable[[], Any]],
    stocks: Mapping[nn.Module, type[nn.Module]],
    fast: Mapping[nn.Module, type[nn.Module]],
    seconds: float,
) -> dict[str, dict[str, Any]]:
    """The whole model as PyTorch's and as ours, in turns; a call whose way has changed is never the one that counts."""
    changed = [module for module in stocks if stocks[module] is not fast[module]]
    state = [OURS]

    def running(way: str, run: Callable[[], Any]) -> Callable[[], Any]:
        def call() -> None:
            if state[0] != way:
                state[0] = way
                for module in changed:
                    module.__class__ = (stocks if way == PYTORCH else fast)[module]
            run()

        return call

    ways = (PYTORCH, OURS) if changed else (PYTORCH,)
    return {name: interleaved({way: running(way, run) for way in ways}, seconds) for name, run in calls.items()}


def _operations(model: nn.Module, forward: Callable[[], Any]) -> dict[str, int]:
    """Floating-point operations of forward by the names of modules, where torch's counter knows them."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        forward()
    return {name: sum(counts.values()) for name, counts in counter.get_flop_counts().items() if counts}


def _dtype(model: nn.Module) -> str:
    low = any(parameter.dtype == torch.bfloat16 for parameter in model.parameters())
    return "bfloat16" if low else "float32"


def _limits(model: nn.Module) -> tuple[dict[str, float], str]:
    """What the device that a model is on does at best, now, and a line on it."""
    device = next((parameter.device for parameter in model.parameters()), CPU)
    with placed(device):
        limits = probe()
    return limits, f"{machine_text(description() | described(device))}: {limits_text(limits)}"


def _twins(top: nn.Module, recorder: Recorder) -> Report:
    """What `optimize` would find of a model in the calls that were recorded."""
    calls = {name: recorder.calls.get(module, {}) for name, module in top.named_modules()}
    with measure.rehearsal(top) as stage:
        restore(stage)
        found = {module: list(calls[name].values()) for name, module in stage.named_modules()}
        return swapped(stage, times_of(stage, {module: kept for module, kept in found.items() if kept}))


def _modules(
    recorder: Recorder, reports: Mapping[str, Report], steps: int, seconds: Mapping[str, float]
) -> tuple[ModuleTimes, ...]:
    """The rows, the slowest first.

    Args:
        recorder: what was recorded.
        reports: of models by name.
        steps: to divide times by.
        seconds: that a module's forward takes at the machine's limit, by name.
    """
    twins = {
        model if entry.name == _WHOLE else f"{model}.{entry.name}": entry
        for model, found in reports.items()
        for entry in found.layers
    }
    total = sum(times.own + times.own_backward for times in recorder.times.values()) or 1.0
    rows = []
    for module, times in recorder.times.items():
        name, limit = recorder.name(module), seconds.get(recorder.name(module))
        rows.append(
            ModuleTimes(
                name,
                recorder.kinds.get(module, type(module).__name__),
                times.calls / steps,
                1e3 * times.forward / steps,
                1e3 * times.own / steps,
                1e3 * times.own_backward / steps,
                (times.own + times.own_backward) / total,
                limit and limit * times.calls / times.forward,
                twins.get(name),
            )
        )
    return tuple(sorted(rows, key=lambda row: -row.share))


def _phases(recorder: Recorder, taken: float, steps: int) -> dict[str, float]:
    """Milliseconds of a step in each part of it."""
    found = {f"{recorder.name(top)} forward": recorder.times[top].forward for top in recorder.tops}
    found |= {name: recorder.phases[name] for name in (BACKWARD, OPTIMIZER) if name in recorder.phases}
    found["everything else"] = max(0.0, taken - sum(found.values()))
    return {name: 1e3 * seconds / steps for name, seconds in found.items()}
