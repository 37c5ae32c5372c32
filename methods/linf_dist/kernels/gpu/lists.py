"""The host side of `candidates`: builds the lists, launches, and hands what they cannot do to `robust` or `linf`."""

from dataclasses import dataclass

import torch
from torch import Tensor

from methods.linf_dist.kernels.gpu import candidates as kernels
from methods.linf_dist.kernels.gpu import linf, robust, tiling
from methods.linf_dist.kernels.gpu.gradient import coefficients
from methods.linf_dist.kernels.gpu.launch import INTERPRETED, exponent_buffer, on_device

MIN_P = 64.0  # below, lists keep too much of a layer that is not trained yet
SHARE = 0.25  # a list has room for this share of the features; a longer one stands for all of them
# At p = inf the lists run where they keep at most this share on average: an entry costs about 2.5 times the dense
# kernel's instructions, and building the lists about a sixth of the dense kernel.
LINF_SHARE = 0.25
MAX_ENTRIES = 2**26  # list entries (256 MB) at a time; more rows are taken in parts
ALIGN = 16  # of I and O: reads of 128 bits
ROWS = kernels.TILE_ROWS
COMMON: dict[str, int] = {"TILE_ROWS": ROWS, "GROUP": kernels.GROUP, "num_warps": 1, "num_stages": 1}


@dataclass(frozen=True)
class Lists:
    """The features to visit for each (output, tile of 128 rows), and the padded operands they point into."""

    xt: Tensor  # [tiles, I' + 1, 128], the last tile filled up with copies of the last row, the last feature 0
    w: Tensor  # [O, I']
    top: Tensor  # [tiles, I'] largest value of a feature in the tile; NaN if one is
    bottom: Tensor
    entries: Tensor  # int32, see `candidates.find_features`
    counts: Tensor  # int32 [O, tiles]
    thresholds: Tensor  # float32 [tiles, O]
    capacity: int

    @property
    def sizes(self) -> tuple[int, int, int]:
        """(tiles, I', capacity), as the kernels take them."""
        return self.xt.shape[0], self.w.shape[1], self.capacity

    def kept(self) -> Tensor:
        """Share of the (output, tile, feature) triples to visit: a scalar on the device."""
        return self.counts.sum() / (self.counts.numel() * self.w.shape[1])


def _blank(n_lists: int, n_all: int, device: torch.device) -> tuple[Tensor, int]:
    """Memory for `n_lists` lists over 0 .. n_all - 1, behind the list of all of them; and their capacity."""
    capacity = tiling.padded(int(n_all * SHARE), ALIGN)
    entries = torch.empty(n_all + kernels.GROUP + n_lists * (capacity + kernels.GROUP), dtype=torch.int32,
                          device=device)
    everything = torch.arange(n_all + kernels.GROUP, dtype=torch.int32, device=device).clamp_(max=n_all)
    entries[: everything.numel()] = everything
    return entries, capacity


def build(x: Tensor, w: Tensor, exponent: Tensor | None) -> Lists:
    """Lists for x [B, I], w [O, I] float32, B > 0; `exponent` float32 [1], None for p = inf."""
    n_in, n_outs = x.shape[1], w.shape[0]
    extra = tiling.padded(n_in, ALIGN) - n_in
    w = torch.nn.functional.pad(w, (0, extra)) if extra else w.contiguous()
    missing = tiling.padded(x.shape[0], ROWS) - x.shape[0]
    filled = torch.cat([x, x[-1:].expand(missing, n_in)]) if missing else x
    xt = tiling.pack(torch.nn.functional.pad(filled, (0, extra + 1)), ROWS, 1)
    top, bottom = (a[:, :-1].contiguous() for a in (xt.amax(-1), xt.amin(-1)))
    n_tiles, width = top.shape
    entries, capacity = _blank(n_outs * n_tiles, width, x.device)
    counts = torch.empty(n_outs, n_tiles, dtype=torch.int32, device=x.device)
    thresholds = torch.empty(n_tiles, n_outs, dtype=torch.float32, device=x.device)
    with on_device(x):
        kernels.find_features[(n_outs, n_tiles)](
            xt, top, bottom, w, entries, counts, thresholds, counts if exponent is None else exponent,
            n_tiles, width, capacity, EXACT=exponent is None, SEEDS=kernels.SEEDS, CHUNK=kernels.CHUNK, **COMMON,
        )
    return Lists(xt, w, top, bottom, entries, counts, thresholds, capacity)


def _parts(x: Tensor, w: Tensor) -> list[slice]:
    """Row ranges, whole tiles each, whose lists fit into MAX_ENTRIES. Results do not depend on them (dw: rounding)."""
    longest = max(n * (int(m * SHARE) + 2 * ALIGN) for n, m in (w.shape, w.shape[::-1]))
    rows = max(1, MAX_ENTRIES // longest) * ROWS
    return [slice(b, b + rows) for b in range(0, x.shape[0], rows)]


def linf_forward(x: Tensor, w: Tensor, with_code: bool) -> tuple[Tensor, Tensor]:
    """p = inf as `linf.forward`, bit for bit; the device decides between lists and the dense kernel.

    Both kernels are launched and one returns at once: the host never waits for the lists' lengths.
    """
    y, code = linf.empty_results(x, w, with_code)
    if y.numel() == 0:
        return y, code
    for part in _parts(x, w):
        rows, y_part, code_part = x[part].contiguous(), y[part], code[part] if with_code else code
        found = build(rows, w, None)
        run_lists = (found.kept() <= LINF_SHARE).to(torch.int32).view(1)
        with on_device(x):
            kernels.list_linf[(w.shape[0], found.sizes[0])](
                found.xt, found.w, y_part, code_part, found.entries, found.counts, run_lists, rows.shape[0],
                w.shape[0], *found.sizes, WITH_CODE=with_code, **COMMON,
            )
        linf.run_dense(rows, w.contiguous(), y_part, code_part, 1 - run_lists)
    return y, code


def forward(x: Tensor, w: Tensor, p: float, exponent: Tensor | None = None) -> Tensor:
    """x [B, I], w [O, I] float32, finite p >= `MIN_P` -> y [B, O]; `exponent` as in `finite.forward`."""
    y = x.new_empty(x.shape[0], w.shape[0])
    if y.numel() == 0:
        return y
    exponent = exponent_buffer(p, x) if exponent is None else exponent
    for part in _parts(x, w):
        found = build(x[part], w, exponent)
        with on_device(x):
            kernels.list_power[(w.shape[0], found.sizes[0])](
                found.xt, found.w, y[part], y, y, found.entries, found.counts, exponent, y[part].shape[0], w.shape[0],
                *found.sizes, SAVE=False, INTERPRETED=INTERPRETED, **COMMON,
            )
    robust.redo_forward(x, w, y, exponent)
    return y


def backward(
    grad: Tensor, x: Tensor, w: Tensor, y: Tensor, p: float, need_x: bool, need_w: bool, exponent: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(dx [B, I], dw [O, I]) as `gradient.backward`, for p >= `MIN_P`."""
    dx = torch.zeros_like(x, memory_format=torch.contiguous_format) if need_x else x.new_empty(0, 0)
    dw = torch.zeros_like(w, memory_format=torch.contiguous_format) if need_w else w.new_empty(0, 0)
    if y.numel() == 0:
        return dx, dw
    exponent = exponent_buffer(p, x) if exponent is None else exponent
    c = coefficients(grad.contiguous(), y, p, half=0)
    redo = c.redo | y.isnan()  # a NaN pair reaches every feature, not only the listed ones
    scale = torch.where(redo, 0.0, c.scale)
    for part in _parts(x, w):
        found = build(x[part], w, exponent)
        saved = _save_powers(found, scale[part], exponent)
        if need_w:
            dw += _gradient_w(found, saved, exponent)[:, : w.shape[1]]
        if need_x:
            dx[part] = _gradient_x(found, saved, exponent)[: dx[part].shape[0], : x.shape[1]]
    if need_x:
        robust.redo_gradient(x, w, y, c.scale, redo.any(1).int(), dx, exponent)
    if need_w:
        robust.redo_gradient(w, x, y.t(), c.scale.t(), redo.any(0).int(), dw, exponent)
    return dx, dw


def _save_powers(found: Lists, scale: Tensor, exponent: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(M, root, gradient) of every pair, [tiles, O + 1, 128] each; output O, behind every list, has gradient 0."""
    grad = tiling.pack(torch.nn.functional.pad(scale, (0, 1)), ROWS, 1)
    m, root = torch.full_like(grad, 2.0**100), torch.zeros_like(grad)  # above any |d|: the power of the last is 0
    n_outs = scale.shape[1]
    with on_device(grad):
        kernels.list_power[(n_outs, found.sizes[0])](
            found.xt, found.w, m, m, root, found.entries, found.counts, exponent, scale.shape[0], n_outs, *found.sizes,
            SAVE=True, INTERPRETED=INTERPRETED, **COMMON,
        )
    return m, root, grad


def _gradient_w(found: Lists, saved: tuple[Tensor, Tensor, Tensor], exponent: Tensor) -> Tensor:
    dw = torch.zeros_like(found.w)
    with on_device(dw):
        kernels.list_gradient_w[(dw.shape[0],)](
            found.xt, found.w, *saved, dw, found.entries, found.counts, exponent, dw.shape[0], *found.sizes,
            INTERPRETED=INTERPRETED, **COMMON,
        )
    return dw


def _gradient_x(found: Lists, saved: tuple[Tensor, Tensor, Tensor], exponent: Tensor) -> Tensor:
    n_tiles, width, _ = found.sizes
    n_outs = found.w.shape[0]
    wt = found.w.t().contiguous()
    entries, capacity = _blank(width * n_tiles, n_outs, wt.device)
    counts = torch.empty(width, n_tiles, dtype=torch.int32, device=wt.device)
    dxt = found.xt.new_empty(n_tiles, width, ROWS)
    with on_device(wt):
        kernels.find_outputs[(width, n_tiles)](
            found.top, found.bottom, wt, entries, counts, found.thresholds, n_tiles, width, n_outs, capacity,
            GROUP=kernels.GROUP, CHUNK=kernels.CHUNK, num_warps=1, num_stages=1,
        )
        kernels.list_gradient_x[(width, n_tiles)](
            found.xt, wt, *saved, dxt, entries, counts, exponent, n_outs, n_tiles, width, capacity,
            INTERPRETED=INTERPRETED, **COMMON,
        )
    return dxt.transpose(1, 2).reshape(-1, width)
