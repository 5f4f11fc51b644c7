"""What attention's Triton kernels do with a tile: a block of rows against some of the keys.

A row is a query of a head. The heads that share keys and values lie side by side among the rows of a query, so that
whatever is read of keys serves all of them. Names of sizes and strides are those of `triton.py`, which launches.
"""

# ruff: noqa: ANN001, ANN201

from __future__ import annotations

import triton
import triton.language as tl

from aigc_fast.ops.random.triton import four_words, in_order

# Sizes, positions and probabilities are not compile-time constants.
OF_A_CALL = ["queries", "keys", "blocks", "splits", "left", "right", "offset", "below"]


@triton.jit
def product(a, b, PRECISION: tl.constexpr):
    """a @ b in float32, of factors in b's dtype or as a precision of float32 rounds them."""
    if PRECISION == "interpreted":  # the interpreter takes the bits of bfloat16 for numbers
        found = tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="ieee")
    elif PRECISION == "medium":
        found = tl.dot(a.to(tl.bfloat16), b.to(tl.bfloat16))
    elif PRECISION == "high":
        found = tl.dot(a, b, input_precision="bf16x3")
    else:
        found = tl.dot(a.to(b.dtype), b, input_precision="ieee")
    return found


@triton.jit
def rows_at(tensor, at, inside, SIZE: tl.constexpr, WIDTH: tl.constexpr):
    """(rows, WIDTH): the rows that begin at these places; zeros beyond SIZE and for rows that are not inside."""
    element = tl.arange(0, WIDTH)
    there = inside[:, None]
    if SIZE != WIDTH:
        there = there & (element < SIZE)[None, :]
    return tl.load(tensor + at[:, None] + element[None, :], mask=there, other=0.0)


@triton.jit
def store_rows(tensor, at, inside, values, SIZE: tl.constexpr, WIDTH: tl.constexpr):
    """Stores what `rows_at` would load."""
    element = tl.arange(0, WIDTH)
    there = inside[:, None]
    if SIZE != WIDTH:
        there = there & (element < SIZE)[None, :]
    tl.store(tensor + at[:, None] + element[None, :], values, mask=there)


@triton.jit
def in_sequence(block, starts, owners, cu_q, cu_k, queries, keys, offset):
    """Of a block of all sequences: which of its sequence it is, the sequence, where its queries and keys begin, how
    many there are, and where the first query stands. One sequence where there are no bounds."""
    # Of 64 bits, as what is multiplied with strides must be.
    number = (block * 0).to(tl.int64)
    first_query = number
    first_key = number
    if cu_q is not None:
        number = tl.load(owners + block)
        block -= tl.load(starts + number)
        first_query = tl.load(cu_q + number).to(tl.int64)
        first_key = tl.load(cu_k + number).to(tl.int64)
        queries = tl.load(cu_q + number + 1).to(tl.int64) - first_query
        keys = tl.load(cu_k + number + 1).to(tl.int64) - first_key
        offset = keys - queries
    return block, number, first_query, first_key, queries, keys, offset


@triton.jit
def tiles_between(low, high, count, SIZE: tl.constexpr):
    """Which tiles hold the part of [low, high) that lies in [0, count)."""
    first = tl.maximum(low, 0) // SIZE
    return first, tl.maximum(first, tl.cdiv(tl.minimum(high, count), SIZE))


@triton.jit
def where_seen(
    scores,
    mask,
    i,
    head,
    j,
    inside,
    mask_head,
    mask_query,
    mask_key,
    keys,
    left,
    right,
    offset,
    BAND: tl.constexpr,
    BOOLEAN: tl.constexpr,
):
    """The scores (rows, keys) with the mask, minus infinity where the mask or the band hides a key from a query."""
    seen = (j < keys)[None, :]
    if mask is not None:
        at = (head * mask_head + i.to(tl.int64) * mask_query)[:, None] + (j * mask_key)[None, :]
        there = inside[:, None] & seen
        if BOOLEAN:
            seen = there & (tl.load(mask + at, mask=there, other=0) != 0)
        else:
            scores += tl.load(mask + at, mask=there, other=0.0).to(tl.float32)
    if BAND:
        distance = j[None, :] - (i + offset)[:, None]
        seen = seen & (distance >= -left) & (distance <= right)
    return tl.where(seen, scores, float("-inf"))


@triton.jit
def kept(philox_key, number, row_at, first_key, below, keep_scale, SIZE: tl.constexpr, ALIGNED: tl.constexpr):
    """What dropout multiplies the probabilities (rows, SIZE) with, 0 or its scale: element n of all of them, which row
    after row begin at `row_at`, has word n; sequence `number` has a part of the draw to itself."""
    turn = number << 32
    if ALIGNED:
        groups = (row_at // 4)[:, None] + (first_key // 4 + tl.arange(0, SIZE // 4))[None, :]
        w0, w1, w2, w3 = four_words(philox_key, turn + groups)
        words = in_order(w0, w1, w2, w3)
    else:
        at = row_at[:, None] + (first_key + tl.arange(0, SIZE))[None, :]
        w0, w1, w2, w3 = four_words(philox_key, turn + at // 4)
        place = at % 4
        words = tl.where(place < 2, tl.where(place == 0, w0, w1), tl.where(place == 2, w2, w3))
    return tl.where((words ^ 0x80000000).to(tl.int32, bitcast=True) < below, keep_scale, 0.0)


@triton.jit
def tiles_of_rows(
    counts,
    listed,
    block,
    shared,
    keys,
    left,
    right,
    offset,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    BAND: tl.constexpr,
):
    """Which tiles of keys a block of rows sees: from the first to the last of its list, where there are lists, of which
    `counts` has the lengths, or of all."""
    if counts is not None:
        first, last = 0, tl.load(counts + listed)
    elif BAND:
        low = block * ROWS // shared + offset - left
        high = (block * ROWS + ROWS - 1) // shared + offset + right + 1
        first, last = tiles_between(low, high, keys, KEYS)
    else:
        first, last = 0, tl.cdiv(keys, KEYS)
    return first, last
