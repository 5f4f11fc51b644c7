"""Attention's Triton kernels, backward: from a block of queries, and from a tile of keys."""

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
    tiles_between,
    tiles_of_rows,
    where_seen,
)


@triton.jit
def sums_at(sums, inner, at, inside):
    """The log-sum-exp of rows, finite where they see no key, and the inner products of gradient and output."""
    logsumexp = tl.load(sums + at, mask=inside, other=0.0)
    logsumexp = tl.where(logsumexp == float("-inf"), 0.0, logsumexp)
    return logsumexp, tl.load(inner + at, mask=inside, other=0.0)


@triton.jit
def derivatives(
    q,
    k,
    g,
    v,
    logsumexp,
    delta,
    mask,
    philox_key,
    number,
    row_at,
    first_key,
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
    scale,
    below,
    keep_scale,
    KEYS: tl.constexpr,
    BAND: tl.constexpr,
    BOOLEAN: tl.constexpr,
    ALIGNED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The probabilities (rows, keys) with dropout, and the gradient to the scores before they are scaled."""
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
    probabilities = tl.exp(scores - logsumexp[:, None])
    slopes = product(g, tl.trans(v), PRECISION)
    dropped = probabilities
    if philox_key is not None:
        factors = kept(philox_key, number, row_at, first_key, below, keep_scale, KEYS, ALIGNED)
        slopes *= factors
        dropped = probabilities * factors
    return dropped, probabilities * (slopes - delta[:, None])


@triton.jit(do_not_specialize=OF_A_CALL)
def backward_of_queries(
    to_query,
    grad,
    query,
    key,
    value,
    sums,
    inner,
    mask,
    tiles,
    counts,
    starts,
    owners,
    cu_q,
    cu_k,
    philox_key,
    to_query_batch,
    to_query_head,
    to_query_row,
    grad_batch,
    grad_head,
    grad_row,
    query_batch,
    query_head,
    query_row,
    key_batch,
    key_head,
    key_row,
    value_batch,
    value_head,
    value_row,
    sums_batch,
    sums_head,
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
    """The gradient to a block of rows' queries."""
    pair = (tl.program_id(0) // blocks).to(tl.int64)
    batch, group = pair // groups, pair % groups
    block, number, first_query, first_key, queries, keys, offset = in_sequence(
        tl.program_id(0) % blocks, starts, owners, cu_q, cu_k, queries, keys, offset
    )
    if block * ROWS >= queries * shared:
        return
    row = block * ROWS + tl.arange(0, ROWS)
    inside = row < queries * shared
    i = row // shared
    head = group * shared + row % shared
    q = rows_at(query, batch * query_batch + head * query_head + (first_query + i) * query_row, inside, SIZE, WIDTH)
    g_at = batch * grad_batch + head * grad_head + (first_query + i) * grad_row
    g = rows_at(grad, g_at, inside, VALUE_SIZE, VALUE_WIDTH)
    at = batch * sums_batch + head * sums_head + first_query + i
    logsumexp, delta = sums_at(sums, inner, at, inside)
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
    found = tl.zeros((ROWS, WIDTH), tl.float32)
    for n in range(first, last):
        tile = n
        if tiles is not None:
            tile = tl.load(tiles + n)
        j = (tile * KEYS + tl.arange(0, KEYS)).to(tl.int64)
        k = rows_at(key, j * key_row, j < keys, SIZE, WIDTH)
        v = rows_at(value, j * value_row, j < keys, VALUE_SIZE, VALUE_WIDTH)
        row_at = ((batch * groups * shared + head) * queries + i) * keys
        _, to_scores = derivatives(
            q,
            k,
            g,
            v,
            logsumexp,
            delta,
            mask,
            philox_key,
            number,
            row_at,
            tile * KEYS,
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
            scale,
            below,
            keep_scale,
            KEYS,
            BAND,
            BOOLEAN,
            ALIGNED,
            PRECISION,
        )
        found += product(to_scores, k, PRECISION)
    place = batch * to_query_batch + head * to_query_head + (first_query + i) * to_query_row
    store_rows(to_query, place, inside, found * scale, SIZE, WIDTH)


@triton.jit(do_not_specialize=OF_A_CALL)
def backward_of_keys(
    to_key,
    to_value,
    grad,
    query,
    key,
    value,
    sums,
    inner,
    mask,
    tiles,
    counts,
    starts,
    owners,
    cu_q,
    cu_k,
    philox_key,
    to_key_batch,
    to_key_head,
    to_key_row,
    to_value_batch,
    to_value_head,
    to_value_row,
    grad_batch,
    grad_head,
    grad_row,
    query_batch,
    query_head,
    query_row,
    key_batch,
    key_head,
    key_row,
    value_batch,
    value_head,
    value_row,
    sums_batch,
    sums_head,
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
    """The gradients to a tile of keys and values, over the blocks of rows that see it."""
    pair = (tl.program_id(0) // blocks).to(tl.int64)
    batch, group = pair // groups, pair % groups
    tile, number, first_query, first_key, queries, keys, offset = in_sequence(
        tl.program_id(0) % blocks, starts, owners, cu_q, cu_k, queries, keys, offset
    )
    if tile * KEYS >= keys:
        return
    j = (tile * KEYS + tl.arange(0, KEYS)).to(tl.int64)
    there = j < keys
    key_at = batch * key_batch + group * key_head + (first_key + j) * key_row
    k = rows_at(key, key_at, there, SIZE, WIDTH)
    value_at = batch * value_batch + group * value_head + (first_key + j) * value_row
    v = rows_at(value, value_at, there, VALUE_SIZE, VALUE_WIDTH)
    query += batch * query_batch + first_query * query_row
    grad += batch * grad_batch + first_query * grad_row
    if mask is not None:
        mask += batch * mask_batch
    if tiles is not None:
        listed = batch * tiles_batch + group * tiles_group + tile
        first, last = 0, tl.load(counts + listed)
        tiles += listed * tl.cdiv(queries * shared, ROWS)
    elif BAND:
        low = (tile * KEYS - offset - right) * shared
        high = (tile * KEYS + KEYS - offset + left) * shared
        first, last = tiles_between(low, high, queries * shared, ROWS)
    else:
        first, last = 0, tl.cdiv(queries * shared, ROWS)
    found_key = tl.zeros((KEYS, WIDTH), tl.float32)
    found_value = tl.zeros((KEYS, VALUE_WIDTH), tl.float32)
    for n in range(first, last):
        block = n
        if tiles is not None:
            block = tl.load(tiles + n)
        row = block * ROWS + tl.arange(0, ROWS)
        inside = row < queries * shared
        i = row // shared
        head = group * shared + row % shared
        q = rows_at(query, head * query_head + i.to(tl.int64) * query_row, inside, SIZE, WIDTH)
        g = rows_at(grad, head * grad_head + i.to(tl.int64) * grad_row, inside, VALUE_SIZE, VALUE_WIDTH)
        at = batch * sums_batch + head * sums_head + first_query + i
        logsumexp, delta = sums_at(sums, inner, at, inside)
        row_at = ((batch * groups * shared + head) * queries + i) * keys
        dropped, to_scores = derivatives(
            q,
            k,
            g,
            v,
            logsumexp,
            delta,
            mask,
            philox_key,
            number,
            row_at,
            tile * KEYS,
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
            scale,
            below,
            keep_scale,
            KEYS,
            BAND,
            BOOLEAN,
            ALIGNED,
            PRECISION,
        )
        found_value += product(tl.trans(dropped), g, PRECISION)
        found_key += product(tl.trans(to_scores), q, PRECISION)
    place = batch * to_key_batch + group * to_key_head + (first_key + j) * to_key_row
    store_rows(to_key, place, there, found_key * scale, SIZE, WIDTH)
    place = batch * to_value_batch + group * to_value_head + (first_key + j) * to_value_row
    store_rows(to_value, place, there, found_value, VALUE_SIZE, VALUE_WIDTH)
