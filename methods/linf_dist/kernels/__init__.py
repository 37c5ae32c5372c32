"""Distances of l_inf-distance nets: `dist` (any p, differentiable), `interval` (bounds at p = inf), `kernel_info`.

`ops` holds the operations, `reference` the plain torch code and the test oracle, `native.cpp` the compiled code and
`build` its compilation, `schedule` the cheap exponents; `benchmark(seconds=..., device=...)` times it all. `matmul` is
the way by guarded matrix products, for training only, and `benchmark_matmul` its benchmark.
"""

from methods.linf_dist.kernels.benchmark import run as benchmark  # the name hides the module of that name, as meant
from methods.linf_dist.kernels.matmul import EXPONENTS, MatmulStats, dist_matmul, has_units
from methods.linf_dist.kernels.matmul_benchmark import run as benchmark_matmul
from methods.linf_dist.kernels.matmul_formats import FORMATS
from methods.linf_dist.kernels.ops import dist, interval, kernel_info
from methods.linf_dist.kernels.schedule import coarse_even_p

__all__ = [
    "EXPONENTS", "FORMATS", "MatmulStats", "benchmark", "benchmark_matmul", "coarse_even_p", "dist", "dist_matmul",
    "has_units", "interval", "kernel_info",
]  # fmt: skip
