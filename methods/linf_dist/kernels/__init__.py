"""Distances of l_inf-distance nets: `dist` (any p, differentiable), `interval` (bounds at p = inf), `kernel_info`.

`ops` holds the operations, `reference` the plain torch code and the test oracle, `native.cpp` the compiled code and
`build` its compilation, `schedule` the cheap exponents; `benchmark(seconds=..., device=...)` times it all.
"""

from methods.linf_dist.kernels.benchmark import run as benchmark  # the name hides the module of that name, as meant
from methods.linf_dist.kernels.ops import dist, interval, kernel_info
from methods.linf_dist.kernels.schedule import coarse_even_p

__all__ = ["benchmark", "coarse_even_p", "dist", "interval", "kernel_info"]
