"""The emulation of CUDA on the CPU: it does what a card does, and finds what would go wrong there."""

from __future__ import annotations

from pathlib import Path

import pytest
from emulating import SANITIZERS, SOURCES, build, needs_compiler, run

pytestmark = needs_compiler
# For each planted mistake, what finds it: an order of the threads, or a sanitizer, and what that says.
FOUND = {
    "no barrier after load": {"plain": "reverse: wrong numbers", "threads": "data race"},
    "no barrier before overwrite": {"plain": "reverse: wrong numbers", "threads": "data race"},
    "no barrier before merge": {"plain": "sum: wrong numbers", "threads": "data race"},
    "waits for too few": {"plain": "stream: wrong numbers"},
    "no __syncwarp": {"plain": "rotate: wrong numbers", "threads": "data race"},
    "beyond shared memory": {"addresses": "heap-buffer-overflow"},
    "beyond global memory": {"addresses": "heap-buffer-overflow"},
    "misaligned": {"plain": "an asynchronous copy that is not aligned to 16 bytes"},
    "divergent barrier": {"plain": "waits at a barrier to which not all threads of its block come"},
    "missing lane": {"plain": "waits in a shuffle to which not all lanes of its mask come"},
    "no release": {"threads": "data race"},
    "not resident": {"plain": "CUDA kernel chain: all blocks that are resident wait for others"},
    "no meeting": {"plain": "meet: wrong numbers", "threads": "data race"},
    "too many": {"plain": "CUDA kernel meet: more blocks than can be under way at once"},
}


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Programs:
    return Programs(tmp_path_factory.mktemp("emulation"))


class Programs:
    """The check, built once with each sanitizer that a test asks for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._built: dict[tuple[str, ...], Path] = {}

    def built(self, sanitizer: str, *options: str) -> Path:
        key = sanitizer, *options
        if key not in self._built:
            self._built[key] = build(self._folder, "check", [SOURCES / "check" / "emulate.cpp"], sanitizer, *options)
        return self._built[key]


@pytest.mark.parametrize("sanitizer", SANITIZERS)
def test_kernels_that_are_right_pass(sanitizer: str, programs: Programs) -> None:
    done = run(programs.built(sanitizer), "right")
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]


def test_processors_without_a_switch_of_their_own_swap_contexts(programs: Programs) -> None:
    done = run(programs.built("plain", "-DAIGC_SWAP_CONTEXTS"), "right")
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]


@pytest.mark.parametrize(
    ("mistake", "sanitizer"), [(mistake, sanitizer) for mistake, found in FOUND.items() for sanitizer in found]
)
def test_a_planted_mistake_is_found(mistake: str, sanitizer: str, programs: Programs) -> None:
    done = run(programs.built(sanitizer), mistake)
    assert done.returncode != 0
    assert FOUND[mistake][sanitizer] in done.stdout + done.stderr


KERNELS = sorted((SOURCES / "cuda").glob("*.cu"))


@pytest.fixture(scope="module", params=["addresses", "threads"])
def kernels(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    sources = [SOURCES / "check" / "kernels.cpp", *KERNELS]
    return build(tmp_path_factory.mktemp("kernels"), "kernels", sources, request.param)


@pytest.mark.parametrize("op", [path.stem for path in KERNELS if path.stem != "probe"])
def test_sanitizers_find_nothing_in_the_kernels(op: str, kernels: Path) -> None:
    done = run(kernels, op)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
