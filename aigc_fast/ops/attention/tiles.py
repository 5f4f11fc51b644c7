"""Attention's Triton kernels: a block of rows against one tile of keys after the other.

A row is a query of a head. The heads that share keys and values lie side by side among the rows of a query, so that
whatever is read of keys serves all of them. Names of sizes and strides are those of `triton.py`, which launches.
"""

# ruff: noqa: ANN001, ANN201

from __future__ import annotations

import triton
import triton.language as tl

from aigc_fast.ops.random.triton import four_words, in_order

# No size, place or probability has a kernel of its own.
_OF_A_CALL = ["queries", "keys", "blocks", "splits", "left", "right", "offset", "below"]


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


@triton.jit(do_not_specialize=_OF_A_CALL)
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


@triton.jit(do_not_specialize=_OF_A_CALL)
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


@triton.jit(do_not_specialize=_OF_A_CALL)
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
