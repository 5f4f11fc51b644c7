"""The choice of a backend: automatic, forced, from the environment, and explained."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import aigc_fast
import aigc_fast.functional as AF
from aigc_fast.ops.conv_transpose import choice as convolution_choice
from aigc_fast.ops.examples import examples
from aigc_fast.runtime import backends, native
from aigc_fast.runtime.backends import BackendError, Choice

needs_native = pytest.mark.skipif(native.cpu_reason() is not None, reason=str(native.cpu_reason()))


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs code in a fresh interpreter that imports the same aigc_fast; the time it has is against hanging alone."""
    code = f"import sys; sys.path[:] = {sys.path!r}\n{code}"
    run = [sys.executable, "-W", "ignore", "-c", code]
    return subprocess.run(run, capture_output=True, text=True, env={**os.environ, **environment}, timeout=1200)


def choice(**reasons: tuple[str | None, str | None]) -> Choice:
    made = Choice("op")
    for name, (unsupported, slower) in reasons.items():
        made.register(name, lambda *a, name=name: name, lambda *a, r=unsupported: r, lambda *a, r=slower: r)
    return made


def test_the_first_that_can_and_is_not_slower_is_taken() -> None:
    assert choice(cpu=(None, None), reference=(None, None)).pick(()).name == "cpu"
    assert choice(cpu=("float16", None), reference=(None, None)).pick(()).name == "reference"
    assert choice(cpu=(None, "tiny"), reference=(None, None)).pick(()).name == "reference"


def test_a_forced_backend_runs_even_where_it_is_slower() -> None:
    with aigc_fast.backend("cpu"):
        assert choice(cpu=(None, "tiny"), reference=(None, None)).pick(()).name == "cpu"


def test_a_forced_backend_that_cannot_run_raises_with_every_reason() -> None:
    made = choice(cpu=("dtype float16", None), reference=(None, None))
    with aigc_fast.backend("cpu"), pytest.raises(BackendError) as caught:
        made.pick(())
    message = str(caught.value)
    for part in ("op:", "'cpu'", "cpu: dtype float16", "reference: can run", "cuda: not there", "triton: not there"):
        assert part in message


def test_forcing_nests_and_ends_with_the_block() -> None:
    before = backends.current()
    with aigc_fast.backend("reference"):
        with aigc_fast.backend("auto"):
            assert backends.current() == "auto"
        assert backends.current() == "reference"
    with pytest.raises(KeyError), aigc_fast.backend("reference"):
        raise KeyError
    assert backends.current() == before


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'avx'.*auto, reference, cpu, cuda, triton"), aigc_fast.backend("avx"):
        pass


def test_a_fall_back_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    made = Choice("told-once")
    with caplog.at_level(logging.WARNING, "aigc_fast"):
        made.fall_back("cuda", "no device")
        made.fall_back("cuda", "no device")
    assert [record.getMessage() for record in caplog.records] == ["told-once: backend cuda is not used: no device"]


def test_without_the_native_library_automatic_choice_says_so(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends, "_told", set())
    monkeypatch.setattr(native, "cpu_reason", lambda: "no compiler")
    with caplog.at_level(logging.WARNING, "aigc_fast"):
        for _ in range(2):
            aigc_fast.functional.conv_transpose2d(torch.randn(1, 16, 16, 16), torch.randn(16, 16, 4, 4))
    assert [record.getMessage() for record in caplog.records] == [
        "conv_transpose: backend cpu is not used: no compiler"
    ]


def test_a_library_is_missed_on_its_own_device_alone(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends, "_told", set())
    monkeypatch.setattr(native, "cpu_reason", lambda: "no C++")
    monkeypatch.setattr(native, "cuda_reason", lambda: "no CUDA")
    made = choice(cpu=("elsewhere", None), cuda=("not there", None), triton=(None, None), reference=(None, None))
    with caplog.at_level(logging.WARNING, "aigc_fast"):
        assert made.pick((SimpleNamespace(device=torch.device("cuda")),)).name == "triton"
        assert [record.getMessage() for record in caplog.records] == ["op: backend cuda is not used: no CUDA"]
        choice(cpu=("elsewhere", None), reference=(None, None)).pick((SimpleNamespace(device=torch.device("meta")),))
        assert len(caplog.records) == 1


def test_a_verdict_is_remembered_by_signature_and_forced_backend() -> None:
    asked: list[int] = []

    def slower(size: int) -> str | None:
        asked.append(size)
        return "small" if size < 10 else None

    made = Choice("op", lambda size: size)
    made.register(
        "cpu", lambda size: "cpu", slower=slower, prepare=lambda size: backends.Runner(lambda n: f"{n} {size}")
    )
    made.register("reference", lambda size: "reference")
    for _ in range(2):
        assert [made.runner((size,)).run(size) for size in (5, 20)] == ["reference", "20 20"]
        with aigc_fast.backend("cpu"):
            assert made.runner((5,)).run(5) == "5 5"
    assert asked == [5, 20]


def test_what_is_remembered_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "MOST_REMEMBERED", 3)
    made = Choice("op", lambda size: size)
    made.register("reference", lambda size: size)
    assert [made.runner((size,)).run(size) for size in range(10)] == list(range(10))
    assert len(made._memo) <= 3


@needs_native
def test_the_environment_forces_a_backend_and_caps_the_level() -> None:
    found = python(
        "import torch, aigc_fast\n"
        "x, w = torch.ones(8, 64, 8, 8), torch.ones(64, 64, 4, 4)\n"
        "print(aigc_fast.explain('conv_transpose2d', x, w).chosen, aigc_fast.info()['native']['level'])",
        AIGC_FAST_BACKEND="reference",
        AIGC_FAST_CPU_ISA="baseline",
    )
    assert found.stdout.split() == ["reference", "baseline"], found.stderr


def test_a_wrong_environment_is_refused_on_import() -> None:
    found = python("import aigc_fast", AIGC_FAST_BACKEND="gpu")
    assert found.returncode != 0
    assert "ValueError: AIGC_FAST_BACKEND='gpu': expected one of auto" in found.stderr


@needs_native
def test_a_level_that_is_unknown_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(native.ISA_VARIABLE, "sse")
    with pytest.raises(ValueError, match="AIGC_FAST_CPU_ISA='sse': expected one of baseline"):
        native._capped_level()


@needs_native
@pytest.mark.parametrize("cap", native.LEVELS)
def test_the_cap_is_the_lesser_of_what_is_asked_and_what_there_is(cap: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(native.ISA_VARIABLE, cap)
    allowed = native.LEVELS[: native.LEVELS.index(cap) + 1]
    assert native._capped_level() == [level for level in native.levels() if level in allowed][-1]


def test_without_the_native_library_no_level_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_C", None)
    monkeypatch.setenv(native.ISA_VARIABLE, "sse")
    assert native._capped_level() is None


@needs_native
def test_a_level_is_used_inside_its_block_and_on_its_thread_alone() -> None:
    before = native.level()
    with native.use_level("baseline"), ThreadPoolExecutor(1) as another:
        assert native.level() == "baseline"
        assert another.submit(native.level).result() == before
    assert native.level() == before
    with pytest.raises(ValueError, match="level='sse'"), native.use_level("sse"):
        pass


@needs_native
def test_a_forced_backend_refuses_what_it_cannot_run() -> None:
    input, weight = torch.ones(1, 2, 4, 4, dtype=torch.float64), torch.ones(2, 3, 3, 3, dtype=torch.float64)
    with aigc_fast.backend("cpu"), pytest.raises(BackendError, match=r"reference: can run.*cpu: dtype torch.float64"):
        AF.conv_transpose2d(input, weight)
    with (
        aigc_fast.backend("triton"),
        pytest.raises(BackendError, match=r"triton: (the tensors are on cpu|torch.float64)"),
    ):
        AF.conv_transpose2d(input, weight)


class TestExplain:
    @staticmethod
    def tensors() -> tuple[torch.Tensor, torch.Tensor]:
        return torch.randn(16, 64, 16, 16), torch.randn(64, 32, 4, 4)

    @needs_native
    def test_says_what_runs(self) -> None:
        found = aigc_fast.explain("conv_transpose2d", *self.tensors(), stride=2, padding=1)
        assert found.chosen in ("cpu", "reference")
        assert found.reasons["cpu"] is None if found.chosen == "cpu" else found.reasons["cpu"]
        assert found.reasons["reference"] is None
        assert str(found).startswith("conv_transpose: ")

    def test_obeys_the_forced_backend(self) -> None:
        with aigc_fast.backend("reference"):
            assert aigc_fast.explain("conv2d", torch.randn(2, 3, 9, 9), torch.randn(4, 3, 3, 3)).chosen == "reference"

    def test_of_a_backend_that_cannot_run(self) -> None:
        with aigc_fast.backend("triton"):
            found = aigc_fast.explain("conv_transpose2d", *self.tensors())
        assert found.chosen is None
        assert "no backend can run this" in str(found)

    @needs_native
    def test_gives_the_reason_of_a_call_of_small_groups(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(convolution_choice, "is_intels", lambda: True)
        found = aigc_fast.explain("conv1d", torch.randn(1, 8, 9), torch.randn(8, 2, 3), groups=4)
        assert found.chosen == "reference"
        assert "2 channels per group" in found.reasons["cpu"]

    @needs_native
    @pytest.mark.parametrize(
        ("input", "weight", "stride", "kernel"),
        [
            ((16, 64, 4, 4), (64, 32, 4, 4), 2, "direct"),
            ((16, 64, 16, 16), (64, 32, 4, 4), 2, "Winograd"),
            ((16, 2, 32, 32), (2, 32, 4, 4), 2, "few channels"),
            ((16, 64, 32, 32), (64, 3, 4, 4), 2, "few output channels"),
            ((16, 64, 1, 1), (64, 32, 4, 4), 1, "a single pixel"),
        ],
    )
    def test_says_which_kernel_of_convolution_runs(
        self, input: tuple[int, ...], weight: tuple[int, ...], stride: int, kernel: str
    ) -> None:
        padding = 0 if stride == 1 else 1
        found = aigc_fast.explain(
            "conv_transpose2d", torch.randn(input), torch.randn(weight), stride=stride, padding=padding
        )
        assert found.chosen == "cpu"
        assert found.detail.startswith(kernel)
        assert found.detail.endswith(aigc_fast.info()["native"]["level"])

    @needs_native
    @pytest.mark.parametrize(("queries", "kernel"), [(1, "few queries"), (200, "blocks of queries")])
    def test_says_which_kernel_of_attention_runs(self, queries: int, kernel: str) -> None:
        query, key = torch.randn(1, 4, queries, 16), torch.randn(1, 4, 20_000, 16)
        found = aigc_fast.explain("attention", query, key, key, is_causal=True)
        assert found.chosen == "cpu"
        assert kernel in found.detail
        assert found.reasons["cuda"] == found.reasons["triton"] == "the tensors are on cpu"

    @needs_native
    @pytest.mark.parametrize("shape", [(1, 2, 5, 8), (1, 2, 200, 128), (1, 2, 64, 192)])
    def test_says_when_pytorchs_attention_runs(self, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(native, "takes_tensors", False)
        query = torch.randn(shape)
        with native.use_level("baseline"):
            found = aigc_fast.explain("attention", query, query, query)
            assert (found.chosen, found.detail) == ("reference", "PyTorch's own function")
            assert found.reasons["cpu"] is not None
            assert aigc_fast.explain("attention", query.requires_grad_(), query, query).chosen == "cpu"

    def test_of_an_unknown_name(self) -> None:
        with pytest.raises(ValueError, match=r"op='conv4d'.*conv_transpose2d"):
            aigc_fast.explain("conv4d")

    def test_of_bad_arguments(self) -> None:
        with pytest.raises(RuntimeError, match="groups"):
            aigc_fast.explain("conv_transpose2d", *self.tensors(), groups=3)

    @pytest.mark.parametrize("name", sorted(AF.__all__))
    def test_every_public_function_can_be_explained(self, name: str) -> None:
        arguments: dict[str, Any] = {
            "randn": (2, 3),
            "rand": (2, 3),
            "dropout": (torch.randn(4, 4),),
            "reparameterize": (torch.randn(2, 3), torch.randn(2, 3)),
            "reparameterize_kl": (torch.randn(2, 3), torch.randn(2, 3)),
            "kl_standard_normal": (torch.randn(2, 3), torch.randn(2, 3)),
            "scaled_dot_product_attention": (torch.randn(1, 2, 5, 8),) * 3,
            "ar_recursion": (torch.randn(2, 9), torch.randn(3)),
            "sample_wise_lpc": (torch.randn(2, 9), torch.randn(2, 9, 3)),
            "lfilter": (torch.randn(2, 9), torch.ones(3), torch.ones(3)),
            "varlen_attn": (*(torch.randn(5, 2, 8),) * 3, torch.tensor([0, 2, 5])),
            **{layer: examples()[layer]()[0] for layer in ("rnn_tanh", "rnn_relu", "lstm", "gru", "linear")},
            **{norm: examples()[norm]()[0] for norm in ("group_norm", "instance_norm", "layer_norm")},
        }
        if name not in arguments:
            size = [5] * int(name[-2])
            arguments[name] = (torch.randn(2, 3, *size), torch.randn(3, 3, *[2] * len(size)))
        state = torch.get_rng_state()
        assert aigc_fast.explain(name, *arguments[name]).chosen in ("reference", "cpu")
        assert torch.equal(torch.get_rng_state(), state)

    def test_a_given_generator_is_not_advanced(self) -> None:
        generator = torch.Generator().manual_seed(3)
        state = generator.get_state()
        aigc_fast.explain("randn", 3, generator=generator)
        assert torch.equal(generator.get_state(), state)


def test_info_tells_versions_and_backends() -> None:
    found = aigc_fast.info()
    assert found["aigc_fast"] == aigc_fast.__version__
    assert found["torch"] == torch.__version__
    assert found["threads"] == torch.get_num_threads()
    assert found["backends"]["reference"] is None
    assert found["backends"]["cpu"] == native.cpu_reason()
    if not torch.cuda.is_available():
        assert "no CUDA device" in found["backends"]["cuda"]
