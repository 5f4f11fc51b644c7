"""Attention's Triton kernels, forward: a block of rows against one tile of keys after the other."""

# ruff: noqa: ANN001, ANN201

from __future__ import annotations

import triton
import triton.language as tl

from aigc_fast.ops.attention.tiles import (
    OF_A_CALL,
    in_sequence,
    kept,
    product,
    rows_at,
    store_rows,
    tiles_of_rows,
    where_seen,
)


@triton.jit(do_not_specialize=OF_A_CALL)
def forward(
    out,
    sums,
    query,
    key,
    value,
    mask,
    tiles,
    counts,
    starts,
    owners,
    cu_q,
    cu_k,
    philox_key,
    out_split,
    out_batch,
    out_head,
    out_row,
    sums_split,
    sums_batch,
    sums_head,
    query_batch,
    query_head,
    query_row,
    key_batch,
    key_head,
    key_row,
    value_batch,
    value_head,
    value_row,
    mask_batch,
    mask_head,
    mask_query,
    mask_key,
    tiles_batch,
    tiles_group,
    queries,
    keys,
    groups,
    shared,
    blocks,
    splits,
    left,
    right,
    offset,
    scale,
    below,
    keep_scale,
    SIZE: tl.constexpr,
    WIDTH: tl.constexpr,
    VALUE_SIZE: tl.constexpr,
    VALUE_WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    BAND: tl.constexpr,
    BOOLEAN: tl.constexpr,
    ALIGNED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The output and the log-sum-exp of a block of rows over a part of the keys."""
    program = tl.program_id(0)
    split = (program % splits).to(tl.int64)
    pair = (program // splits // blocks).to(tl.int64)
    batch, group = pair // groups, pair % groups
    first_block = program // splits % blocks
    block, number, first_query, first_key, queries, keys, offset = in_sequence(
        first_block, starts, owners, cu_q, cu_k, queries, keys, offset
    )
    row = block * ROWS + tl.arange(0, ROWS)
    if block * ROWS >= queries * shared:
        return
    inside = row < queries * shared
    i = row // shared
    head = group * shared + row % shared
    at = batch * query_batch + head * query_head + (first_query + i) * query_row
    q = rows_at(query, at, inside, SIZE, WIDTH)
    key += batch * key_batch + group * key_head + first_key * key_row
    value += batch * value_batch + group * value_head + first_key * value_row
    if mask is not None:
        mask += batch * mask_batch
    listed = batch * tiles_batch + group * tiles_group + block
    if tiles is not None:
        tiles += listed * tl.cdiv(keys, KEYS)
    first, last = tiles_of_rows(
        counts,
        listed,
        block,
        shared,
        keys,
        left,
        right,
        offset,
        ROWS,
        KEYS,
        BAND,
    )
    each = tl.cdiv(last - first, splits)
    begin = first + split * each
    top = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    found = tl.zeros((ROWS, VALUE_WIDTH), tl.float32)
    for n in range(begin, tl.minimum(begin + each, last)):
        tile = n
        if tiles is not None:
            tile = tl.load(tiles + n)
        j = (tile * KEYS + tl.arange(0, KEYS)).to(tl.int64)
        k = rows_at(key, j * key_row, j < keys, SIZE, WIDTH)
        scores = where_seen(
            product(q, tl.trans(k), PRECISION) * scale,
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
            BAND,
            BOOLEAN,
        )
        higher = tl.maximum(top, tl.max(scores, 1))
        # Of a row that has seen no key yet.
        finite = tl.where(higher == float("-inf"), 0.0, higher)
        probabilities = tl.exp(scores - finite[:, None])
        factor = tl.exp(top - finite)
        total = total * factor + tl.sum(probabilities, 1)
        if philox_key is not None:
            row_at = ((batch * groups * shared + head) * queries + i) * keys
            probabilities *= kept(philox_key, number, row_at, tile * KEYS, below, keep_scale, KEYS, ALIGNED)
        v = rows_at(value, j * value_row, j < keys, VALUE_SIZE, VALUE_WIDTH)
        found = found * factor[:, None] + product(probabilities, v, PRECISION)
        top = higher
    blind = total == 0.0
    total = tl.where(blind, 1.0, total)
    place = split * out_split + batch * out_batch + head * out_head + (first_query + i) * out_row
    store_rows(out, place, inside, found / total[:, None], VALUE_SIZE, VALUE_WIDTH)
    place = split * sums_split + batch * sums_batch + head * sums_head + first_query + i
    tl.store(sums + place, tl.where(blind, float("-inf"), top + tl.log(total)), mask=inside)


@triton.jit
def combine(
    out,
    sums,
    parts,
    part_sums,
    out_batch,
    out_head,
    out_row,
    heads,
    queries,
    splits,
    SIZE: tl.constexpr,
    WIDTH: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """The output and the log-sum-exp of a row from those over parts of the keys, which are contiguous."""
    row = tl.program_id(0).to(tl.int64)
    rows = tl.num_programs(0)
    split = tl.arange(0, SPLITS)
    there = split < splits
    of_part = tl.load(part_sums + split * rows + row, mask=there, other=float("-inf"))
    top = tl.max(of_part, 0)
    finite = tl.where(top == float("-inf"), 0.0, top)
    weights = tl.exp(of_part - finite)
    total = tl.sum(weights, 0)
    part = rows_at(parts, (split * rows + row) * SIZE, there, SIZE, WIDTH)
    blind = total == 0.0
    total = tl.where(blind, 1.0, total)
    found = tl.sum(part * weights[:, None], 0) / total
    i = row % queries
    at = row // queries // heads * out_batch + row // queries % heads * out_head + i * out_row
    element = tl.arange(0, WIDTH)
    tl.store(out + at + element, found, mask=element < SIZE)
    tl.store(sums + row, tl.where(blind, float("-inf"), finite + tl.log(total)))


@triton.jit(do_not_specialize=["queries", "keys", "blocks", "columns", "left", "right", "offset"])
def look(
    seen,
    mask,
    mask_batch,
    mask_head,
    mask_query,
    mask_key,
    queries,
    keys,
    groups,
    shared,
    blocks,
    columns,
    left,
    right,
    offset,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    BAND: tl.constexpr,
    BOOLEAN: tl.constexpr,
):
    """Whether a block of rows sees any key of a tile: 0 or 1, over (batches, groups, blocks, columns)."""
    program = tl.program_id(0).to(tl.int64)
    column, block = program % columns, program // columns % blocks
    pair = program // columns // blocks
    batch, group = pair // groups, pair % groups
    row = block * ROWS + tl.arange(0, ROWS)
    j = column * KEYS + tl.arange(0, KEYS)
    inside = row < queries * shared
    scores = where_seen(
        tl.zeros((ROWS, KEYS), tl.float32),
        mask + batch * mask_batch,
        row // shared,
        group * shared + row % shared,
        j,
        inside,
        mask_head,
        mask_query,
        mask_key,
        keys,
        left,
        right,
        offset,
        BAND,
        BOOLEAN,
    )
    is_seen = (scores != float("-inf")) & inside[:, None]
    tl.store(seen + program, tl.max(tl.max(is_seen.to(tl.int32), 1), 0))
