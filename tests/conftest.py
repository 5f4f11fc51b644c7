"""Fixtures of the whole suite: poisoned memory, seeds, and one run per backend and instruction-set level."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import hypothesis
import pytest
import torch
from memory import poisoned
from watching import launches

import aigc_fast
from aigc_fast.runtime import kept, native, tuning

# A shell without job control starts its background jobs so: what is interrupted would go on.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

hypothesis.settings.register_profile(
    "suite",
    deadline=None,
    derandomize=True,
    max_examples=40,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("suite")

BACKENDS = ("auto", "reference", "cpu") if native.cpu_reason() is None else ("auto", "reference")


def pytest_report_header() -> str:
    levels = ", ".join(native.levels()) or native.cpu_reason()
    return f"aigc_fast {aigc_fast.__version__} from {aigc_fast.__path__[0]}; CPU levels: {levels}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(autouse=True, scope="session")
def _nothing_was_measured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test depends on what was measured on this machine before, or adds to it."""
    before = os.environ.get(tuning.FOLDER_VARIABLE)
    os.environ[tuning.FOLDER_VARIABLE] = str(tmp_path_factory.mktemp("measured") / "none")
    yield
    if before is None:
        del os.environ[tuning.FOLDER_VARIABLE]
    else:
        os.environ[tuning.FOLDER_VARIABLE] = before


@pytest.fixture(autouse=True)
def _poison_uninitialized_memory() -> Iterator[None]:
    with poisoned():
        yield


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Any:
    """The test runs once with each backend that this machine has, forced, and once with the automatic choice."""
    with aigc_fast.backend(request.param):
        yield request.param


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sets how many bytes a store has left, in which nothing else is that could leave or die."""
    gc.collect()
    monkeypatch.setattr(kept, "store", kept.Store(1 << 40))

    def leave(nbytes: int) -> None:
        monkeypatch.setattr(kept.store, "cap", kept.store.total() + nbytes)

    return leave


@pytest.fixture
def attentions() -> Iterator[list[str]]:
    """Grows by the name of every kernel of attention that is launched."""
    if native.cpu_reason() is not None:
        pytest.skip(native.cpu_reason())
    with launches("attention", "attention_backward") as launched:
        yield launched


@pytest.fixture(params=native.levels() or ["none"])
def isa(request: pytest.FixtureRequest) -> Any:
    """The test runs once on each instruction-set level that this machine and build have."""
    if request.param == "none":
        pytest.skip(native.cpu_reason())
    with native.use_level(request.param):
        yield request.param
