"""No kernel's machine code gets worse than machine_code.json has it: on sm_80 and sm_90, without a card."""

from __future__ import annotations

import importlib.util
import shutil
from functools import cache

import machine_code
import pytest
from machine_code import ARCHITECTURES, FORBIDDEN, Code, Launch
from watching import INTERPRETED

from aigc_fast.runtime import native

has_triton = importlib.util.find_spec("triton") is not None
no_triton = "Triton's kernels are interpreted here" if INTERPRETED else "the package triton is not installed"
needs_triton = pytest.mark.skipif(INTERPRETED or not has_triton, reason=no_triton)
ROWS = machine_code.table()


@cache
def launches(architecture: int) -> dict[str, Launch]:
    return machine_code.triton_launches(architecture)


@cache
def library() -> dict[str, Code]:
    return machine_code.library_codes()


def check(name: str, code: Code) -> None:
    """Holds a kernel's code to its row."""
    row = ROWS[name]
    assert code.stack == 0, f"{name}: {code.stack} bytes of stack"
    for kind in FORBIDDEN:
        assert code.instructions[kind] == 0, f"{name}: {code.instructions[kind]} {kind}"
    assert code.registers <= row["registers"], f"{name}: {code.registers} registers, at most {row['registers']}"
    assert code.shared <= row["shared"], f"{name}: {code.shared} bytes of shared memory, at most {row['shared']}"
    assert code.warps >= row["warps"], f"{name}: {code.warps} warps at a time, at least {row['warps']}"
    missing = [kind for kind in row["instructions"] if not code.instructions[kind]]
    assert not missing, f"{name}: no {', '.join(missing)}"
    has_doubles = code.instructions["doubles"] > 0
    assert has_doubles == ("doubles" in row["instructions"]), f"{name}: {code.instructions['doubles']} doubles"


TRITON = sorted({name.rsplit(" ", 1)[0] for name in ROWS if name.startswith("triton ")})
CUDA = [name for name in ROWS if name.startswith("cuda ")]


def triton_kernels() -> list:
    """Every kernel and variant for an architecture or two, and a few of attention's, which take the longest to compile;
    in `make gate` all for both: each takes a second or more."""
    once = {"bfloat16": 90, "float16": 80}
    often = [("<bfloat16> causal, 64", 90), ("<float16> causal, 64", 80), ("<float32> one query, 128", 80)]

    def marks(name: str, architecture: int) -> list[pytest.MarkDecorator]:
        dtype = name.split("<")[1].split(">")[0]
        if " attention " in name:
            rare = not any(name.endswith(variant) and architecture == of for variant, of in often)
        else:
            rare = once.get(dtype, architecture) != architecture
        return [pytest.mark.gate] if rare else []

    pairs = [(name, architecture) for name in TRITON for architecture in ARCHITECTURES]
    return [pytest.param(*pair, marks=marks(*pair)) for pair in pairs]


@needs_triton
@pytest.mark.parametrize(("name", "architecture"), triton_kernels())
def test_triton_kernels(name: str, architecture: int) -> None:
    check(f"{name} sm_{architecture}", machine_code.triton_code(launches(architecture)[name], architecture))


@needs_triton
def test_the_table_has_every_launch_of_triton() -> None:
    for architecture in ARCHITECTURES:
        assert sorted(launches(architecture)) == TRITON


def require_library() -> None:
    if native.cuda is None or native.is_emulated:
        pytest.skip(native.cuda_reason() or "the CUDA kernels are emulated here")
    if machine_code.tool("cuobjdump") is None or shutil.which("c++filt") is None:
        pytest.skip("neither Triton nor a CUDA toolkit, or no binutils: there is no cuobjdump or c++filt")


@pytest.mark.parametrize("name", CUDA)
def test_cuda_kernels(name: str) -> None:
    require_library()
    check(name, library()[name])


def test_the_table_has_every_cuda_kernel() -> None:
    require_library()
    assert sorted(library()) == sorted(CUDA)


def test_a_regression_is_told_with_the_kernels_name() -> None:
    name, row = next(pair for pair in ROWS.items() if pair[1]["instructions"] == ["wide loads", "wide stores"])
    good = Code(row["registers"], 0, row["shared"], dict.fromkeys(machine_code.INSTRUCTIONS, 0))
    good.instructions.update(dict.fromkeys(row["instructions"], 1))
    check(name, good)
    worse = {
        "stack": good._replace(stack=8),
        "registers": good._replace(registers=row["registers"] + 1),
        "shared memory": good._replace(shared=row["shared"] + 1),
        "local loads": good._replace(instructions={**good.instructions, "local loads": 1}),
        "no ": good._replace(instructions=dict.fromkeys(machine_code.INSTRUCTIONS, 0)),
    }
    for what, code in worse.items():
        with pytest.raises(AssertionError, match=what) as told:
            check(name, code)
        assert name in str(told.value)
