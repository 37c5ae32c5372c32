# mypy: disable-error-code="no-untyped-def,no-untyped-call,misc,untyped-decorator"
"""Powers on the GPU: chains of multiplications for even exponents, the special-function unit for real ones.

The unit's base-2 logarithm and exponential have a relative error of about 2^-22 [PTX ISA]; |d| / y is near 1 where a
term matters, so a power is good to about p * 2^-22. Training only: nothing at p = inf calls them.
"""

import triton
import triton.language as tl


@triton.jit
def power(s, N: tl.constexpr):
    """s ** N for a whole 1 <= N < 64 by squaring."""
    r = s
    for k in tl.static_range(6):  # the bits of N below its leading one, from the top
        if (N >> (6 - k)) > 0:
            r = r * r
            if (N >> (5 - k)) & 1:
                r = r * s
    return r


@triton.jit
def add_power(total, s, N: tl.constexpr):
    """total + s ** N, the last multiplication fused with the addition."""
    if N == 1:
        return total + s
    HALF: tl.constexpr = N // 2
    LESS: tl.constexpr = N - 1
    if N % 2 == 0:
        h = power(s, HALF)
        return tl.fma(h, h, total)
    return tl.fma(power(s, LESS), s, total)


@triton.jit
def fast_log2(t, INTERPRETED: tl.constexpr):
    """log2(t) for t >= 0 in one instruction (Triton's own is a library call of about twenty); log2(0) = -inf."""
    if INTERPRETED:
        return tl.log2(t)
    return tl.inline_asm_elementwise("lg2.approx.ftz.f32 $0, $1;", "=f,f", [t], dtype=tl.float32, is_pure=True, pack=1)


@triton.jit
def with_sign_of(magnitude, d):
    """`magnitude` with its sign flipped where d is negative, by the sign bits alone."""
    flip = d.to(tl.int32, bitcast=True) & -2147483648
    return (magnitude.to(tl.int32, bitcast=True) ^ flip).to(tl.float32, bitcast=True)


@triton.jit
def fast_reciprocal(t, INTERPRETED: tl.constexpr):
    """1 / t to one unit in the last place for 2^-126 <= t <= 2^126 (a division takes about eight instructions)."""
    if INTERPRETED:
        return 1.0 / t
    return tl.inline_asm_elementwise("rcp.approx.ftz.f32 $0, $1;", "=f,f", [t], dtype=tl.float32, is_pure=True, pack=1)
