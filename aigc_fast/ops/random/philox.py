"""Random words as a pure function of a key, in plain PyTorch.

Philox4x32-10 (Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011). The kernels
compute the same words.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from aigc_fast.runtime.devices import Reason

# Each word of a key is drawn from [0, KEY_LIMIT).
KEY_LIMIT = 2**63 - 1
LOW = 0xFFFFFFFF
_MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
_WEYL = 0x9E3779B9, 0xBB67AE85


def philox4x32(counter: Sequence[Tensor], key: Sequence[Tensor], rounds: int = 10) -> list[Tensor]:
    """One block of four random words per counter.

    Args:
        counter: four int64 tensors that hold 32-bit words.
        key: two int64 tensors that hold 32-bit words; broadcast against the counters.
        rounds: 10 in the published generator.

    Returns:
        Four int64 tensors that hold 32-bit words.
    """
    c0, c1, c2, c3 = counter
    key0, key1 = key
    for _ in range(rounds):
        # int64 products wrap modulo 2**64, which keeps all of their 64 bits.
        product0, product1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            (product1 >> 32 & LOW) ^ c1 ^ key0,
            product1 & LOW,
            (product0 >> 32 & LOW) ^ c3 ^ key1,
            product0 & LOW,
        )
        key0, key1 = key0 + _WEYL[0] & LOW, key1 + _WEYL[1] & LOW
    return [c0, c1, c2, c3]


def check_key(key: Tensor, beside: Tensor | None = None) -> None:
    """Refuses a key that kernels would read beyond, or on another device than the tensor that its numbers are for.

    Raises:
        RuntimeError: for a key of another type, size or device.
    """
    if key.dtype is not torch.int64 or key.shape != (2,):
        raise RuntimeError(f"philox_key has shape {tuple(key.shape)}, {key.dtype}: expected (2,), torch.int64")
    if beside is not None and key.device != beside.device:
        raise RuntimeError(f"philox_key is on {key.device}: expected the tensors' device {beside.device}")


def keyed(unsupported: Callable[..., Reason], place: int, beside: int | None = None) -> Callable[..., Reason]:
    """`unsupported`, which first looks at the key among the arguments, and at the tensor that it should be beside."""

    def reason(*args: Any) -> Reason:
        check_key(args[place], None if beside is None else args[beside])
        return unsupported(*args)

    return reason


def words(n: int, key: Tensor, stream: int = 0) -> Tensor:
    """The random words of elements 0 to n - 1, rounded up to whole blocks: int64, shape (ceil(n / 4), 4).

    Element i is word i % 4 of the block with counter (offset + i // 4, stream) under the key `seed`.

    Args:
        n: number of elements.
        key: int64, shape (2,): seed and offset.
        stream: an independent set of words for the same key.

    Raises:
        RuntimeError: for a key of another type or size.
    """
    check_key(key)
    seed, offset = key[0], key[1]
    position = offset + torch.arange((n + 3) // 4, device=key.device)
    zero = torch.zeros_like(position)
    counter = position & LOW, position >> 32 & LOW, zero + stream, zero
    return torch.stack(philox4x32(counter, (seed & LOW, seed >> 32 & LOW)), dim=-1)


def beside(numbers: Tensor, tensor: Tensor) -> Tensor:
    """The numbers, replicated over the mesh where `tensor` is a DTensor: the same key gives the same on every rank."""
    mesh = getattr(tensor, "device_mesh", None)
    if mesh is None:
        return numbers
    from torch.distributed.tensor import DTensor, Replicate

    return DTensor.from_local(numbers, mesh, [Replicate()] * mesh.ndim, run_check=False)
