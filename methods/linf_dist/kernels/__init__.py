"""Distances of l_inf-distance nets: `dist` (any p, differentiable), `interval` (bounds at p = inf), `kernel_info`.

`ops` holds the operations, `reference` the plain torch code and the test oracle, `schedule` the cheap exponents.
"""

from methods.linf_dist.kernels.ops import dist, interval, kernel_info
from methods.linf_dist.kernels.schedule import coarse_even_p

__all__ = ["coarse_even_p", "dist", "interval", "kernel_info"]
