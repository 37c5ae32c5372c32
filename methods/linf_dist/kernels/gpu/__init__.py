"""Distances on CUDA devices in Triton kernels: the same operations as `reference`, with no build step.

`available` says whether they take a tensor; Triton is imported, and a short comparison with `reference` run on the
device, at its first call. Where Triton is missing, the device too old or the comparison fails, one line says so and
plain torch runs instead.

Written without a device at hand: checked in Triton's interpreter and in machine code compiled for sm_90, whose
instruction counts (`counts`) stand in the modules' docstrings. No time of theirs is known yet.
"""

from methods.linf_dist.kernels.gpu.dispatch import available, backward, forward, info, interval

__all__ = ["available", "backward", "forward", "info", "interval"]
