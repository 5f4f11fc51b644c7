"""The machine code of the CUDA and Triton kernels: registers, stack, shared memory and instructions, by kernel.

`python tests/machine_code.py [cuda] [triton]` adds what it finds to machine_code.json, which the tests hold later code
to: with each version of Triton that the table should allow, and with a CUDA module that was just built.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from parity import float32_precision
from torch import Tensor

from aigc_fast.runtime import native
from aigc_fast.runtime.dtypes import UP_TO_FLOAT32

TABLE = Path(__file__).with_suffix(".json")
ARCHITECTURES = (80, 90)
# What the table counts, by the instructions' names; the first two no kernel may have.
INSTRUCTIONS = {
    "local loads": r"LDL",
    "local stores": r"STL",
    "wide loads": r"LDG\S*\.128",
    "wide stores": r"STG\S*\.128",
    "tensor cores": r"HMMA|HGMMA",
    "doubles": r"D(ADD|MUL|FMA)",
    "asynchronous copies": r"LDGSTS",
}
FORBIDDEN = ("local loads", "local stores")
_WARP, _REGISTERS_AT_ONCE = 32, 8
# Of a multiprocessor, of sm_80 where it has less than sm_90, and the shared memory that every block takes besides.
_MOST_WARPS, _REGISTERS, _SHARED, _SHARED_OF_BLOCK = 64, 1 << 16, 164 << 10, 1 << 10


class Code(NamedTuple):
    """A kernel's machine code.

    Attributes:
        registers: of a thread.
        stack: bytes of a thread.
        shared: bytes of a block, without what a launch adds.
        instructions: how many of each kind of INSTRUCTIONS.
        threads: of a block; CUDA's kernels do not tell, and most have so many.
    """

    registers: int
    stack: int
    shared: int
    instructions: dict[str, int]
    threads: int = 256

    @property
    def warps(self) -> int:
        """How many warps a multiprocessor holds at a time: the occupancy, of 64."""
        of_block = self.threads // _WARP
        by_registers = _REGISTERS // (self._allotted * _WARP) // of_block
        blocks = min(_MOST_WARPS // of_block, by_registers, _SHARED // (self.shared + _SHARED_OF_BLOCK))
        return blocks * of_block

    @property
    def _allotted(self) -> int:
        return max(1, -(-self.registers // _REGISTERS_AT_ONCE)) * _REGISTERS_AT_ONCE

    def row(self) -> dict[str, Any]:
        """What the table keeps: registers as they are allotted, and which kinds of instructions there are."""
        kinds = [kind for kind, count in self.instructions.items() if count]
        return {"registers": self._allotted, "shared": self.shared, "warps": self.warps, "instructions": kinds}


def tool(name: str) -> str | None:
    """NVIDIA's binary tools come with Triton."""
    found = importlib.util.find_spec("triton")
    at = Path(found.submodule_search_locations[0]) / "backends" / "nvidia" / "bin" / name if found else None
    return str(at) if at is not None and at.exists() else shutil.which(name)


def _run(*command: object) -> str:
    return subprocess.run([*map(str, command)], capture_output=True, text=True, check=True).stdout


def codes_in(path: Path) -> dict[tuple[str, str], Code]:
    """The kernels in a cubin or a library, by architecture and mangled name."""
    dumper = tool("cuobjdump")
    used = _by_architecture(_run(dumper, "-res-usage", path), r"Function (\S+):\s+(.*)")
    sass = _by_architecture(_run(dumper, "-sass", path), r"Function : (\S+)\n(.*?)(?=Function : |\Z)")
    found = {}
    for key, line in used.items():
        numbers = {name: int(number) for name, number in re.findall(r"(REG|STACK|SHARED):(\d+)", line)}
        names = Counter(re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?\w+\s+)?([A-Z][\w.]*)", sass[key], re.MULTILINE))
        counted = {
            kind: sum(count for name, count in names.items() if re.match(pattern, name))
            for kind, pattern in INSTRUCTIONS.items()
        }
        found[key] = Code(numbers["REG"], numbers["STACK"], numbers["SHARED"], counted)
    return found


def _by_architecture(dump: str, pattern: str) -> dict[tuple[str, str], str]:
    """What stands for each architecture and kernel; one cubin's dump names no architecture before it begins."""
    parts = re.split(r"arch = (sm_\w+)", dump)
    pairs = zip(parts[1::2], parts[2::2], strict=True) if len(parts) > 1 else [("", dump)]
    return {
        (architecture, name): text
        for architecture, part in pairs
        for name, text in re.findall(pattern, part, re.DOTALL if "\\Z" in pattern else 0)
    }


def library_codes() -> dict[str, Code]:
    """The kernels of the CUDA module."""
    found = codes_in(Path(native.cuda.__file__))
    names = _run("c++filt", *(name for _, name in found)).splitlines()
    return {
        f"cuda {_short(name)} {architecture}": code
        for ((architecture, _), code), name in zip(found.items(), names, strict=True)
    }


def _short(name: str) -> str:
    """aigc::cuda::random::(anonymous namespace)::normal_kernel<float>(...) as random normal<float>."""
    pattern = r"aigc::cuda::(\w+)::(?:\(anonymous namespace\)::)?(\w+?)_kernel(<.*?>)?\("
    op, kernel, arguments = re.search(pattern, name).groups()
    return f"{op} {kernel}" + re.sub(r"aigc::cuda::(\w+::)?", "", arguments or "")


class Launch(NamedTuple):
    """A Triton kernel's launch: the function and its arguments by name."""

    kernel: Any
    arguments: dict[str, Any]


@contextmanager
def launches(architecture: int = 90) -> Iterator[list[Launch]]:
    """Triton kernels that are launched in the block are not run but noted, as for a card of an architecture."""
    from triton.runtime import KernelInterface

    found: list[Launch] = []

    def launcher(kernel: Any, grid: Any) -> Any:
        def launch(*args: Any, **options: Any) -> None:
            found.append(Launch(kernel, dict(zip(kernel.arg_names, args, strict=False)) | options))

        return launch

    on_device = patch.object(torch.cuda, "device", lambda device: nullcontext())
    capability = patch.object(torch.cuda, "get_device_capability", lambda device: divmod(architecture, 10))
    with patch.object(KernelInterface, "__getitem__", launcher), on_device, capability:
        yield found


def triton_launches(architecture: int) -> dict[str, Launch]:
    """Every launch of the Triton kernels, by op, kernel, dtype and variant."""
    found = {}
    for dtype in UP_TO_FLOAT32:
        for op, variant, call in TRITON_CALLS:
            with launches(architecture) as launched:
                call(importlib.import_module(f"aigc_fast.ops.{op}.triton"), dtype)
            for one in launched:
                name = f"{one.kernel.__name__.strip('_')}<{str(dtype).removeprefix('torch.')}>"
                found[f"triton {op} {name}{_absent(one) if variant is None else f' {variant}'}"] = one
    return found


def _absent(launch: Launch) -> str:
    """What names a variant that has no name: the optional tensors that are not there."""
    return "".join(f" without {name}" for name, value in launch.arguments.items() if value is None)


def meta(*size: int, dtype: torch.dtype = torch.int64) -> Tensor:
    return torch.empty(size, dtype=dtype, device="meta")


_BOTH = torch.float32, torch.bfloat16
# By the variant's name, those of float16 being as bfloat16's.
_ATTENTIONS: dict[str, dict[str, Any]] = {
    "causal, 64": {"dtypes": UP_TO_FLOAT32, "size": 64, "right": 0},
    "causal, 128": {"dtypes": _BOTH, "size": 128, "right": 0},
    "causal, 256": {"dtypes": _BOTH, "size": 256, "right": 0},
    "high, 128": {"dtypes": [torch.float32], "size": 128, "precision": "high"},
    "high, 256": {"dtypes": [torch.float32], "size": 256, "precision": "high"},
    "high, 64": {"dtypes": [torch.float32], "size": 64, "precision": "high"},
    "mask, 80": {"dtypes": [torch.bfloat16], "size": 80, "mask": torch.bool},
    "bias, 64": {"dtypes": [torch.bfloat16], "size": 64, "mask": torch.bfloat16},
    "dropout, 64": {"dtypes": _BOTH, "size": 64, "dropout": True},
    "one query, 128": {"dtypes": _BOTH, "size": 128, "queries": 1},
}


def _attend(
    op: Any,
    dtype: torch.dtype,
    dtypes: Sequence[torch.dtype],
    size: int,
    queries: int = 2048,
    mask: torch.dtype | None = None,
    dropout: bool = False,
    right: int = -1,
    precision: str = "highest",
) -> None:
    """Forward and, for many queries, backward of 8 heads, of which 4 share keys."""
    if dtype not in dtypes:
        return
    query, output = meta(2, 8, queries, size, dtype=dtype), meta(2, 8, queries, size, dtype=dtype)
    key, sums = meta(2, 2, 2048, size, dtype=dtype), meta(2, 8, queries, dtype=torch.float32)
    key_of_dropout = meta(2) if dropout else None
    hidden = None if mask is None else meta(2048, 2048, dtype=mask).expand(2, 8, -1, -1)
    rest = hidden, key_of_dropout, 0.3 if dropout else 0.0, -1, right, 0, 0.1
    with float32_precision(precision):
        op.attention((output, sums), query, key, key, *rest)
        if queries > 1:
            op.attention_backward((query, key, key), output, query, key, key, *rest)


def _filter(op: Any, dtype: torch.dtype, order: int, kind: str) -> None:
    """A recursion with the gradient to its coefficients, or its transpose; all compute in float32."""
    if dtype != torch.float32:
        return
    x, varying = meta(64, 16_000, dtype=dtype), "varying" in kind
    coeffs = meta(*((64, 16_000) if varying else (64,)), order, dtype=dtype)
    if "transposed" in kind:
        op.recursion_transposed(x, x, coeffs)
    else:
        op.recursion(x, x, coeffs, meta(64, order, dtype=dtype))
        op.recursion_lags(coeffs, x, x, None, order, varying)


_SIZE = 64, 4096
_SAMPLES = {"z": (True, False), "kl": (False, True), "both": (True, True)}
# A room, what names its kernels' variant, where it is not what they lack, and what launches them.
TRITON_CALLS = [
    ("random", None, lambda op, dtype: op.normal(meta(*_SIZE, dtype=dtype), _SIZE, meta(2), dtype)),
    ("random", None, lambda op, dtype: op.uniform(meta(*_SIZE, dtype=dtype), _SIZE, meta(2), dtype)),
    ("random", None, lambda op, dtype: op.dropout(*[meta(*_SIZE, dtype=dtype)] * 2, meta(2), 0.5)),
    *(
        ("reparameterize", None, lambda op, dtype, shown=shown: _sample(op, dtype, *shown))
        for shown in _SAMPLES.values()
    ),
    ("reparameterize", None, lambda op, dtype: _differentiate(op, dtype, True)),
    ("reparameterize", None, lambda op, dtype: _differentiate(op, dtype, False)),
    *(("attention", name, partial(_attend, **made)) for name, made in _ATTENTIONS.items()),
    *(
        ("recursion", f"{kind}, order {order}", partial(_filter, order=order, kind=kind))
        for order in (1, 8)
        for kind in ("constant", "varying", "transposed", "transposed varying")
    ),
    # A transposed convolution in channels_last, a plain one that is contiguous and has no bias, and their gradient.
    ("conv_transpose", None, lambda op, dtype: _convolve(op, _maps(dtype, torch.channels_last), True)),
    ("conv_transpose", None, lambda op, dtype: _convolve(op, _maps(dtype, torch.contiguous_format), False)),
    ("conv_transpose", None, lambda op, dtype: _weigh(op, *_maps(dtype, torch.channels_last)[:2])),
]


def _maps(dtype: torch.dtype, format: torch.memory_format) -> list[Tensor]:
    """A small map, a large one of twice its sizes, and the weights between them."""
    shapes = (16, 64, 16, 16), (16, 64, 32, 32), (64, 64, 4, 4)
    return [torch.empty(shape, dtype=dtype, device="meta", memory_format=format) for shape in shapes]


def _plan(input: Tensor, transposed: bool) -> Any:
    from aigc_fast.ops.conv_transpose.plan import make_plan

    pairs = (2, 2), (1, 1), (0, 0), (1, 1)
    return make_plan(tuple(input.shape), (64, 64, 4, 4), None, *pairs, 1, transposed)


def _convolve(op: Any, maps: list[Tensor], transposed: bool) -> None:
    small, large, weight = maps
    input, bias = (small, meta(64, dtype=small.dtype)) if transposed else (large, None)
    op.prepare_forward(input, weight, bias, _plan(input, transposed), "leaky_relu", 0.2)(input, weight, bias)


def _weigh(op: Any, small: Tensor, large: Tensor) -> None:
    op.prepare_weight_gradient(large, small, _plan(large, False), (64, 64, 4, 4))(large, small)


def _sample(op: Any, dtype: torch.dtype, with_z: bool, with_kl: bool) -> None:
    mu, kl = meta(*_SIZE, dtype=dtype), meta(_SIZE[0], dtype=dtype)
    op.sample((mu if with_z else None, kl if with_kl else None), mu, mu, meta(2) if with_z else None)


def _differentiate(op: Any, dtype: torch.dtype, with_kl: bool) -> None:
    mu, kl = meta(*_SIZE, dtype=dtype), meta(_SIZE[0], dtype=dtype)
    op.differentiate((mu if with_kl else None, mu), mu, kl if with_kl else None, mu if with_kl else None, mu, meta(2))


_TRITON_TYPES = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.float64: "*fp64",
    torch.int64: "*i64",
    torch.int32: "*i32",
    torch.uint8: "*u8",
}


def _type_of(value: Any) -> str:
    if isinstance(value, Tensor):
        return _TRITON_TYPES[value.dtype]
    if isinstance(value, int):
        return "i32" if -(2**31) <= value < 2**31 else "i64"
    return "fp32"


def triton_code(launch: Launch, architecture: int) -> Code:
    """What Triton compiles for a launch, without a driver."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature, constexprs, attributes = {}, {}, {}
    for place, param in enumerate(launch.kernel.params):
        name, value = param.name, launch.arguments[param.name]
        specialised = isinstance(value, int) and not param.do_not_specialize
        if param.is_constexpr or value is None or (specialised and value == 1):
            signature[name], constexprs[name] = "constexpr", value
            continue
        signature[name] = _type_of(value)
        if isinstance(value, Tensor) or (specialised and value % 16 == 0):
            attributes[(place,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=launch.kernel, signature=signature, constexprs=constexprs, attrs=attributes)
    options = {"enable_fp_fusion": True, "num_warps": 4}
    options |= {name: launch.arguments[name] for name in ("num_warps", "num_stages") if name in launch.arguments}
    compiled = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(compiled.asm["cubin"])
        (code,) = codes_in(cubin).values()
    return code._replace(shared=compiled.metadata.shared, threads=_WARP * compiled.metadata.num_warps)


def triton_codes() -> Iterator[tuple[str, Code]]:
    """By name and architecture."""
    for architecture in ARCHITECTURES:
        for name, launch in triton_launches(architecture).items():
            yield f"{name} sm_{architecture}", triton_code(launch, architecture)


def table() -> dict[str, dict[str, Any]]:
    """The most that each kernel may use, and the kinds of instructions that it has."""
    return json.loads(TABLE.read_text()) if TABLE.exists() else {}


def add(rows: dict[str, dict[str, Any]], name: str, row: dict[str, Any]) -> None:
    """Lets the table allow what was found: of instructions, those that it always has stand there."""
    known = rows.get(name, row)
    for number in ("registers", "shared"):
        row[number] = max(row[number], known[number])
    row["warps"] = min(row["warps"], known["warps"])
    row["instructions"] = [kind for kind in row["instructions"] if kind in known["instructions"]]
    rows[name] = row


def main(*parts: str) -> None:
    found: dict[str, Code] = {}
    if "cuda" in parts:
        found |= library_codes()
    if "triton" in parts:
        found |= triton_codes()
    rows = table()
    for name, code in found.items():
        add(rows, name, code.row())
    lines = (f'  "{name}": {json.dumps(row)}' for name, row in sorted(rows.items()))
    TABLE.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main(*(sys.argv[1:] or ("cuda", "triton")))
