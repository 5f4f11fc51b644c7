"""What csrc/core promises to the kernels, and how csrc/cpu keeps its ops apart."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

SOURCES = Path(__file__).parents[1] / "csrc"
COMPILER = shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++")

needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no compiler")
pytestmark = pytest.mark.skipif(not SOURCES.exists(), reason="no sources")


@needs_compiler
@pytest.mark.parametrize(
    ("check", "sources"), [("arena", ("core/arena.cpp",)), ("packed", ())], ids=["scopes of memory", "packed operands"]
)
def test_what_a_check_finds(check: str, sources: tuple[str, ...], tmp_path: Path) -> None:
    program = tmp_path / "check"
    options = ["-std=gnu++20", "-O1", "-pthread", "-DAIGC_LEVEL=baseline", f"-I{SOURCES}"]
    units = [SOURCES / "check" / f"{check}.cpp", *(SOURCES / source for source in sources)]
    subprocess.run([COMPILER, *options, *units, "-o", program], check=True)
    done = subprocess.run([program], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@needs_compiler
@pytest.mark.parametrize("check", ["team", "pool"])
def test_members_of_a_team_and_ranges_come_once_each(check: str, tmp_path: Path) -> None:
    program = tmp_path / "check"
    sources = SOURCES / "check" / f"{check}.cpp", SOURCES / "core" / "parallel.cpp"
    options = ["-std=gnu++20", "-O1", "-pthread", "-DAIGC_LEVEL=baseline", f"-I{SOURCES}"]
    subprocess.run([COMPILER, *options, *sources, "-ldl", "-o", program], check=True)
    done = subprocess.run([program], capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "4"})
    assert done.returncode == 0, done.stdout


def code_of(source: Path) -> str:
    """Without comments and the preprocessor's lines."""
    return re.sub(r"//.*|^\s*#(.*\\\n)*.*", "", source.read_text(), flags=re.MULTILINE).strip()


def namespace_of(source: Path) -> str:
    device, op = source.relative_to(SOURCES).parts[:2]
    return f"aigc::{'AIGC_LEVEL' if device == 'cpu' else device}::{Path(op).stem}"


@pytest.mark.parametrize(
    "source",
    [
        pytest.param(path, id=str(path.relative_to(SOURCES)))
        for path in sorted([*(SOURCES / "cpu").rglob("*.*"), *(SOURCES / "cuda").glob("*.cu")])
    ],
)
def test_all_of_an_op_is_in_its_namespace(source: Path) -> None:
    code = code_of(source)
    assert code.startswith(f"namespace {namespace_of(source)} {{")
    depth = 0
    for brace in re.finditer(r"[{}]", code):
        depth += 1 if brace[0] == "{" else -1
        assert depth > 0 or brace.end() == len(code), f"code after the namespace: {code[brace.end() :][:80]}"


@pytest.fixture(scope="module")
def abi(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Kernels of csrc/check/abi.cpp, called as `_C` calls its own."""
    if COMPILER is None or not Path(sysconfig.get_path("include"), "Python.h").exists():
        pytest.skip("no compiler, or Python without its headers")
    module = tmp_path_factory.mktemp("abi") / f"abi{sysconfig.get_config_var('EXT_SUFFIX')}"
    options = ["-std=gnu++20", "-fPIC", "-shared", "-DAIGC_LEVEL=check", f"-I{SOURCES}"]
    options += [f"-I{sysconfig.get_path('include')}"]
    subprocess.run([COMPILER, *options, SOURCES / "check" / "abi.cpp", "-o", module], check=True)
    spec = importlib.util.spec_from_file_location("abi", module)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return SimpleNamespace(**loaded.kernels)


def test_a_kernel_takes_lists_of_tensors(abi: SimpleNamespace) -> None:
    tensors = [torch.ones(size) for size in (1, 2, 3)]
    assert abi.elements([]) == 0
    assert abi.elements(tensors) == 6
    assert abi.elements((None, *tensors, None)) == 2006
    assert abi.elements(tensors * 50) == 300
    assert abi.elements_of_two(tensors, torch.ones(5), tensors[:2]) == 653
    with pytest.raises(TypeError, match="expected a sequence of tensors"):
        abi.elements(3)
    with pytest.raises(AttributeError):
        abi.elements([torch.ones(1), 3.0])


def test_a_kernel_takes_as_many_tensors_as_it_needs(abi: SimpleNamespace) -> None:
    assert abi.many(*(torch.ones(i % 2) for i in range(14))) == 0b01010101010101


@pytest.mark.parametrize("size", [0, 3, 96, 97, 5000])
def test_a_kernel_takes_lists_of_integers_of_any_size(size: int, abi: SimpleNamespace) -> None:
    assert abi.sum_of(size, list(range(size))) == sum(range(size))


def test_a_handle_lives_until_it_is_dropped(abi: SimpleNamespace) -> None:
    first, second = abi.make_counter(10), abi.make_counter(0)
    assert [abi.count(first, 1), abi.count(second, 5), abi.count(first, 1)] == [11, 5, 12]
    assert abi.counters() == 2
    del first
    assert abi.counters() == 1
    del second
    assert abi.counters() == 0


def test_a_kernel_that_makes_no_handle_gives_none(abi: SimpleNamespace) -> None:
    assert abi.make_counter(-1) is None


def test_a_kernel_refuses_what_is_no_handle_of_its_own(abi: SimpleNamespace) -> None:
    for other in (None, 3, torch.ones(1), abi.make_other()):
        with pytest.raises(TypeError, match="expected a handle of counter, got"):
            abi.count(other, 1)
