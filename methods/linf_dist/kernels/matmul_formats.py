"""Matrix products in a named number format: the operands rounded to it, products and sums in float32.

The format is an argument of every product. No global switch is read to choose it or written to get it, so nothing
that runs beside a product, a certificate least of all, can inherit its precision. Here a product is emulated by
rounding the operands, which gives the numbers of a GPU's matrix units up to the order of the sum: a product of two
numbers of 11 significant bits is exact in float32. The units themselves run in `gpu.products`, whose kernels take the
format as an argument too.

    float32: IEEE operands.                                      unit roundoff 2^-24
    tf32:    10 bits behind the point, round to nearest even.    2^-11
    bf16x3:  high + low part in bfloat16; high high + high low + low high, one product of three times the length. 2^-16
"""

import torch
from torch import Tensor

FORMATS = ("float32", "tf32", "bf16x3")
# Guard: a relative error of u in the operands becomes up to u ((|x|_p + |w|_p) / y)^p in y^p, so pairs with y below
# kappa (|x|_p + |w|_p) are computed directly. The values are those measured on trained layers or a little above (bf16x3
# at p = 8: .4, with which whole trainings were compared); tf32 at p = 10 and 12 is set for the same accuracy where one
# weight dominates each row, and then flags 9 and 30 % of the pairs of a Gaussian layer: no use there.
KAPPA: dict[str, dict[int, float]] = {
    "float32": {8: 0.25, 10: 0.33, 12: 0.40},
    "tf32": {8: 0.50, 10: 0.60, 12: 0.66},
    "bf16x3": {8: 0.40, 10: 0.47, 12: 0.50},
}


def check_format(name: str) -> None:
    """ValueError for a name that is not a format."""
    if name not in FORMATS:
        raise ValueError(f"format {name!r}; choose one of {', '.join(FORMATS)}")


def default_kappa(p: int, name: str) -> float:
    """The guard's threshold for y / (|x|_p + |w|_p): the table's; below p = 8 the one with the same kappa ** p."""
    table = KAPPA[name]
    return table[p] if p in table else float(table[8] ** (8 / p))


def round_tf32(a: Tensor) -> Tensor:
    """Nearest float32 with 10 bits behind the point, ties to even, by its bits; finite float32 in, same shape out."""
    bits = a.contiguous().view(torch.int32)
    tie = (bits >> 13) & 1  # odd: a tie goes up
    return ((bits + (0xFFF + tie)) & ~0x1FFF).view(torch.float32)


def halves(a: Tensor) -> tuple[Tensor, Tensor]:
    """(high, low) in bfloat16 with high + low = a up to 2^-16 relative."""
    high = a.bfloat16()
    return high, (a - high.float()).bfloat16()


def product(a: Tensor, b: Tensor, name: str) -> Tensor:
    """a @ b.T in the format: a [M, K], b [N, K] finite float32 -> [M, N] float32.

    Raises:
        ValueError: no such format.
        RuntimeError: a process-wide switch would make torch's float32 products less than IEEE.
    """
    check_format(name)
    if name == "bf16x3":
        (a_high, a_low), (b_high, b_low) = halves(a), halves(b)
        a, b = torch.cat([a_high, a_high, a_low], 1).float(), torch.cat([b_high, b_low, b_high], 1).float()
    elif name == "tf32":
        a, b = round_tf32(a), round_tf32(b)
    backend = getattr(torch.backends.mkldnn, "matmul", None)
    reduced = getattr(backend, "fp32_precision", "ieee") in ("bf16", "tf32")
    if reduced or torch.get_float32_matmul_precision() != "highest":
        raise RuntimeError("torch.set_float32_matmul_precision allows reduced products, which would hide the format "
                           'asked for; set it to "highest"')
    return a @ b.t()
