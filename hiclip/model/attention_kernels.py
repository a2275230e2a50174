"""Triton kernels of hierarchy-aware attention: C is made inside, tile by tile, from tables of prefix sums.

One pass as in FlashAttention. C is at most 1, so the running maximum of the plain scores also bounds the weighted ones,
and the backward needs no more than the row's log-sum-exp and dO . O:

    w = C * p      O = w V      dS = w * G - p * (dO . O)      d ln C = w * G      with p = softmax(S), G = dO V'

The tables are small (N numbers for a caption, two of R x C for a picture) and read by index, so that no N x N tensor is
ever in memory. Both backward kernels see a tile of pairs from one of its ends, their own places down and the others
across; what an end adds to the tables is its own half of the path's four prefix sums, the same code from both ends.

Tested in Triton's interpreter; the speed on a GPU is unmeasured.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["attend", "key_gradients", "query_gradients", "triton"]

# Triton's interpreter takes the bits of bf16 for integers in a product; widened they are the same numbers.
_INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def _product(left, right):
    """Matrix product summed in float32, of float32 without TF32's rounding."""
    if _INTERPRETED:
        left, right = left.to(tl.float32), right.to(tl.float32)
    return tl.dot(left, right, input_precision="ieee")


@triton.jit
def _sign(difference):
    return tl.where(difference > 0, 1.0, tl.where(difference < 0, -1.0, 0.0))


@triton.jit
def _rows(start, places, stride, tokens, HEAD: tl.constexpr):
    """Rows of HEAD channels at these places, zeros behind the last token."""
    channels = tl.arange(0, HEAD)
    return tl.load(start + places[:, None] * stride + channels[None, :], mask=(places < tokens)[:, None], other=0.0)


@triton.jit
def _store_rows(start, places, stride, tokens, values, HEAD: tl.constexpr):
    channels = tl.arange(0, HEAD)
    tl.store(start + places[:, None] * stride + channels[None, :], values, mask=(places < tokens)[:, None])


@triton.jit
def _may_read(allowed, readers, read, reader_stride, read_stride, tokens, LIMITED: tl.constexpr):
    """Which of `readers` may read which of `read`; one of the two is a column of indices, the other a row."""
    inside = (readers < tokens) & (read < tokens)
    if LIMITED:
        inside = inside & (tl.load(allowed + readers * reader_stride + read * read_stride, mask=inside, other=0) != 0)
    return inside


@triton.jit
def _chain_links(heights, segments, own, other, tokens, SELF_LINK: tl.constexpr):
    """C of own and other words, the part of it that follows the links, and the sign of the step between their heights.

    Words of different segments are apart; those of segment -1 stand outside the chain, at C = 1 to all.
    """
    own_segment = tl.load(segments + own, mask=own < tokens, other=-1)[:, None]
    other_segment = tl.load(segments + other, mask=other < tokens, other=-1)[None, :]
    own_height = tl.load(heights + own, mask=own < tokens, other=0.0)[:, None]
    other_height = tl.load(heights + other, mask=other < tokens, other=0.0)[None, :]
    step = own_height - other_height
    outside = (own_segment < 0) | (other_segment < 0)
    linked = tl.where((own_segment == other_segment) & (own_segment >= 0), tl.exp(-tl.abs(step)), 0.0)
    weight = tl.where(outside, 1.0, linked)
    if not SELF_LINK:
        itself = own[:, None] == other[None, :]
        weight = tl.where(itself, 0.0, weight)
        linked = tl.where(itself, 0.0, linked)
    return weight, linked, _sign(step)


@triton.jit
def _grid_links(row_heights, column_heights, own, other, columns, tokens, MEAN: tl.constexpr, SELF_LINK: tl.constexpr):
    """C of own and other patches, CLS first, and its two paths as seen from the own end.

    Row first: along the own row to the other's column (`across`), then down that column (`along`). Column first: down
    the own column (`climb`), then along the other's row. Returns C, what each path contributes to it, and the
    signs of three of the steps.
    """
    own_there, other_there = (own > 0) & (own < tokens), (other > 0) & (other < tokens)
    own_row, own_column = (own - 1) // columns, (own - 1) % columns
    other_row, other_column = (other - 1) // columns, (other - 1) % columns
    both = own_there[:, None] & other_there[None, :]
    turn = own_row[:, None] * columns + other_column[None, :]
    opposite = other_row[None, :] * columns + own_column[:, None]
    row_own = tl.load(row_heights + own - 1, mask=own_there, other=0.0)[:, None]
    column_own = tl.load(column_heights + own - 1, mask=own_there, other=0.0)[:, None]
    row_other = tl.load(row_heights + other - 1, mask=other_there, other=0.0)[None, :]
    column_other = tl.load(column_heights + other - 1, mask=other_there, other=0.0)[None, :]
    across = tl.load(row_heights + turn, mask=both, other=0.0) - row_own
    along = column_other - tl.load(column_heights + turn, mask=both, other=0.0)
    climb = tl.load(column_heights + opposite, mask=both, other=0.0) - column_own
    level = row_other - tl.load(row_heights + opposite, mask=both, other=0.0)
    row_first = tl.exp(-(tl.abs(across) + tl.abs(along)))
    column_first = tl.exp(-(tl.abs(climb) + tl.abs(level)))
    if MEAN:
        row_first, column_first = row_first / 2, column_first / 2
    else:
        # A tie is halved between the paths (two patches of one row or column: both paths are the same there), for the
        # two ends of a pair must give the same weight to the same path.
        tied = tl.where(row_first == column_first, row_first / 2, 0.0)
        row_first, column_first = (
            tl.where(row_first > column_first, row_first, tied),
            tl.where(column_first > row_first, column_first, tied),
        )
    weight = tl.where(both, row_first + column_first, 1.0)  # CLS is linked to all by 1
    if not SELF_LINK:
        both = both & (own[:, None] != other[None, :])
        weight = tl.where(own[:, None] == other[None, :], 0.0, weight)
    row_first, column_first = tl.where(both, row_first, 0.0), tl.where(both, column_first, 0.0)
    return weight, row_first, column_first, _sign(across), _sign(along), _sign(climb)


@triton.jit
def _onto_columns(pairs, other, columns, COLUMNS: tl.constexpr):
    """(own, other) -> (own, COLUMNS): the sum over the other patches of each column of the grid."""
    there = ((other - 1) % columns)[:, None] == tl.arange(0, COLUMNS)[None, :]
    there = (there & (other > 0)[:, None]).to(tl.float32)
    return _product(pairs, there)


@triton.jit
def _at_own_column(values, own, columns, COLUMNS: tl.constexpr):
    """(own,) -> (own, COLUMNS): each value in the column of its own patch."""
    there = ((own - 1) % columns)[:, None] == tl.arange(0, COLUMNS)[None, :]
    return tl.where(there & (own > 0)[:, None], values[:, None], 0.0)


@triton.jit
def _grid_gradients(across, along, climb, own, other, columns, COLUMNS: tl.constexpr):
    """Pulls (own, other) on three steps -> into row and column heights (own, COLUMNS), in the own patch's row.

    The steps end at the own patch and at the turn (own row, other's column); what ends at the other patch, and at the
    other turn, is added when the pair is seen from its other end.
    """
    into_rows = _at_own_column(tl.sum(across, axis=1), own, columns, COLUMNS)
    into_rows -= _onto_columns(across, other, columns, COLUMNS)
    into_columns = _at_own_column(tl.sum(climb, axis=1), own, columns, COLUMNS)
    into_columns += _onto_columns(along, other, columns, COLUMNS)
    return into_rows, into_columns


@triton.jit
def _store_grid(start, table, own, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """(own, COLUMNS) -> stores (ROWS, COLUMNS): the sum over the own patches of each row of the grid."""
    down, across = tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    there = (down[:, None] == ((own - 1) // columns)[None, :]) & (own > 0)[None, :]
    summed = _product(there.to(tl.float32), table)
    tl.store(start + down[:, None] * COLUMNS + across[None, :], summed)


@triton.jit(do_not_specialize=["tokens", "heads", "columns"])
def attend(
    query, key, value, output, logsum, first, second, allowed,
    query_b, query_h, query_n, key_b, key_h, key_n, value_b, value_h, value_n, output_b, output_h, output_n,
    allowed_b, allowed_i, allowed_j, table_b,
    tokens, heads, columns, scale,
    HEAD: tl.constexpr, OWN: tl.constexpr, OTHER: tl.constexpr, GRID: tl.constexpr, MEAN: tl.constexpr,
    SELF_LINK: tl.constexpr, LIMITED: tl.constexpr,
):  # fmt: skip
    """One program: OWN queries of one head. Writes their output, and the log of the sum of their exponentials."""
    tiles = tl.cdiv(tokens, OWN)
    tile = tl.program_id(0) % tiles
    pair = (tl.program_id(0) // tiles).to(tl.int64)
    batch, head = pair // heads, pair % heads
    own = tile * OWN + tl.arange(0, OWN)
    queries = _rows(query + batch * query_b + head * query_h, own, query_n, tokens, HEAD)
    largest = tl.full((OWN,), -1e30, tl.float32)  # finite, so that a tile with nothing to read leaves no NaN
    total = tl.zeros((OWN,), tl.float32)
    sums = tl.zeros((OWN, HEAD), tl.float32)
    for start in range(0, tokens, OTHER):
        other = start + tl.arange(0, OTHER)
        keys = _rows(key + batch * key_b + head * key_h, other, key_n, tokens, HEAD)
        values = _rows(value + batch * value_b + head * value_h, other, value_n, tokens, HEAD)
        may_read = _may_read(
            allowed + batch * allowed_b, own[:, None], other[None, :], allowed_i, allowed_j, tokens, LIMITED
        )
        scores = _product(queries, tl.trans(keys)) * scale
        scores = tl.where(may_read, scores, float("-inf"))
        higher = tl.maximum(largest, tl.max(scores, axis=1))
        shrunk = tl.exp(largest - higher)
        shares = tl.exp(scores - higher[:, None])
        total = total * shrunk + tl.sum(shares, axis=1)
        if GRID:
            weight, _, _, _, _, _ = _grid_links(
                first + batch * table_b, second + batch * table_b, own, other, columns, tokens, MEAN, SELF_LINK
            )
        else:
            weight, _, _ = _chain_links(
                first + batch * table_b, second + batch * table_b, own, other, tokens, SELF_LINK
            )
        shares = (shares * weight).to(values.dtype)
        sums = sums * shrunk[:, None] + _product(shares, values)
        largest = higher
    total = tl.where(total > 0, total, 1.0)
    sums = sums / total[:, None]
    _store_rows(
        output + batch * output_b + head * output_h, own, output_n, tokens, sums.to(output.dtype.element_ty), HEAD
    )
    tl.store(logsum + pair * tokens + own, largest + tl.log(total), mask=own < tokens)


@triton.jit(do_not_specialize=["tokens", "heads", "columns"])
def query_gradients(
    query, key, value, gradient, logsum, delta, into_query, into_tables, first, second, allowed,
    query_b, query_h, query_n, key_b, key_h, key_n, value_b, value_h, value_n, gradient_b, gradient_h, gradient_n,
    into_b, into_h, into_n, allowed_b, allowed_i, allowed_j, table_b,
    tokens, heads, columns, scale,
    HEAD: tl.constexpr, OWN: tl.constexpr, OTHER: tl.constexpr, GRID: tl.constexpr, MEAN: tl.constexpr,
    SELF_LINK: tl.constexpr, LIMITED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """One program: OWN queries of one head. Writes their gradient and the readers' half of the tables' gradient."""
    tiles = tl.cdiv(tokens, OWN)
    tile = tl.program_id(0) % tiles
    pair = (tl.program_id(0) // tiles).to(tl.int64)
    batch, head = pair // heads, pair % heads
    own = tile * OWN + tl.arange(0, OWN)
    queries = _rows(query + batch * query_b + head * query_h, own, query_n, tokens, HEAD)
    gradients = _rows(gradient + batch * gradient_b + head * gradient_h, own, gradient_n, tokens, HEAD)
    own_logsum = tl.load(logsum + pair * tokens + own, mask=own < tokens, other=0.0)
    own_delta = tl.load(delta + pair * tokens + own, mask=own < tokens, other=0.0)
    query_sums = tl.zeros((OWN, HEAD), tl.float32)
    height_sums = tl.zeros((OWN,), tl.float32)
    row_sums = tl.zeros((OWN, COLUMNS), tl.float32)
    column_sums = tl.zeros((OWN, COLUMNS), tl.float32)
    for start in range(0, tokens, OTHER):
        other = start + tl.arange(0, OTHER)
        keys = _rows(key + batch * key_b + head * key_h, other, key_n, tokens, HEAD)
        values = _rows(value + batch * value_b + head * value_h, other, value_n, tokens, HEAD)
        may_read = _may_read(
            allowed + batch * allowed_b, own[:, None], other[None, :], allowed_i, allowed_j, tokens, LIMITED
        )
        scores = _product(queries, tl.trans(keys)) * scale
        shares = tl.where(may_read, tl.exp(scores - own_logsum[:, None]), 0.0)
        pulls = shares * _product(gradients, tl.trans(values))
        if GRID:
            weight, row_first, column_first, across, along, climb = _grid_links(
                first + batch * table_b, second + batch * table_b, own, other, columns, tokens, MEAN, SELF_LINK
            )
            across, along, climb = pulls * row_first * across, pulls * row_first * along, pulls * column_first * climb
            into_rows, into_columns = _grid_gradients(across, along, climb, own, other, columns, COLUMNS)
            row_sums += into_rows
            column_sums += into_columns
        else:
            weight, linked, step = _chain_links(
                first + batch * table_b, second + batch * table_b, own, other, tokens, SELF_LINK
            )
            height_sums -= tl.sum(pulls * linked * step, axis=1)
        into_scores = (weight * pulls - shares * own_delta[:, None]).to(keys.dtype)
        query_sums += _product(into_scores, keys)
    query_sums = (query_sums * scale).to(into_query.dtype.element_ty)
    _store_rows(into_query + batch * into_b + head * into_h, own, into_n, tokens, query_sums, HEAD)
    if GRID:
        table = into_tables + (pair * tiles + tile) * (2 * ROWS * COLUMNS)
        _store_grid(table, row_sums, own, columns, ROWS, COLUMNS)
        _store_grid(table + ROWS * COLUMNS, column_sums, own, columns, ROWS, COLUMNS)
    else:
        tl.store(into_tables + pair * tokens + own, height_sums, mask=own < tokens)


@triton.jit(do_not_specialize=["tokens", "heads", "columns"])
def key_gradients(
    query, key, value, gradient, logsum, delta, into_key, into_value, into_tables, first, second, allowed,
    query_b, query_h, query_n, key_b, key_h, key_n, value_b, value_h, value_n, gradient_b, gradient_h, gradient_n,
    into_b, into_h, into_n, allowed_b, allowed_i, allowed_j, table_b,
    tokens, heads, columns, scale,
    HEAD: tl.constexpr, OWN: tl.constexpr, OTHER: tl.constexpr, GRID: tl.constexpr, MEAN: tl.constexpr,
    SELF_LINK: tl.constexpr, LIMITED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """One program: OWN keys and values of one head. Writes their gradients and the read tokens' half of the tables'."""
    tiles = tl.cdiv(tokens, OWN)
    tile = tl.program_id(0) % tiles
    pair = (tl.program_id(0) // tiles).to(tl.int64)
    batch, head = pair // heads, pair % heads
    own = tile * OWN + tl.arange(0, OWN)
    keys = _rows(key + batch * key_b + head * key_h, own, key_n, tokens, HEAD)
    values = _rows(value + batch * value_b + head * value_h, own, value_n, tokens, HEAD)
    key_sums = tl.zeros((OWN, HEAD), tl.float32)
    value_sums = tl.zeros((OWN, HEAD), tl.float32)
    height_sums = tl.zeros((OWN,), tl.float32)
    row_sums = tl.zeros((OWN, COLUMNS), tl.float32)
    column_sums = tl.zeros((OWN, COLUMNS), tl.float32)
    for start in range(0, tokens, OTHER):
        other = start + tl.arange(0, OTHER)
        queries = _rows(query + batch * query_b + head * query_h, other, query_n, tokens, HEAD)
        gradients = _rows(gradient + batch * gradient_b + head * gradient_h, other, gradient_n, tokens, HEAD)
        other_logsum = tl.load(logsum + pair * tokens + other, mask=other < tokens, other=0.0)
        other_delta = tl.load(delta + pair * tokens + other, mask=other < tokens, other=0.0)
        may_read = _may_read(
            allowed + batch * allowed_b, other[None, :], own[:, None], allowed_i, allowed_j, tokens, LIMITED
        )
        scores = _product(keys, tl.trans(queries)) * scale
        shares = tl.where(may_read, tl.exp(scores - other_logsum[None, :]), 0.0)
        pulls = shares * _product(values, tl.trans(gradients))
        if GRID:
            weight, row_first, column_first, across, along, climb = _grid_links(
                first + batch * table_b, second + batch * table_b, own, other, columns, tokens, MEAN, SELF_LINK
            )
            across, along, climb = pulls * row_first * across, pulls * row_first * along, pulls * column_first * climb
            into_rows, into_columns = _grid_gradients(across, along, climb, own, other, columns, COLUMNS)
            row_sums += into_rows
            column_sums += into_columns
        else:
            weight, linked, step = _chain_links(
                first + batch * table_b, second + batch * table_b, own, other, tokens, SELF_LINK
            )
            height_sums -= tl.sum(pulls * linked * step, axis=1)
        value_sums += _product((weight * shares).to(gradients.dtype), gradients)
        into_scores = (weight * pulls - shares * other_delta[None, :]).to(queries.dtype)
        key_sums += _product(into_scores, queries)
    key_sums = (key_sums * scale).to(into_key.dtype.element_ty)
    _store_rows(into_key + batch * into_b + head * into_h, own, into_n, tokens, key_sums, HEAD)
    value_sums = value_sums.to(into_value.dtype.element_ty)
    _store_rows(into_value + batch * into_b + head * into_h, own, into_n, tokens, value_sums, HEAD)
    if GRID:
        table = into_tables + (pair * tiles + tile) * (2 * ROWS * COLUMNS)
        _store_grid(table, row_sums, own, columns, ROWS, COLUMNS)
        _store_grid(table + ROWS * COLUMNS, column_sums, own, columns, ROWS, COLUMNS)
    else:
        tl.store(into_tables + pair * tokens + own, height_sums, mask=own < tokens)
