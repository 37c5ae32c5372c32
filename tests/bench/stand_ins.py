"""Small methods with known answers, honest and dishonest, for the tests of evaluation. Loaded by path with runpy."""

import itertools
import math

import torch
from torch import nn

from bench import Bound, DataSpec, Method, margin
from bench.certify import bisect_radius
from bench.data import Split
from bench.threat import box, box_float32


def spec(shape=(1, 2, 3), classes=3, levels=256):
    return DataSpec("stand_in", *shape, classes, (0.5,) * shape[0], (0.25,) * shape[0], levels)


def split(images, labels, levels=256, index=None):
    images = torch.as_tensor(images, dtype=torch.uint8)
    where = torch.arange(len(images)) * 7 + 3 if index is None else torch.as_tensor(index)
    return Split(images, torch.as_tensor(labels, dtype=torch.int64), where, levels)


def random_split(n=40, shape=(1, 2, 3), classes=3, levels=256, seed=0):
    g = torch.Generator().manual_seed(seed)
    images = torch.randint(0, levels, (n, *shape), generator=g)
    return split(images, torch.randint(0, classes, (n,), generator=g), levels)


def labelled_by(net, data):
    """The same images, labelled by the net's own answer: clean accuracy 100 %."""
    with torch.no_grad():
        return Split(data.images, net(data.pixels(slice(0, None))).argmax(1), data.index, data.levels)


# --- distance nets, class D -------------------------------------------------------------------------------------------


class Dist(nn.Module):
    """One layer of distances max_i |x_i - w_ki|, minus a mean, plus a bias."""

    def __init__(self, n_in, n_out, scale=1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_out, n_in) * scale)
        self.bias = nn.Parameter(torch.randn(n_out) * 0.1)
        self.register_buffer("mean", torch.rand(n_out))

    def forward(self, h, p=math.inf):
        gap = (h[:, None, :] - self.weight).abs()
        d = gap.amax(2) if math.isinf(p) else gap.amax(2) * ((gap / gap.amax(2, keepdim=True)) ** p).sum(2) ** (1 / p)
        return (d - self.mean) + self.bias

    def bounds(self, lo, hi):
        a, c = lo[:, None, :] - self.weight, hi[:, None, :] - self.weight
        low = torch.maximum(a, -c).amax(2).clamp(min=0.0)
        high = torch.maximum(-a, c).amax(2)
        return (low - self.mean) + self.bias, (high - self.mean) + self.bias


class DistNet(nn.Module):
    def __init__(self, *sizes, scale=1.0):
        super().__init__()
        self.layers = nn.ModuleList(Dist(i, o, scale) for i, o in itertools.pairwise(sizes))

    def forward(self, x, p=math.inf):
        h = x.flatten(1)
        for layer in self.layers:
            h = layer(h, p)
        return -h

    def bounds(self, lo, hi):
        lo, hi = lo.flatten(1), hi.flatten(1)
        for layer in self.layers:
            lo, hi = layer.bounds(lo, hi)
        return -hi, -lo


class Smoothed(nn.Module):
    def __init__(self, net, p):
        super().__init__()
        self.net, self.p = net, p

    def forward(self, x):
        return self.net(x, self.p)


class DistMethod(Method):
    """Interval propagation in the net's own operations; `cheat` misstates the certificate in a named way."""

    name, title = "dist", "Dist"

    def __init__(self, cheat=None, surrogates=(8.0, 32.0), closed=True):
        self.cheat, self.surrogates, self.closed = cheat, surrogates, closed

    def lower(self, net, lo, hi, y):
        z_lo, z_hi = net.bounds(lo, hi)
        own = z_lo.gather(1, y[:, None])[:, 0].double()
        return own - z_hi.scatter(1, y[:, None], -math.inf).amax(1).double()

    def margin_bound(self, net, x, y, eps):
        if self.cheat == "radius":  # 1e-3 too small a ball
            r = torch.full((len(x),), float(eps) * (1 - 1e-3))
            return Bound(self.lower(net, *box_float32(x, r), y), "interval", "D")
        lower = self.lower(net, *box(x, eps), y)
        if self.cheat in ("clean", "clean R"):
            lower = margin(net(x), y)
        if self.cheat == "above":
            lower = margin(net(x), y) + 1e-9
        if self.cheat == "not strict":
            lower = torch.where(lower == 0, 1e-30, lower)
        return Bound(lower, "interval", "R" if self.cheat == "clean R" else "D")

    def radius(self, net, x, y):
        if not self.closed:
            return None
        right = margin(net(x), y) > 0
        holds = lambda r: right & (self.lower(net, *box_float32(x, r), y) > 0)  # noqa: E731
        radius = bisect_radius(holds, len(x), device=x.device).double()
        return radius * (1 + 1e-5) if self.cheat == "inflated radius" else radius

    def attack_models(self, net):
        return [(f"p{p:g}", Smoothed(net, p)) for p in self.surrogates]


class Canary(nn.Module):
    """Two classes, centres A = x - t s and B = x + q s: the nearest point of equal logits is x + r s, r = margin / 2.

    Every certificate with a radius above r is false, and only one direction in 2^d shows it.
    """

    def __init__(self, x, s, t, q):
        super().__init__()
        self.layers = nn.ModuleList([Dist(x.numel(), 2)])
        layer = self.layers[0]
        with torch.no_grad():
            layer.weight.copy_(torch.stack([x - t * s, x + q * s]))
            layer.bias.zero_()
            layer.mean.zero_()

    forward, bounds = DistNet.forward, DistNet.bounds


def canary(seed, pixels=12):
    """A canary and its one example: (net, split, label 0); radii of about 0.05 to 0.15, away from 0 and 1."""
    g = torch.Generator().manual_seed(seed)
    images = torch.randint(64, 192, (1, 1, 3, pixels // 3), generator=g)
    data = split(images, [0])
    s = torch.randint(0, 2, (pixels,), generator=g) * 2.0 - 1.0
    t = 0.1 + 0.1 * torch.rand((), generator=g)
    q = t + 0.1 + 0.2 * torch.rand((), generator=g)
    return Canary(data.pixels(slice(0, 1)).flatten(), s, t, q), data


class Spike(nn.Module):
    """Class 0 everywhere but in a small box around a hidden point; outside it every gradient is zero (P13)."""

    def __init__(self, point, reach=0.04):
        super().__init__()
        self.layers = nn.ModuleList([Dist(point.numel(), 1)])
        self.reach = reach
        with torch.no_grad():
            self.layers[0].weight.copy_(point.reshape(1, -1))
            self.layers[0].bias.zero_()
            self.layers[0].mean.zero_()

    def forward(self, x):
        d = self.layers[0](x.flatten(1))
        return torch.cat([torch.ones_like(d), 100 * (self.reach - d).clamp(min=0)], 1)

    def bounds(self, lo, hi):
        near, far = self.layers[0].bounds(lo.flatten(1), hi.flatten(1))
        one = torch.ones_like(near)
        return tuple(torch.cat([one, 100 * (self.reach - d).clamp(min=0)], 1) for d in (far, near))


# --- affine nets ------------------------------------------------------------------------------------------------------


class LinearMethod(Method):
    """Exact bound of a linear net over the box in float64, stated as class R because rounding is not controlled."""

    name, title = "linear", "Linear"

    def __init__(self, shift=0.0):
        self.shift = shift

    def margin_bound(self, net, x, y, eps):
        w, b = net[1].weight.double(), net[1].bias.double()
        lo, hi = (t.flatten(1).double() for t in box(x, eps))
        rows = w[y][:, None, :] - w  # [B, K, I]
        worst = torch.where(rows > 0, rows * lo[:, None], rows * hi[:, None]).sum(2) + b[y][:, None] - b
        lower = worst.scatter(1, y[:, None], math.inf).amin(1)
        return Bound(lower + self.shift, "linear", "R")


def linear(pixels=6, classes=3, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(pixels, classes))


class Uncertified(Method):
    """No certificate worth the name: for attacks on nets that have none."""

    name, title = "uncertified", "Uncertified"

    def margin_bound(self, net, x, y, eps):
        return Bound(torch.full((len(x),), -math.inf, dtype=torch.float64), "none", "R")

    def radius(self, net, x, y):
        return torch.zeros(len(x))


class Quantised(nn.Module):
    """A net behind 8 grey levels: its input gradient is zero almost everywhere."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net((x * 7).round() / 7)


def trained_digits():
    """(net, test split, spec): an undefended perceptron on digits, above 90 %; two seconds."""
    from bench.data import load

    data = load("digits")
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    x, y = data.train_all.pixels(slice(0, None)), data.train_all.labels
    for _ in range(100):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    return net, data.test(), data.spec
