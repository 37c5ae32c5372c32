"""Attacks: inside the ball to the last bit, judged by the deployed net, and never weaker for a bigger budget."""

import runpy
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from bench import Eps, margin
from bench import attack as attacking
from bench.attack import Attack, AttackConfig, Ball, run, suite, uniform_noise
from bench.errors import BenchError
from bench.threat import inner_box

S = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("stand_ins.py"))))
PGD = Attack("pgd", steps=20, restarts=1)
STARTS = Attack("pgd", 1, 4, step_rel=1e-6)  # next to no steps: what falls, falls to a random start
SLOW = Attack("pgd", 40, 1, step_rel=0.05)  # examples fall one after another, not all at once
EPS = Eps("8/255")


def fight(net, data, attack=PGD, eps=EPS, seed=0, rows=slice(0, None)):
    x, y = data.pixels(rows), data.labels[rows]
    ball = Ball(*inner_box(x, eps, data.levels), float(eps))
    return run(attack, net, x, y, ball, index=data.index[rows], seed=seed)


@pytest.fixture(scope="module")
def mlp():
    """A random net labelled by itself: right everywhere, easily fooled."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 3)).eval()
    return net, S.labelled_by(net, S.random_split(200))


@pytest.fixture(scope="module")
def digits():
    return S.trained_digits()


def test_undefended_net_falls(digits):
    """P30: if anything survives here the attack is broken, not the net robust."""
    net, data, _ = digits
    clean = margin(net(data.pixels(slice(0, None))), data.labels) > 0
    broken = fight(net, data, Attack("pgd", 40, 1), Eps("0.3")).broken
    assert clean.float().mean() > 0.9
    assert (clean & ~broken).float().mean() <= 0.01


def test_a_radius_of_zero_changes_nothing(mlp):
    net, data = mlp
    outcome = fight(net, data, Attack("pgd", 20, 3), Eps("0"))
    assert not outcome.broken.any()
    assert torch.equal(outcome.adversarial, data.pixels(slice(0, None)))


@pytest.mark.parametrize("eps", ["8/255", "0.3", "1/255"])
def test_every_point_lies_in_the_exact_ball(mlp, eps):
    """P32: no tolerance; an attack that steps outside by an ulp proves nothing."""
    net, data = mlp
    x = data.pixels(slice(0, None))
    points = fight(net, data, Attack("pgd", 7, 2), Eps(eps)).adversarial
    moved = [(Fraction(a), Fraction(b)) for a, b in zip(x.flatten().tolist(), points.flatten().tolist(), strict=True)]
    assert all(abs(b - a) <= Eps(eps).fraction and 0 <= b <= 1 for a, b in moved)
    assert points.dtype == torch.float32 and points.shape == x.shape
    assert any(a != b for a, b in moved)


def test_broken_means_that_the_deployed_net_errs(mlp):
    net, data = mlp
    outcome = fight(net, data)
    verdict = margin(net(outcome.adversarial), data.labels) > 0
    assert outcome.broken.any() and not outcome.broken.all()
    assert torch.equal(outcome.broken, ~verdict)


def steadiest(net, data):
    """The 20 examples of largest margin: nothing within 1/255 changes their class."""
    with torch.no_grad():
        return data.subset(margin(net(data.pixels(slice(0, None))), data.labels).topk(20).indices)


class Boaster(nn.Module):
    """A surrogate that calls every example broken."""

    def forward(self, x):
        return torch.stack([x.flatten(1).sum(1) * 0 + k for k in (-1.0, 5.0, 5.0)], 1) * x.flatten(1).sum(
            1, keepdim=True
        )


def test_a_surrogate_cannot_declare_victory(mlp):
    """P34: the surrogate's own logits are wrong at every point; only the deployed net's count."""
    net, data = mlp
    data = steadiest(net, data)
    assert not fight(net, data, Attack("pgd_boast", 5, 1, guide=Boaster()), Eps("1/255")).broken.any()


class Gloomy(nn.Module):
    """A surrogate with the net's gradients that believes class 0 is lost from the start, or (-100) never."""

    def __init__(self, net, gloom=100.0):
        super().__init__()
        self.net, self.gloom = net, gloom

    def forward(self, x):
        return self.net(x) - torch.tensor([self.gloom, 0.0, 0.0])


def test_a_surrogate_cannot_end_the_attack_early(mlp):
    """Every iterate looks broken to the surrogate; the first one that the deployed net misses is what counts."""
    net, data = mlp
    data = data.subset((data.labels == 0).nonzero()[:, 0])
    direct = fight(net, data, SLOW, Eps("0.1"))
    gloomy = fight(net, data, replace(SLOW, name="pgd_gloomy", guide=Gloomy(net)), Eps("0.1"))
    assert direct.broken.any()
    assert torch.equal(direct.broken, gloomy.broken)


def test_every_restart_starts_somewhere_else(mlp, monkeypatch):
    from bench import attack

    net, data = mlp
    starts = []

    def noise(index, count, seed):
        starts.append(uniform_noise(index, count, seed))
        return starts[-1]

    monkeypatch.setattr(attack, "uniform_noise", noise)
    fight(net, steadiest(net, data), Attack("pgd", 1, 4, step_rel=1e-6), Eps("1/255"))
    assert len(starts) == 4
    assert all(not torch.equal(a, b) for i, a in enumerate(starts) for b in starts[:i])


def test_a_surrogate_cannot_acquit_what_the_net_misses(mlp):
    """To the surrogate nothing ever falls; what falls on the deployed net counts all the same."""
    net, data = mlp
    data = data.subset((data.labels == 0).nonzero()[:, 0])
    direct = fight(net, data, SLOW, Eps("0.1"))
    cheerful = fight(net, data, replace(SLOW, name="pgd_cheerful", guide=Gloomy(net, -100.0)), Eps("0.1"))
    assert direct.broken.any()
    assert torch.equal(direct.broken, cheerful.broken)


class OnlyHere(nn.Module):
    """Wrong at the image itself and nowhere else."""

    def __init__(self, image):
        super().__init__()
        self.image = image

    def forward(self, x):
        here = (x == self.image).flatten(1).all(1).float()
        return torch.stack([1 - 2 * here, here], 1) + 0 * x.flatten(1)[:, :1]


def test_the_image_itself_is_no_attack():
    data = S.split(torch.full((4, 1, 2, 3), 100), [0, 0, 0, 0])
    assert not fight(OnlyHere(data.pixels(slice(0, 1))), data).broken.any()


class Flickering(nn.Module):
    """Wrong whenever a gradient is asked for, right when it is not: the attack sees another net than is deployed."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        z = self.net(x)
        return -z if x.requires_grad else z


def test_the_verdict_is_a_plain_forward_pass(mlp):
    net, data = mlp
    data = steadiest(net, data)
    assert not fight(Flickering(net), data, eps=Eps("1/255")).broken.any()


@pytest.mark.parametrize(
    ("small", "large"),
    [
        (Attack("pgd", 5, 1), Attack("pgd", 5, 4)),
        (Attack("pgd", 5, 3), Attack("pgd", 17, 3)),
        (Attack("pgd", 3, 1), Attack("pgd", 40, 5)),
        (STARTS, replace(STARTS, restarts=9)),
    ],
    ids=["restarts", "steps", "both", "starts"],
)
def test_a_bigger_budget_breaks_at_least_the_same(mlp, small, large):
    net, data = mlp
    few, many = fight(net, data, small).broken, fight(net, data, large).broken
    assert few.any()
    assert not (few & ~many).any()


def test_some_budget_is_too_small(mlp):
    """Otherwise the subset test above would compare equal sets."""
    net, data = mlp
    assert fight(net, data, Attack("pgd", 1, 1)).broken.sum() < fight(net, data, Attack("pgd", 40, 5)).broken.sum()


def test_an_added_attack_leaves_the_earlier_ones_alone():
    method, net = S.DistMethod(), S.DistNet(6, 8, 3)
    few = suite(AttackConfig(surrogates=1), method, net)
    many = suite(AttackConfig(surrogates=2), method, net)
    assert [a.name for a in few] == ["pgd", "pgd_p8"]
    assert [a.name for a in many] == ["pgd", "pgd_p8", "pgd_p32"]


def test_same_seed_same_points_and_another_seed_others(mlp):
    net, data = mlp
    attack = Attack("pgd", 3, 2)
    points = [fight(net, data, attack, Eps("0.02"), seed).adversarial for seed in (0, 0, 1)]
    assert torch.equal(points[0], points[1])
    assert not torch.equal(points[0], points[2])


@pytest.mark.parametrize("attack", [SLOW, STARTS], ids=["steps", "starts"])
def test_outcome_of_an_example_does_not_depend_on_its_batch(attack):
    """Distance nets are bit-equal in any batch, so the attack on them must be too: no batch-wise random numbers."""
    torch.manual_seed(4)
    net = S.DistNet(6, 8, 8, 3)
    data = S.labelled_by(net, S.random_split(30))
    whole = fight(net, data, attack, Eps("0.1"))
    order = torch.randperm(30)
    mixed = fight(net, data, attack, Eps("0.1"), rows=order)
    single = [fight(net, data, attack, Eps("0.1"), rows=torch.tensor([i])) for i in range(30)]
    assert torch.equal(whole.adversarial[order], mixed.adversarial)
    assert torch.equal(whole.adversarial, torch.cat([s.adversarial for s in single]))
    assert whole.broken.any()


def test_global_generator_stays(mlp):
    net, data = mlp
    torch.manual_seed(5)
    before = torch.get_rng_state()
    fight(net, data, Attack("pgd", 3, 3))
    assert torch.equal(before, torch.get_rng_state())


def test_weights_keep_their_gradient_flags(mlp):
    net, data = mlp
    net[1].bias.requires_grad_(False)
    fight(net, data)
    assert [p.requires_grad for p in net.parameters()] == [True, False, True, True]
    assert all(p.grad is None for p in net.parameters())
    net[1].bias.requires_grad_(True)


class Constant(nn.Module):
    """Every logit equal away from the grid: a tie that argmax would award to class 0."""

    def forward(self, x):
        return torch.zeros(len(x), 3) + 0 * x.flatten(1)[:, :1]


def test_a_tie_is_broken():
    data = S.split(torch.full((4, 1, 2, 3), 100), [0, 0, 0, 0])
    assert fight(Constant(), data).broken.all()


class NaNSlope(nn.Module):
    """Right at the image, NaN gradient everywhere."""

    def forward(self, x):
        z = x.flatten(1).sum(1)
        return torch.stack([1 + (z - z).clamp(min=0).sqrt() * 0, 0 * z], 1)  # d sqrt(0) = inf, times 0 = NaN


def test_nan_gradients_stay_inside_the_ball():
    data = S.split(torch.full((4, 1, 2, 3), 100), [0, 0, 0, 0])
    outcome = fight(NaNSlope(), data)
    assert torch.isfinite(outcome.adversarial).all()
    assert not outcome.broken.any()


def test_nan_logits_count_as_broken():
    class Fails(nn.Module):
        def forward(self, x):
            z = x.flatten(1)[:, :2]
            return torch.where(z == z.detach().round(decimals=0), z, z * float("nan"))

    data = S.split(torch.full((4, 1, 2, 3), 100), [0, 0, 0, 0])
    assert fight(Fails(), data).broken.all()


def test_masked_gradients_are_counted(digits):
    net, data, _ = digits
    masked = fight(S.Quantised(net), data, eps=Eps("0.1"))
    assert masked.zero_gradient == 1
    assert fight(net, data, eps=Eps("0.1")).zero_gradient < 0.1


def test_without_gradients_it_still_tries(digits):
    """A net whose gradient is zero everywhere must not pass as robust: the attack then walks to a vertex."""
    net, data, _ = digits
    assert fight(S.Quantised(net), data, Attack("pgd", 20, 1), Eps("0.3")).broken.float().mean() > 0.1


def test_canary_falls_to_a_surrogate_and_not_to_its_own_gradient():
    """P36: at p = inf the gradient touches one pixel per class, and only a whole vertex breaks the canary."""
    direct, through = [], []
    for seed in range(20):
        net, data = S.canary(seed)
        radius = margin(net(data.pixels(slice(0, 1))), data.labels).item() / 2 * 1.001
        x = data.pixels(slice(0, 1))
        ball = Ball((x - radius).clamp(0, 1), (x + radius).clamp(0, 1), radius)
        for attack, out in (
            (PGD, direct),
            (Attack("pgd_p8", 20, 1, guide=S.Smoothed(net, 8.0)), through),
        ):
            out.append(bool(run(attack, net, x, data.labels, ball, index=data.index, seed=0).broken))
    assert sum(through) == 20
    assert sum(direct) < 5


class OnePixel(nn.Module):
    """Class 1 wins where the first pixel alone is high: a direct gradient finds it, a misleading guide does not."""

    def forward(self, x):
        z = x.flatten(1)
        return torch.stack([torch.full_like(z[:, 0], 0.45), z[:, 0]], 1)


class Misleading(nn.Module):
    def forward(self, x):
        return -OnePixel()(x)


def test_direct_attack_finds_what_a_surrogate_misses():
    data = S.split(torch.full((4, 1, 2, 3), 110), [0, 0, 0, 0])
    assert fight(OnePixel(), data).broken.all()
    assert not fight(OnePixel(), data, Attack("pgd_bad", 20, 1, guide=Misleading())).broken.any()


def test_attack_models_need_names_of_their_own():
    with pytest.raises(BenchError, match="attack model"):
        suite(AttackConfig(), S.DistMethod(surrogates=(8.0, 8.0)), S.DistNet(6, 3))


@pytest.mark.parametrize("field", [{"steps": -1}, {"restarts": 1.5}, {"step_rel": 0}, {"surrogates": 10**9}])
def test_impossible_budgets_are_refused(field):
    with pytest.raises(ValueError, match=next(iter(field))):
        AttackConfig(**field)


def test_settings_name_the_surrogate():
    net = S.DistNet(6, 3)
    lines = [a.settings(7) for a in suite(AttackConfig(), S.DistMethod(), net)]
    assert [line["surrogate"] for line in lines] == [None, {"p": 8.0}, {"p": 32.0}]
    assert lines[0]["step"] == "0.25 eps / (1 + t / 8)"


# --- the papers' attack -----------------------------------------------------------------------------------------------

PAPER = Attack("pgd_paper", 20, 1, paper=True)


def test_the_papers_attack_runs_first_and_says_what_it_is():
    attacks = suite(AttackConfig(paper_steps=100, surrogates=0), S.DistMethod(), S.DistNet(6, 3))
    assert [a.name for a in attacks] == ["pgd_paper", "pgd"]
    line = attacks[0].settings(0)
    assert (line["steps"], line["step"], line["loss"]) == (100, "0.25 eps", "cross-entropy, last iterate")


def test_the_papers_attack_breaks_an_undefended_net_from_inside_the_ball(digits):
    net, data, _ = digits
    outcome = fight(net, data, PAPER, Eps("0.3"))
    lower, upper = inner_box(data.pixels(slice(0, None)), Eps("0.3"), data.levels)
    assert outcome.broken.float().mean() > 0.9
    assert ((outcome.adversarial >= lower) & (outcome.adversarial <= upper)).all()


class Passing(nn.Module):
    """Wrong only half-way down the path of an attack that lowers the first pixel."""

    def forward(self, x):
        z = x.flatten(1)[:, :1]
        here = ((z - 0.3).abs() < 0.05).float()
        return torch.cat([1 + z - 3 * here, 0 * z], 1)


def test_the_papers_attack_scores_the_last_iterate_only():
    """Ours counts any iterate; the published one does not, and a comparison must not mix them."""
    data = S.split(torch.full((4, 1, 2, 3), 128), [0] * 4)
    assert fight(Passing(), data, PGD, Eps("0.5")).broken.all()
    assert not fight(Passing(), data, PAPER, Eps("0.5")).broken.any()


def test_the_papers_attack_starts_off_the_image_and_keeps_its_step():
    """A clipped Gaussian start within half the radius; constant steps of a quarter radius; loss: cross-entropy."""
    seen = []

    class Watching(nn.Module):
        def forward(self, x):
            seen.append(x.detach().clone())
            z = x.flatten(1)[:, :1]
            return torch.cat([1000 + z, 0 * z, 0 * z], 1)  # never falls; every gradient points down

    data = S.split(torch.full((64, 1, 2, 3), 128), [0] * 64)
    fight(Watching(), data, PAPER, Eps("0.2"))
    x = data.pixels(slice(0, None))
    start = seen[0] - x
    assert 0 < start.abs().max() <= 0.1 + 1e-6 and 0.02 < start.std() < 0.08
    guided = [z for z in seen if z.shape == x.shape]
    first = (guided[1] - guided[0]).flatten(1)[:, 0].abs()
    second = (guided[2] - guided[1]).flatten(1)[:, 0].abs()
    assert first.max().item() == pytest.approx(0.05, abs=1e-5) and second.max().item() == pytest.approx(0.05, abs=1e-5)


def test_the_papers_attack_follows_the_cross_entropy():
    """Raising the true logit's two rivals alike lowers the margin as one does; the cross-entropy weighs them."""
    logits = torch.tensor([[3.0, 1.0, 0.5]], requires_grad=True)
    y = torch.tensor([0])
    (ours,) = torch.autograd.grad(attacking._objective(PGD, logits, y), logits)
    (theirs,) = torch.autograd.grad(attacking._objective(PAPER, logits, y), logits)
    assert ours.tolist() == [[1.0, -1.0, 0.0]]
    share = torch.softmax(logits.detach(), 1)
    assert torch.allclose(theirs, torch.tensor([[1.0, 0.0, 0.0]]) - share, atol=1e-6)


# --- noise ------------------------------------------------------------------------------------------------------------


def test_noise_is_uniform_and_uncorrelated():
    """Mean 1/2, variance 1/12, neighbouring columns and indices independent; 5 standard errors."""
    noise = uniform_noise(torch.arange(400), 400, seed=3).double()
    n = noise.numel()
    assert abs(noise.mean() - 0.5) < 5 * (1 / 12 / n) ** 0.5
    assert abs(noise.var() - 1 / 12) < 5 * (1 / 180 / n) ** 0.5
    centred = noise - 0.5
    for pair in (centred[:, :-1] * centred[:, 1:], centred[:-1] * centred[1:]):
        assert abs(pair.mean()) < 5 / 12 / pair.numel() ** 0.5
    assert noise.min() >= 0 and noise.max() < 1


def test_noise_equals_splitmix64_in_whole_numbers():
    """Records made before must be attacked from the same starts after: the generator may not change."""
    mask, seed = 2**64 - 1, 2**62 + 11

    def reference(index, column):
        z = (index * 0x9E3779B97F4A7C15 + column * 0xD1B54A32D192ED03 + seed) & mask
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        return ((z ^ (z >> 31)) >> 40) / 2**24

    expected = [[reference(i, k) for k in range(50)] for i in (0, 5, 59999)]
    assert uniform_noise(torch.tensor([0, 5, 59999]), 50, seed).tolist() == expected
