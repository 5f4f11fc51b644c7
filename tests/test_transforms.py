"""Every public function under every transform and dtype: the README's table, cell by cell.

A cell says who runs: "✓" a native kernel, "ref" plain PyTorch, "–" means that there is nothing to do.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.utils.checkpoint
from calls import CASES, Case, leaves
from parity import DTYPES, FLOORS, opcheck, relative_error
from places import ELSEWHERE, EMULATOR, INTERPRETER, Place, there
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from watching import launches

import aigc_fast
import aigc_fast.functional as AF
from aigc_fast.runtime import native
from aigc_fast.runtime.backends import asked
from aigc_fast.runtime.operator import operators

README = Path(__file__).parent.parent / "README.md"


# Ops whose derivative reads a tensor's values, which a traced graph does not have.
READ_LENGTHS = {"attention_varlen_backward"}
OF_PLAIN_DERIVATIVES = {"kl_standard_normal"}


def natively() -> AbstractContextManager[None]:
    """By our kernels where there are any: so small a call may be PyTorch's own."""
    return aigc_fast.backend("auto" if native.cpu_reason() else "cpu")


def assert_close(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    assert relative_error(found, expected) <= 3 * FLOORS[expected.dtype]


def gradients(function: Callable[..., Tensor], tensors: list[Tensor], create_graph: bool = False) -> list[Tensor]:
    output = function(*tensors)
    return list(torch.autograd.grad(output.sin().sum(), tensors, create_graph=create_graph))


def expected_gradients(case: Case, tensors: list[Tensor]) -> list[Tensor]:
    with aigc_fast.backend("reference"):
        return gradients(case.theirs, tensors)


def check_forward(case: Case) -> None:
    tensors = case.inputs()
    assert_close(case.ours(*tensors), case.theirs(*tensors))


def check_backward(case: Case) -> None:
    tensors = leaves(case.inputs())
    for ours, theirs in zip(gradients(case.ours, tensors), expected_gradients(case, tensors), strict=True):
        assert_close(ours, theirs)


def second_gradients(function: Callable[..., Tensor], tensors: list[Tensor]) -> list[Tensor]:
    total = sum(grad.square().sum() for grad in gradients(function, tensors, create_graph=True))
    return list(torch.autograd.grad(total, tensors, allow_unused=True))


def check_double_backward(case: Case, inputs: list[Tensor] | None = None) -> None:
    tensors = leaves(case.inputs() if inputs is None else inputs)
    found = second_gradients(case.ours, tensors)
    with aigc_fast.backend("reference"):
        expected = second_gradients(case.theirs, tensors)
    assert_all_close(found, expected)


def assert_all_close(found: list[Tensor | None], expected: list[Tensor | None]) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            assert_close(ours, theirs)


def check_forward_ad(case: Case) -> None:
    def tangent(function: Callable[..., Tensor], tensors: list[Tensor], directions: list[Tensor]) -> Tensor:
        with forward_ad.dual_level():
            pairs = [forward_ad.make_dual(a, b) for a, b in zip(tensors, directions, strict=True)]
            return forward_ad.unpack_dual(function(*pairs)).tangent.clone()

    tensors, directions = case.inputs(torch.float64), case.inputs(torch.float64)
    step = 1e-6
    forward = case.theirs(*[a + step * b for a, b in zip(tensors, directions, strict=True)])
    backward = case.theirs(*[a - step * b for a, b in zip(tensors, directions, strict=True)])
    numeric = (forward - backward) / (2 * step)
    assert relative_error(tangent(case.ours, tensors, directions), numeric) < 1e-7
    _, found = torch.func.jvp(case.ours, tuple(tensors), tuple(directions))
    assert relative_error(found, numeric) < 1e-7


def check_vmap(case: Case) -> None:
    batch = [torch.stack([tensor, tensor * 0.5, -tensor]) for tensor in case.inputs()]
    torch.manual_seed(7)
    found = torch.vmap(case.call, randomness="same")(*batch)
    assert_close(found, torch.stack([case.theirs(*[tensor[i] for tensor in batch]) for i in range(3)]))


def check_compile(case: Case) -> None:
    tensors = leaves(case.inputs())
    # All cases share the code that is compiled, of which so many graphs are kept.
    torch.compiler.reset()
    compiled = torch.compile(case.call, fullgraph=True, backend="aot_eager")

    def ours(*tensors: Tensor) -> Tensor:
        torch.manual_seed(7)
        return compiled(*tensors)

    assert_close(ours(*tensors).detach(), case.theirs(*tensors).detach())
    if case.theirs(*tensors).requires_grad:
        for found, expected in zip(gradients(ours, tensors), expected_gradients(case, tensors), strict=True):
            assert_close(found, expected)


def check_export(case: Case) -> None:
    class Module(torch.nn.Module):
        def forward(self, *tensors: Tensor) -> Tensor:
            return case.call(*tensors)

    tensors = case.inputs()
    with warnings.catch_warnings():
        # As torch 2.6 says of a tensor that the function makes of numbers.
        warnings.filterwarnings("ignore", "(Attempted to insert a get_attr Node with no|Node lifted_tensor_)")
        program = torch.export.export(Module(), tuple(tensors)).module()
    torch.manual_seed(7)
    assert_close(program(*tensors), case.theirs(*tensors))


def check_autocast(case: Case) -> None:
    first, *rest = case.inputs()
    for tensors in ([first, *rest], [first.bfloat16(), *rest], [first, *(tensor.bfloat16() for tensor in rest)]):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert_close(case.ours(*tensors), case.theirs(*tensors))


def check_non_contiguous(case: Case) -> None:
    tensors = leaves([tensor.transpose(0, -1).contiguous().transpose(0, -1) for tensor in case.inputs()])
    assert_close(case.ours(*tensors), case.theirs(*tensors))
    if case.theirs(*tensors).requires_grad:
        for ours, theirs in zip(gradients(case.ours, tensors), expected_gradients(case, tensors), strict=True):
            assert_close(ours, theirs)


def check_zero_size(case: Case) -> None:
    first, *rest = case.inputs()
    paired = [tensor[:0] if tensor.shape == first.shape else tensor for tensor in rest]
    tensors = leaves([first[:0], *paired])
    ours, theirs = case.ours(*tensors), case.theirs(*tensors)
    assert ours.shape == theirs.shape
    if theirs.requires_grad:
        for found, expected in zip(gradients(case.ours, tensors), expected_gradients(case, tensors), strict=True):
            torch.testing.assert_close(found, expected)
        check_double_backward(case, tensors)


def check_deterministic(case: Case) -> None:
    tensors = leaves(case.inputs())
    torch.use_deterministic_algorithms(True)
    try:
        runs = [[case.ours(*tensors).detach()] for _ in range(2)]
        if case.ours(*tensors).requires_grad:
            for run in runs:
                run += gradients(case.ours, tensors)
    finally:
        torch.use_deterministic_algorithms(False)
    for one, two in zip(*runs, strict=True):
        assert torch.equal(one, two)


def check_dtensor(case: Case) -> None:
    from torch.distributed.tensor import Replicate, distribute_tensor

    with one_process() as mesh, warnings.catch_warnings():
        # As torch 2.6 says of every mesh of CPUs.
        warnings.filterwarnings("ignore", "DTensor random operators may not have complete support on cpu")
        plain = leaves(case.inputs())
        tensors = leaves([distribute_tensor(tensor.detach(), mesh, [Replicate()]) for tensor in plain])
        found = case.ours(*tensors)
        assert_close(getattr(found, "full_tensor", lambda: found)(), case.theirs(*plain))
        if found.requires_grad:
            for derive in (gradients, second_gradients):
                ours = [None if each is None else each.full_tensor() for each in derive(case.ours, tensors)]
                with aigc_fast.backend("reference"):
                    assert_all_close(ours, derive(case.theirs, plain))


def check_cuda_graph(case: Case) -> None:
    tensors = [tensor.cuda() for tensor in case.inputs()]
    for _ in range(2):
        case.call(*tensors)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = case.call(*tensors)
    for tensor, other in zip(tensors, case.inputs(), strict=True):
        tensor.copy_(other)
    graph.replay()
    torch.cuda.synchronize()
    assert not output.isnan().any()
    if case.expected is not None:
        assert relative_error(output, case.expected(*tensors)) < 1e-4


@contextmanager
def one_process() -> Iterator[Any]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield dist.init_device_mesh("cpu", (1,))
    finally:
        dist.destroy_process_group()


def check_dtype(name: str) -> Callable[[Case], None]:
    def check(case: Case) -> None:
        tensors = leaves(case.inputs(DTYPES[name]))
        assert_close(case.ours(*tensors), case.theirs(*tensors))
        if case.theirs(*tensors).requires_grad:
            for ours, theirs in zip(gradients(case.ours, tensors), expected_gradients(case, tensors), strict=True):
                assert_close(ours, theirs)

    return check


CHECKS = {
    "forward": check_forward,
    "backward": check_backward,
    "double backward": check_double_backward,
    "forward AD": check_forward_ad,
    "vmap": check_vmap,
    "compile": check_compile,
    "export": check_export,
    "autocast": check_autocast,
    "non-contiguous": check_non_contiguous,
    "zero-size": check_zero_size,
    "deterministic": check_deterministic,
    "CUDA graph": check_cuda_graph,
    "DTensor": check_dtensor,
    **{name: check_dtype(name) for name in DTYPES},
}


def readme_table(title: str) -> dict[str, dict[str, str]]:
    """The README's table of this title: for each function, the mark of each column."""
    lines = README.read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {title} |"))
    table = takewhile(lambda line: line.startswith("|"), lines[start:])
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    names = [re.findall(r"`(\w+)`", cell) for cell in cells[0][1:]]
    rows = [row for row in cells[2:] if row[0] in CHECKS]
    return {name: {row[0]: row[1 + i] for row in rows} for i, group in enumerate(names) for name in group}


TABLE = readme_table("transform")
ON_A_CARD = readme_table("on a card")
CELLS = [
    pytest.param(name, column, mark, id=f"{name}-{column}", marks=[pytest.mark.gpu] if column == "CUDA graph" else [])
    for name, row in TABLE.items()
    for column, mark in row.items()
    if mark != "–"
]


def test_the_table_has_every_function_and_every_transform() -> None:
    assert set(TABLE) == set(AF.__all__) == set(CASES)
    for name, row in TABLE.items():
        assert list(row) == list(CHECKS), name
        assert set(row.values()) <= {"✓", "ref", "–"}, name


@pytest.mark.parametrize(("name", "column", "mark"), CELLS)
def test_cell(name: str, column: str, mark: str) -> None:
    is_native = mark == "✓" and column != "CUDA graph" and native.cpu_reason() is None
    with aigc_fast.backend("cpu" if is_native else "auto"), launches() as called:
        CHECKS[column](CASES[name])
    if column not in ("CUDA graph", "zero-size") and native.cpu_reason() is None:
        assert bool(called) == is_native, f"the README says {mark}; kernels called: {called}"


# By the letter of a mark, in lower case of what was tested without a card alone, the backend that computes.
LETTERS = {"c": "cuda", "t": "triton"}
# In Triton's interpreter each tap of a block of pixels takes some milliseconds: these take the ops of one dimension.
SLOW_IN_INTERPRETER = {f"conv{kind}{d}d" for kind in ("", "_transpose") for d in (2, 3)}
CARDS_CELLS = [
    pytest.param(name, column, place, id=f"{name}-{column}-{place}")
    for name, row in ON_A_CARD.items()
    for column, mark in row.items()
    for place in ELSEWHERE
    if place.device == "cpu"
    and any(LETTERS[letter] == place.backend for letter in mark.lower() if letter in LETTERS)
    and place not in EMULATOR[1:]
    and not (place is INTERPRETER and name in SLOW_IN_INTERPRETER)
]


def test_the_table_of_cards_has_every_function() -> None:
    """A capital is for what was tested on a card, of which results are kept."""
    for name, row in ON_A_CARD.items():
        assert set(row.values()) <= {"✓ c", "✓ t", "✓ c t", "ref", "–"}, name
        assert list(row) == [column for column in CHECKS if column in row], name
    assert set(ON_A_CARD) == set(AF.__all__)


@pytest.mark.parametrize("name", CASES)
def test_the_table_of_cards_has_what_is_registered(name: str) -> None:
    for column, differentiated in (("forward", False), ("backward", True)):
        mark = ON_A_CARD[name][column]
        found = [letter for letter, backend in LETTERS.items() if there(name, Place(backend), differentiated)]
        assert mark == "–" or mark == (f"✓ {' '.join(found)}" if found else "ref"), f"{name}, {column}: {found}"


@pytest.mark.parametrize(("name", "column", "place"), CARDS_CELLS)
def test_cell_on_a_card(name: str, column: str, place: Place) -> None:
    case = suited(CASES[name], name, place)
    with place.in_force(), launches() as called:
        CHECKS[column](case)
    assert any(kernel.startswith(f"{place.backend}:") for kernel in called)


def suited(case: Case, name: str, place: Place) -> Case:
    """The case, or one that the place's kernel takes: convolutions of CUDA C++ have few output channels."""
    if place.backend != "cuda" or not name.startswith("conv"):
        return case
    own = int("transpose" in name)
    images, weight, bias = case.shapes
    few = tuple(3 if axis == own else size for axis, size in enumerate(weight))
    return replace(case, shapes=(images, few, (3, *bias[1:])))


@pytest.mark.parametrize("name", CASES)
def test_gradients_through_an_activation_checkpoint_and_saved_tensor_hooks(name: str) -> None:
    case = CASES[name]
    tensors = leaves(case.inputs())
    if not case.ours(*tensors).requires_grad:
        pytest.skip("nothing can be differentiated")
    expected = gradients(case.ours, tensors)

    def checkpointed(*tensors: Tensor) -> Tensor:
        torch.manual_seed(7)
        return torch.utils.checkpoint.checkpoint(case.call, *tensors, use_reentrant=False)

    with torch.autograd.graph.save_on_cpu():
        found = gradients(checkpointed, tensors)
    for ours, theirs in zip(found, expected, strict=True):
        assert_close(ours, theirs)


@pytest.mark.parametrize("name", CASES)
def test_gradients_in_a_batch(name: str) -> None:
    """`is_grads_batched=True`, as `torch.autograd.functional.jacobian(vectorize=True)` has them."""
    case = CASES[name]
    tensors = leaves(case.inputs())
    with natively():
        output = case.ours(*tensors)
    if not output.requires_grad:
        pytest.skip("nothing can be differentiated")
    first = checked_batched_gradients([output], tensors)
    wanted = [gradient for gradient in first if gradient.requires_grad]
    if wanted:
        checked_batched_gradients(wanted, tensors)


def checked_batched_gradients(outputs: list[Tensor], tensors: list[Tensor]) -> list[Tensor]:
    """Of three gradients at once, which are those of one after the other."""
    options: dict[str, Any] = {"retain_graph": True, "create_graph": True, "allow_unused": True}
    batch = [torch.randn(3, *output.shape) for output in outputs]
    found = torch.autograd.grad(outputs, tensors, batch, is_grads_batched=True, **options)
    for index in range(3):
        expected = torch.autograd.grad(outputs, tensors, [part[index] for part in batch], **options)
        for ours, theirs in zip(found, expected, strict=True):
            assert (ours is None) == (theirs is None)
            if theirs is not None:
                assert_close(ours[index], theirs)
    return [gradient for gradient in found if gradient is not None]


@pytest.mark.parametrize("gradients", [False, True], ids=["values", "gradients"])
@pytest.mark.parametrize("name", CASES)
def test_opcheck_of_the_op_that_a_function_comes_to(name: str, gradients: bool) -> None:
    case = CASES[name]
    tensors = leaves(case.inputs()) if gradients else case.inputs()
    with aigc_fast.backend("reference"):
        found = asked(lambda: case.call(*tensors))
    opcheck(getattr(torch.ops.aigc_fast, found.op).default, fresh(found.args_of_op))


@pytest.mark.parametrize("name", [name for name, row in TABLE.items() if row["backward"] != "–"])
def test_opcheck_of_every_op_of_a_functions_derivatives(name: str) -> None:
    """The calls are recorded from a backward and a double backward."""
    calls: dict[str, tuple[Any, ...]] = {}

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
            if getattr(func, "namespace", None) == "aigc_fast":
                calls.setdefault(func._schema.name.split("::")[1], args)
            return func(*args, **(kwargs or {}))

    case = CASES[name]
    tensors = leaves(case.inputs())
    with natively():
        output = case.call(*tensors)
    with Record():
        first = torch.autograd.grad(output.sin().sum(), tensors, create_graph=True)
        total = sum(grad.square().sum() for grad in first)
        if total.requires_grad:
            total.backward()
    checked = calls.keys() & operators().keys()
    assert bool(checked) != (name in OF_PLAIN_DERIVATIVES)
    for op in checked:
        opcheck(getattr(torch.ops.aigc_fast, op).default, fresh(calls[op], op not in READ_LENGTHS))


def fresh(args: tuple[Any, ...], gradients: bool = True) -> tuple[Any, ...]:
    """The arguments, with leaves for tensors, of which gradients are asked as before, or none."""

    def leaf(tensor: Tensor) -> Tensor:
        return tensor.detach().clone().requires_grad_(gradients and tensor.requires_grad)

    return tree_map_only(Tensor, leaf, args)
