# mypy: disable-error-code="no-untyped-def,no-untyped-call,misc,untyped-decorator"
"""Large p and p = inf on the GPU by candidate lists: visit only the features that can matter to a tile of 128 rows.

With top_i and bottom_i the extremes of feature i over the tile, c_i = max(top_i - w_i, w_i - bottom_i) is at least
|x_bi - w_i| for every row b of it, in floating point too (rounding is monotone). A feature with c_i < tau * min_b M_b
cannot matter: at p = inf tau is 1 and nothing is lost; at finite p the dropped terms are each below 2^-24 / I of the
largest, in the sum and, with the exponent p - 1 in tau, in the gradient. A lower bound of every M_b comes from 16 seed
features. On trained nets 1-9 % of the features of identity layers remain at p >= 50.

A warp holds 128 rows and runs over the list of one output, 8 features at a time, so no lane idles. A list that
overflows its capacity stands for all features: always right, only slower. Powers are relative to the exact M, so that
gradients at p = 1000 are as good as at p = 8. dx runs over the same triples by lists of outputs per feature. No
atomics: every sum has a fixed order.

Layout (`lists.py` builds it): I padded with zeros to `n_in`, a multiple of 16; x as [tiles, n_in + 1, 128], whose last
feature is 0 and stands behind the end of every list: it adds nothing to a maximum, and its power is 0.

Counted for sm_90 (Triton 3.7.1, `counts`), instructions per visited element: p = inf 4.47, with argmax 6.50; large p
4.41 + 16.47, dw 21.5, dx 21.1. Finding the lists takes 46 per output and feature of a tile, 0.36 per dense element.
"""

import triton
import triton.language as tl

from methods.linf_dist.kernels.gpu.power import fast_reciprocal, with_sign_of

TILE_ROWS = 128
GROUP = 8  # list entries that a warp has in flight
SEEDS = 16
CHUNK = 512


@triton.jit
def log2_ratio(a, m, INTERPRETED: tl.constexpr):
    """log2(a / m) / (-2 / ln 2) for 0 <= a <= m: atanh z with z = (m - a) / (m + a), exact where the ratio is near 1.

    Five terms of the series: relative error below 3e-7 for a / m >= 0.56. Smaller ratios come out too large, but at
    most at 0.03, whose 63rd power is 0.
    """
    z = (m - a) * fast_reciprocal(m + a, INTERPRETED)
    s = z * z
    q = tl.fma(s, 1.0 / 9.0, 1.0 / 7.0)
    q = tl.fma(s, q, 1.0 / 5.0)
    q = tl.fma(s, q, 1.0 / 3.0)
    return tl.fma(s * z, q, z)


@triton.jit
def bound(top, bottom, w):
    """The largest |x - w| for bottom <= x <= top; NaN if any of the three is."""
    return tl.maximum(top - w, w - bottom, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def append(list_at, count, index, keep, capacity):
    """Write the kept indices behind the first `count` of a list as far as it has room; the new count."""
    n = keep.to(tl.int32)
    at = count + tl.cumsum(n, axis=0) - 1
    tl.store(list_at + at, index, mask=keep & (at < capacity))
    return count + tl.sum(n, axis=0)


@triton.jit
def finish(list_at, count, nothing, capacity, GROUP: tl.constexpr):
    """Fill the group that the end of a list lies in with `nothing`."""
    at = count + tl.arange(0, GROUP)
    tl.store(list_at + at, tl.zeros((GROUP,), tl.int32) + nothing, mask=at < capacity + GROUP)


@triton.jit
def find_features(
    xt_ptr, top_ptr, bottom_ptr, w_ptr, list_ptr, count_ptr, threshold_ptr, p_ptr, n_tiles, n_in, capacity,
    EXACT: tl.constexpr, TILE_ROWS: tl.constexpr, GROUP: tl.constexpr, SEEDS: tl.constexpr, CHUNK: tl.constexpr,
):
    """The features that output o must look at for row tile t.

    list: n_in + GROUP entries 0, 1, 2, ..., for lists that overflow, then [O, tiles, capacity + GROUP].
    """
    o = tl.program_id(0)
    t = tl.program_id(1)
    top_at = top_ptr + t * n_in
    bottom_at = bottom_ptr + t * n_in
    w_at = w_ptr + o.to(tl.int64) * n_in
    WIDTH: tl.constexpr = CHUNK // SEEDS
    lane2 = tl.arange(0, SEEDS)[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    best = tl.full((SEEDS, WIDTH), -1.0, tl.float32)
    where = tl.zeros((SEEDS, WIDTH), tl.int32)
    for start in range(0, n_in, CHUNK):
        i = start + lane2
        there = i < n_in
        c = bound(tl.load(top_at + i, mask=there, other=0.0), tl.load(bottom_at + i, mask=there, other=0.0),
                  tl.load(w_at + i, mask=there, other=0.0))
        better = there & (c > best)
        best = tl.where(better, c, best)
        where = tl.where(better, i, where)
    largest = tl.max(best, axis=1)
    seed = tl.min(tl.where(best == largest[:, None], where, n_in), axis=1)  # [SEEDS]
    rows = tl.arange(0, TILE_ROWS)
    x = tl.load(xt_ptr + (t.to(tl.int64) * (n_in + 1) + seed[:, None]) * TILE_ROWS + rows[None, :])
    d = tl.abs(x - tl.load(w_at + seed)[:, None])
    # A row with a NaN here comes out as NaN whatever else is listed: it must not spoil the others' threshold.
    low = tl.max(tl.where(d == d, d, float("inf")), axis=0)
    threshold = tl.min(low, axis=0)
    if not EXACT:
        threshold *= tl.exp2((-24.0 - tl.log2(n_in.to(tl.float32))) / (tl.load(p_ptr) - 1.0)) * (1.0 - 1e-6)
    list_at = list_ptr + n_in + GROUP + (o * n_tiles + t).to(tl.int64) * (capacity + GROUP)
    lane = tl.arange(0, CHUNK)
    count = 0
    for start in range(0, n_in, CHUNK):
        i = start + lane
        there = i < n_in
        c = bound(tl.load(top_at + i, mask=there, other=0.0), tl.load(bottom_at + i, mask=there, other=0.0),
                  tl.load(w_at + i, mask=there, other=0.0))
        count = append(list_at, count, i, there & ((c >= threshold) | (c != c)), capacity)
    finish(list_at, count, n_in, capacity, GROUP)
    tl.store(count_ptr + o * n_tiles + t, count)
    tl.store(threshold_ptr + t * tl.num_programs(0) + o, threshold)


@triton.jit
def find_outputs(
    top_ptr, bottom_ptr, wt_ptr, list_ptr, count_ptr, threshold_ptr, n_tiles, n_in, n_outs, capacity,
    GROUP: tl.constexpr, CHUNK: tl.constexpr,
):
    """The outputs whose list for row tile t holds feature i; wt is w transposed, [n_in, n_outs]; list as above."""
    i = tl.program_id(0)
    t = tl.program_id(1)
    top = tl.load(top_ptr + t * n_in + i)
    bottom = tl.load(bottom_ptr + t * n_in + i)
    list_at = list_ptr + n_outs + GROUP + (i * n_tiles + t).to(tl.int64) * (capacity + GROUP)
    wt_at = wt_ptr + i.to(tl.int64) * n_outs
    lane = tl.arange(0, CHUNK)
    count = 0
    for start in range(0, n_outs, CHUNK):
        o = start + lane
        there = o < n_outs
        c = bound(top, bottom, tl.load(wt_at + o, mask=there, other=0.0))
        threshold = tl.load(threshold_ptr + t * n_outs + o, mask=there, other=0.0)
        count = append(list_at, count, o, there & ((c >= threshold) | (c != c)), capacity)
    finish(list_at, count, n_outs, capacity, GROUP)
    tl.store(count_ptr + i * n_tiles + t, count)


@triton.jit
def open_list(list_ptr, count_ptr, which, n_all, capacity, GROUP: tl.constexpr):
    """(first entry, length) of list number `which`: its own entries, or all of 0 .. n_all - 1 where it overflowed."""
    n = tl.load(count_ptr + which)
    own = n_all + GROUP + tl.cast(which, tl.int64) * (capacity + GROUP)
    return list_ptr + tl.where(n > capacity, 0, own), tl.where(n > capacity, n_all, n)


@triton.jit
def list_linf(
    xt_ptr, w_ptr, y_ptr, code_ptr, list_ptr, count_ptr, run_ptr, n_rows, n_outs, n_tiles, n_in, capacity,
    WITH_CODE: tl.constexpr, TILE_ROWS: tl.constexpr, GROUP: tl.constexpr,
):
    """p = inf for one output and 128 rows: y, and the argmax code as `linf.linf_locate` gives it; if *run_ptr."""
    if tl.load(run_ptr) == 0:
        return
    o = tl.program_id(0)
    t = tl.program_id(1)
    rows = tl.arange(0, TILE_ROWS)
    xt_at = xt_ptr + t.to(tl.int64) * (n_in + 1) * TILE_ROWS + rows[None, :]
    w_at = w_ptr + o.to(tl.int64) * n_in
    list_at, n = open_list(list_ptr, count_ptr, o * n_tiles + t, n_in, capacity, GROUP)
    best = tl.zeros((GROUP, TILE_ROWS), tl.float32)
    key = tl.zeros((GROUP, TILE_ROWS), tl.int32)
    for start in range(0, n, GROUP):
        i = tl.load(list_at + start + tl.arange(0, GROUP))
        d = tl.abs(tl.load(xt_at + i[:, None] * TILE_ROWS) - tl.load(w_at + i, mask=i < n_in, other=0.0)[:, None])
        if WITH_CODE:  # strictly larger, and lists ascend: the lowest index of this lane stays
            key = tl.where(d > best, i[:, None], key)
        best = tl.maximum(best, d, propagate_nan=tl.PropagateNan.ALL)
    nan = tl.max((best != best).to(tl.int32), axis=0) > 0
    y = tl.max(tl.where(best == best, best, 0.0), axis=0)
    b = t * TILE_ROWS + rows
    at = b * n_outs + o
    tl.store(y_ptr + at, tl.where(nan, float("nan"), y), mask=b < n_rows)
    if WITH_CODE:
        first = tl.min(tl.where(best == y[None, :], key, n_in), axis=0)  # n_in for a NaN: the feature of zeros
        w = tl.load(w_at + first, mask=first < n_in, other=0.0)
        negative = tl.load(xt_ptr + (t.to(tl.int64) * (n_in + 1) + first) * TILE_ROWS + rows) < w
        code = first | (negative.to(tl.int32) << 31)
        code = tl.where((y == 0) | (y == float("inf")), -1, code)  # reference.NO_GRADIENT
        tl.store(code_ptr + at, tl.where(nan, -2, code), mask=b < n_rows)  # reference.NAN_PAIR


@triton.jit
def list_power(
    xt_ptr, w_ptr, y_ptr, m_ptr, root_ptr, list_ptr, count_ptr, p_ptr, n_rows, n_outs, n_tiles, n_in, capacity,
    SAVE: tl.constexpr, INTERPRETED: tl.constexpr, TILE_ROWS: tl.constexpr, GROUP: tl.constexpr,
):
    """Finite p for one output and 128 rows: y with -1 where `robust` must redo it, or, SAVE, what the gradient needs.

    SAVE: M (1 where it is out of range) and log2(sum) * (p - 1) / p into `m` and `root`, [tiles, O + 1, TILE_ROWS].
    """
    o = tl.program_id(0)
    t = tl.program_id(1)
    rows = tl.arange(0, TILE_ROWS)
    xt_at = xt_ptr + t.to(tl.int64) * (n_in + 1) * TILE_ROWS + rows[None, :]
    w_at = w_ptr + o.to(tl.int64) * n_in
    list_at, n = open_list(list_ptr, count_ptr, o * n_tiles + t, n_in, capacity, GROUP)
    p = tl.load(p_ptr)
    best = tl.zeros((GROUP, TILE_ROWS), tl.float32)
    for start in range(0, n, GROUP):
        i = tl.load(list_at + start + tl.arange(0, GROUP))
        d = tl.load(xt_at + i[:, None] * TILE_ROWS) - tl.load(w_at + i, mask=i < n_in, other=0.0)[:, None]
        best = tl.maximum(best, tl.abs(d), propagate_nan=tl.PropagateNan.ALL)
    nan = tl.max((best != best).to(tl.int32), axis=0) > 0
    m = tl.max(tl.where(best == best, best, 0.0), axis=0)
    inner = (m >= 2.0**-100) & (m <= 2.0**100) & (nan == 0)
    unit = tl.where(inner, m, 1.0)
    exponent = -2.8853900817779268 * p  # -2 / ln 2, see log2_ratio
    total = tl.zeros((GROUP, TILE_ROWS), tl.float32)
    for start in range(0, n, GROUP):
        i = tl.load(list_at + start + tl.arange(0, GROUP))
        d = tl.load(xt_at + i[:, None] * TILE_ROWS) - tl.load(w_at + i, mask=i < n_in, other=0.0)[:, None]
        total += tl.exp2(exponent * log2_ratio(tl.abs(d), unit[None, :], INTERPRETED))
    log_sum = tl.log2(tl.sum(total, axis=0))
    if SAVE:
        at = (t.to(tl.int64) * (n_outs + 1) + o) * TILE_ROWS + rows
        tl.store(m_ptr + at, unit)
        tl.store(root_ptr + at, tl.where(inner, log_sum * ((p - 1.0) / p), 0.0))
    else:
        y = tl.where(inner, m * tl.exp2(log_sum / p), -1.0)
        y = tl.where((m == 0) | (m == float("inf")), m, y)
        b = t * TILE_ROWS + rows
        tl.store(y_ptr + b * n_outs + o, tl.where(nan, float("nan"), y), mask=b < n_rows)


@triton.jit
def list_weights(signed, m, root, grad, exponent, INTERPRETED: tl.constexpr):
    """grad * sgn(d) * (|d| / y)^(p - 1) with y = m * sum^(1 / p) and root = log2(sum) * (p - 1) / p."""
    log = tl.fma(log2_ratio(tl.abs(signed), m, INTERPRETED), exponent, -root)
    return tl.exp2(log) * with_sign_of(grad, signed)


@triton.jit
def list_gradient_w(
    xt_ptr, w_ptr, m_ptr, root_ptr, grad_ptr, dw_ptr, list_ptr, count_ptr, p_ptr, n_outs, n_tiles, n_in, capacity,
    INTERPRETED: tl.constexpr, TILE_ROWS: tl.constexpr, GROUP: tl.constexpr,
):
    """dw[o] over all rows, tile after tile; dw starts as zeros. m, root, grad [tiles, O + 1, TILE_ROWS]."""
    o = tl.program_id(0)
    rows = tl.arange(0, TILE_ROWS)
    w_at = w_ptr + o.to(tl.int64) * n_in
    dw_at = dw_ptr + o.to(tl.int64) * n_in
    exponent = -2.8853900817779268 * (tl.load(p_ptr) - 1.0)
    for t in range(0, n_tiles):
        xt_at = xt_ptr + tl.cast(t, tl.int64) * (n_in + 1) * TILE_ROWS + rows[None, :]
        list_at, n = open_list(list_ptr, count_ptr, o * n_tiles + t, n_in, capacity, GROUP)
        at = (tl.cast(t, tl.int64) * (n_outs + 1) + o) * TILE_ROWS + rows
        m = tl.load(m_ptr + at)[None, :]
        root = tl.load(root_ptr + at)[None, :]
        grad = tl.load(grad_ptr + at)[None, :]
        for start in range(0, n, GROUP):
            i = tl.load(list_at + start + tl.arange(0, GROUP))
            there = i < n_in
            signed = tl.load(xt_at + i[:, None] * TILE_ROWS) - tl.load(w_at + i, mask=there, other=0.0)[:, None]
            part = tl.sum(list_weights(signed, m, root, grad, exponent, INTERPRETED), axis=1)
            tl.store(dw_at + i, tl.load(dw_at + i, mask=there, other=0.0) - part, mask=there)
        tl.debug_barrier()  # the next tile may visit the same features from other threads


@triton.jit
def list_gradient_x(
    xt_ptr, wt_ptr, m_ptr, root_ptr, grad_ptr, dxt_ptr, list_ptr, count_ptr, p_ptr, n_outs, n_tiles, n_in, capacity,
    INTERPRETED: tl.constexpr, TILE_ROWS: tl.constexpr, GROUP: tl.constexpr,
):
    """dx of feature i for 128 rows, transposed: dxt [tiles, n_in, TILE_ROWS]. Lists of outputs, wt [n_in, n_outs]."""
    i = tl.program_id(0)
    t = tl.program_id(1)
    rows = tl.arange(0, TILE_ROWS)
    x = tl.load(xt_ptr + (t.to(tl.int64) * (n_in + 1) + i) * TILE_ROWS + rows)[None, :]
    wt_at = wt_ptr + i.to(tl.int64) * n_outs
    list_at, n = open_list(list_ptr, count_ptr, i * n_tiles + t, n_outs, capacity, GROUP)
    exponent = -2.8853900817779268 * (tl.load(p_ptr) - 1.0)
    total = tl.zeros((GROUP, TILE_ROWS), tl.float32)
    pair_at = t.to(tl.int64) * (n_outs + 1) * TILE_ROWS + rows[None, :]
    for start in range(0, n, GROUP):
        o = tl.load(list_at + start + tl.arange(0, GROUP))  # n_outs behind the end: grad is 0 there
        at = pair_at + o[:, None] * TILE_ROWS
        signed = x - tl.load(wt_at + o, mask=o < n_outs, other=0.0)[:, None]
        total += list_weights(signed, tl.load(m_ptr + at), tl.load(root_ptr + at), tl.load(grad_ptr + at), exponent,
                              INTERPRETED)
    tl.store(dxt_ptr + (t.to(tl.int64) * n_in + i) * TILE_ROWS + rows, tl.sum(total, axis=0))
