"""Ops on DTensors whose batch is in several processes, and weights that are, against the same on whole tensors.

A script: it forks.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.nn.functional as TF
from forks import in_processes
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Placement, Replicate, Shard, distribute_tensor, init_device_mesh
from watching import launches

import aigc_fast.functional as F
from aigc_fast.models import CharTokenizer, create
from aigc_fast.runtime.rows import Rows, laid_out
from aigc_fast.training.parts import can_write_parts

BATCH = 6
# By name: the function, the shapes of what has the batch's rows, and of what has not.
CASES = {
    "conv_transpose2d": (
        lambda x, w, b: F.conv_transpose2d(x, w, b, stride=2, padding=1),
        [(BATCH, 32, 8, 8)],
        [(32, 16, 4, 4), (16,)],
    ),
    "conv2d": (lambda x, w: F.conv2d(x, w, padding=1), [(BATCH, 4, 6, 5)], [(3, 4, 3, 3)]),
    "attention": (
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
        [(BATCH, 2, 40, 16)] * 3,
        [],
    ),
    "attention with dropout": (
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, dropout_p=0.5),
        [(BATCH, 1, 3, 5)] * 3,
        [],
    ),
    "recursion": (lambda x, c: F.ar_recursion(x, 0.1 * c), [(BATCH, 200)], [(3,)]),
    "recursion, each its own": (lambda x, c: F.ar_recursion(x, 0.1 * c), [(BATCH, 50), (BATCH, 2)], []),
    "reparameterize": (F.reparameterize, [(BATCH, 7), (BATCH, 7)], []),
    "reparameterize_kl": (lambda m, v: F.reparameterize_kl(m, v)[0] * 2, [(BATCH, 3, 3), (BATCH, 3, 3)], []),
    "kl_standard_normal": (F.kl_standard_normal, [(BATCH, 5), (BATCH, 5)], []),
    "dropout": (lambda x: F.dropout(x, 0.5), [(BATCH, 5)], []),
}


def derivatives(function, tensors, weights):
    """What the function gives, the gradients to every tensor, and those of a penalty on the first of them."""
    torch.manual_seed(1)
    found = function(*tensors)
    first = torch.autograd.grad((found.square() * weights).sum(), tensors, create_graph=True)
    return [found, *first, *torch.autograd.grad(first[0].square().sum(), tensors, allow_unused=True)]


def check(name: str, mesh, placement: Placement) -> None:
    """Against whole tensors, where what has the batch's rows lies so in the processes, and all else is replicated."""
    function, of_rows, others = CASES[name]
    torch.manual_seed(0)
    tensors = [torch.randn(shape) for shape in (*of_rows, *others)]
    torch.manual_seed(1)
    weights = torch.randn(function(*tensors).shape)
    expected = derivatives(function, [tensor.clone().requires_grad_() for tensor in tensors], weights)
    placements = [[placement]] * len(of_rows) + [[Replicate()]] * len(others)
    laid = [
        distribute_tensor(tensor, mesh, where).requires_grad_()
        for tensor, where in zip(tensors, placements, strict=True)
    ]
    with launches("attention") as launched:
        found = derivatives(function, laid, distribute_tensor(weights, mesh, [placement]))
    rows = laid[0].to_local().shape[0]
    assert bool(launched) == (name.startswith("attention") and rows > 0), f"{name} of {rows} rows: {launched}"
    assert tuple(found[0].placements) == (placement,), f"{name}: {found[0].placements}"
    for index, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        what = f"{name}, {placement}, result {index}"
        assert (ours is None) == (theirs is None), what
        if theirs is not None:
            near = {"rtol": 1e-4, "atol": 1e-4 * max(1.0, float(theirs.abs().max()))}
            torch.testing.assert_close(ours.full_tensor(), theirs, **near, msg=what)


def check_sharded_weights(mesh) -> None:
    """GPT-2 whose weights are sharded by FSDP2 has the gradients of the whole, dropout included."""
    tokens, rank, parts = torch.randint(0, 8, (4, 9)), mesh.get_local_rank(), mesh.size()
    here = range(4 * rank // parts, 4 * (rank + 1) // parts)
    gradients = []
    for shards in (False, True):
        torch.manual_seed(0)
        model = create("gpt2", tokenizer=CharTokenizer("abcdefg"), hidden=8, num_layers=2, num_heads=2, context=8)
        rows = here if shards else range(4)
        if shards:
            for layer in (*model.transformer.h, model):
                fully_shard(layer, mesh=mesh)
        torch.manual_seed(1)
        with laid_out(Rows(rows, 4)):
            logits = model.train()(tokens[rows.start : rows.stop, :-1])
        TF.cross_entropy(logits.flatten(0, 1), tokens[rows.start : rows.stop, 1:].flatten()).backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, expected in gradients[0].items():
        found = gradients[1][name].full_tensor()
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6, msg=f"{name} of the sharded model")


def work(rank: int, count: int) -> None:
    mesh = init_device_mesh("cpu", (count,))
    torch.manual_seed(2)
    if can_write_parts():  # an old torch shards weights on cards alone
        check_sharded_weights(mesh)
    for name in CASES:
        for placement in (Shard(0), Replicate()):
            check(name, mesh, placement)


if __name__ == "__main__":
    for processes in (2, 4):
        in_processes(Path(sys.argv[1]), processes, lambda rank, count=processes: work(rank, count))
        print(processes, flush=True)
