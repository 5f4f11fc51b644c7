"""What kernels are told of tensors, by torches that lend them and by those that must be asked."""

from __future__ import annotations

import platform
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

import aigc_fast.functional as AF
from aigc_fast.ops.conv_transpose import cpu
from aigc_fast.runtime import native
from aigc_fast.runtime.activations import CODES as ACTIVATIONS
from aigc_fast.runtime.dtypes import DTYPES
from aigc_fast.runtime.native import NEGATED, PLAIN, UNKNOWN, WANTS_GRADIENT
from aigc_fast.runtime.precision import EXACT, ROUNDED, SPLIT

pytestmark = pytest.mark.skipif(native.cpu_reason() is not None, reason=str(native.cpu_reason()))


class Subclass(Tensor):
    """A tensor that may be more than its elements."""


TENSORS: dict[str, tuple[Callable[[], object], int]] = {
    "none": (lambda: None, PLAIN),
    "tensor": (lambda: torch.ones(2), PLAIN),
    "integers": (lambda: torch.ones(2, dtype=torch.int64), PLAIN),
    "meta": (lambda: torch.ones(2, device="meta"), PLAIN),
    "leaf": (lambda: torch.ones(2, requires_grad=True), WANTS_GRADIENT),
    "parameter": (lambda: torch.nn.Parameter(torch.ones(2)), WANTS_GRADIENT),
    "negated": (lambda: torch._neg_view(torch.ones(2)), NEGATED),
    "negated leaf": (lambda: torch._neg_view(torch.ones(2, requires_grad=True)), NEGATED),
    "subclass": (lambda: torch.ones(2).as_subclass(Subclass), UNKNOWN),
    "sparse": (lambda: torch.ones(2, 2).to_sparse(), UNKNOWN),
    "no tensor": (lambda: 3.0, UNKNOWN),
}


@pytest.mark.parametrize("kind", [native.kind, native._kind], ids=["native", "python"])
@pytest.mark.parametrize("name", TENSORS)
def test_kinds_of_tensors(kind: Callable[..., int], name: str) -> None:
    make, expected = TENSORS[name]
    assert kind(True, make()) == expected
    assert kind(False, make()) == (PLAIN if expected == WANTS_GRADIENT else expected)
    assert kind(True, torch.ones(1), make(), None) == expected
    assert kind(True, make(), torch.ones(1, requires_grad=True)) == max(expected, WANTS_GRADIENT)


@pytest.fixture
def asked() -> Iterator[None]:
    """A torch without the interface by which it lends tensors."""
    assert not native.use_torch(None)
    yield
    native.use_torch()


def sampled(mu: Tensor, logvar: Tensor) -> list[Tensor]:
    torch.manual_seed(3)
    mu, logvar = (tensor.detach().requires_grad_() for tensor in (mu, logvar))
    z, kl = AF.reparameterize_kl(mu, logvar)
    dropped = AF.dropout(mu, 0.3)
    grads = torch.autograd.grad([z, kl, dropped], [mu, logvar], [torch.ones_like(z), kl.detach(), z.detach()])
    return [z, kl, dropped, *grads]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("shape", [(3,), (5, 7), (2, 3, 4, 5), (0, 4)])
def test_asked_tensors_give_the_numbers_of_lent_ones(
    dtype: torch.dtype, shape: tuple[int, ...], request: pytest.FixtureRequest
) -> None:
    tensors = [torch.randn(shape).to(dtype) for _ in range(2)]
    strided = [torch.stack([tensor, tensor], -1)[..., 1] for tensor in tensors]
    lent = [sampled(*given) for given in (tensors, strided)]
    request.getfixturevalue("asked")
    for given, expected in zip((tensors, strided), lent, strict=True):
        for a, b in zip(sampled(*given), expected, strict=True):
            assert torch.equal(a, b)


def test_a_kernel_names_how_many_arguments_it_takes() -> None:
    with pytest.raises(TypeError, match="dropout takes 4 arguments, got 1"):
        native.kernels().dropout(torch.ones(2))


@pytest.mark.parametrize("way", ["lent", "asked"])
def test_a_kernel_refuses_what_is_no_tensor(way: str, request: pytest.FixtureRequest) -> None:
    if way == "asked":
        request.getfixturevalue("asked")
    with pytest.raises((TypeError, AttributeError, RuntimeError)):
        native.kernels().dropout(torch.ones(2), 3.0, torch.ones(2, dtype=torch.int64), 0.5)


LEVELS = Path(__file__).parents[1] / "csrc" / "core" / "levels.def"
PROCESSOR = Path("/proc/cpuinfo")


def listed_levels() -> dict[str, set[str]]:
    """The features of each level by its name, as levels.def has them."""
    lines = re.findall(r"^LEVEL\((\w+), .*, (.*)\)$", LEVELS.read_text(), re.MULTILINE)
    return {name: set(features.lower().split(" | ")) - {"0"} for name, features in lines}


@pytest.mark.skipif(not LEVELS.exists(), reason="no sources")
def test_the_module_tells_of_every_level_that_is_listed() -> None:
    assert tuple(listed_levels()) == native.LEVELS


@pytest.mark.skipif(not LEVELS.exists(), reason="no sources")
@pytest.mark.skipif(
    platform.machine() != "x86_64" or not PROCESSOR.exists(), reason="nobody else tells of the processor"
)
@pytest.mark.skipif(bool(native.info().get("emulated")), reason="the levels are emulated")
def test_a_level_is_used_where_the_system_tells_of_its_features() -> None:
    has = set(re.search(r"^flags\s*:(.*)$", PROCESSOR.read_text(), re.MULTILINE)[1].split())
    needed: set[str] = set()
    for name, features in listed_levels().items():
        needed |= features
        assert (name in native.levels()) == (needed <= has), name


def test_codes_are_those_of_the_module() -> None:
    assert {name: getattr(cpu, name) for name in cpu._ALGORITHMS} == native._C.constants["conv_algorithms"]
    assert {name.upper(): code for name, code in ACTIVATIONS.items()} == native._C.constants["activations"]
    dtypes = {str(dtype).removeprefix("torch.").upper(): code for dtype, code in DTYPES.items()}
    assert dtypes == native._C.constants["dtypes"]
    assert native._C.constants["factors"] == {"EXACT": EXACT, "ROUNDED": ROUNDED, "SPLIT": SPLIT}


def test_without_the_module_every_name_has_a_code_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_C", None)
    assert native.codes("kinds", "PLAIN", "NEGATED") == (0, 1)
