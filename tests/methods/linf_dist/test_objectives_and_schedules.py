"""Objectives, schedules, weight decay and recipes against their formulas, the scripts and the released logs."""

import dataclasses
import math

import pytest
import torch

from bench import DataSpec, Eps, Step, registry
from bench.recipe import lr_factor
from methods.linf_dist.kernels import coarse_even_p
from methods.linf_dist.method import theta
from methods.linf_dist.nets import DistNet
from methods.linf_dist.objectives import hinge, ramp_cross_entropy, worst_case_cross_entropy
from methods.linf_dist.recipes import DistRecipe, mlp_recipes, v1_recipes, v2_recipes
from methods.linf_dist.training import ADAM_EPS, build_optimizer, decay, mix_at, norm_gradient, p_at

ALL = [*v1_recipes(), *mlp_recipes(), *v2_recipes()]


def recipe_of(recipes, dataset, eps, preset="paper"):
    return next(r for r in recipes() if (r.dataset, r.eps, r.preset) == (dataset, eps, preset))


def step_at(recipe, epoch, per_epoch=98, **changes):
    iteration = round(epoch * per_epoch)
    settings = {
        "epoch": int(epoch), "epochs": recipe.epochs, "iteration": iteration, "iterations": recipe.epochs * per_epoch,
        "iterations_per_epoch": per_epoch, "eps": recipe.radius, "eps_now": recipe.train_radius, "recipe": recipe,
        "generator": torch.Generator(),
    }  # fmt: skip
    return Step(**{**settings, **changes})


class Fixed(torch.nn.Module):
    """Stands in for a net: returns given logits, so that a loss can be worked out by hand."""

    def __init__(self, logits):
        super().__init__()
        self.logits = torch.nn.Parameter(torch.tensor(logits))
        self.scale = torch.nn.Parameter(torch.tensor(2.0))

    def forward(self, x):
        return self.logits


def test_hinge_by_hand():
    """theta 1, margins to others 0.4 and -0.2: h = 0.6, 1.2; max 1.2, mean over K = 3 classes 0.6."""
    loss = hinge(Fixed([[1.0, 0.6, 1.2]]), None, torch.tensor([0]), 1.0, 0.75).loss
    assert loss.item() == pytest.approx(0.75 * 1.2 + 0.25 * 0.6)


def test_ramp_by_hand_and_no_gradient_beyond_its_ends():
    net = Fixed([[1.0, 0.5, 0.0], [1.0, 3.0, 0.0], [5.0, 0.0, 0.0]])  # margins 0.5, -2, 5; theta 2
    loss = ramp_cross_entropy(net, None, torch.tensor([0, 0, 0]), 2.0, 1e-12).loss
    loss.backward()
    assert loss.item() == pytest.approx((0.75 + 1 + 0) / 3, abs=1e-6)
    assert net.logits.grad[0, 0].item() == pytest.approx(-1 / (2 * 3), rel=1e-4)
    assert net.logits.grad[1:].abs().max() < 1e-9


def test_the_scale_acts_in_the_cross_entropy_only():
    net = Fixed([[1.0, 0.5, 0.0]])
    full = ramp_cross_entropy(net, None, torch.tensor([0]), 2.0, 1.0)
    entropy = torch.nn.functional.cross_entropy(2 * net.logits, torch.tensor([0]))
    assert full.loss.item() == pytest.approx(0.75 + entropy.item(), rel=1e-5)


def test_worst_case_cross_entropy_bounds_every_point_of_the_feature_box():
    torch.manual_seed(0)
    recipe = DistRecipe(
        dataset="synthetic", eps="0.1", preset="quick", source="t", widths=(8,), head=6, identity=0.0
    )
    net = DistNet(DataSpec("synthetic", 1, 3, 3, 4, (0.5,), (0.5,)), recipe).eval()
    x, y = torch.rand(16, 1, 3, 3), torch.randint(0, 4, (16,))
    worst = worst_case_cross_entropy(net, x, y, 0.3, 1.0).loss.item()
    features = net.features(x)
    for _ in range(200):
        moved = features + 0.3 * torch.sign(torch.randn_like(features))
        assert torch.nn.functional.cross_entropy(net.head(moved), y).item() <= worst + 1e-5
    at_zero = worst_case_cross_entropy(net, x, y, 0.0, 1.0).loss.item()
    assert at_zero == pytest.approx(torch.nn.functional.cross_entropy(net(x), y).item(), rel=1e-5)


def test_p_follows_the_released_log():
    """CIFAR-10, (P0, P1) = (100, 1250): 12.12 at epoch 199 .. inf from 1250."""
    recipe = recipe_of(v2_recipes, "cifar10", "8/255")
    seen = {e: p_at(recipe, e + 97 / 98) for e in (99, 199, 699, 1249)}
    assert seen[99] == 8.0
    assert seen[199] == pytest.approx(12.12, abs=0.06) and seen[699] == pytest.approx(98.93, abs=0.5)
    assert seen[1249] < 1000 and p_at(recipe, 1250) == math.inf


def test_a_radius_that_starts_at_zero_has_gradients():
    """theta = 0: the clipped hinge is a step; its gradient is none, not 0 times infinity."""
    net = Fixed([[1.0, 0.5, 0.0], [1.0, 3.0, 0.0]])
    loss = ramp_cross_entropy(net, None, torch.tensor([0, 0]), 0.0, 1.0).loss
    (gradient,) = torch.autograd.grad(loss, net.logits)
    entropy = torch.nn.functional.cross_entropy(2 * net.logits, torch.tensor([0, 0]))
    assert torch.equal(gradient, torch.autograd.grad(entropy, net.logits)[0])
    assert float(loss.detach()) == pytest.approx(0.5 + float(entropy.detach()))


def test_the_cross_entropy_fades_on_the_same_ramp():
    recipe = recipe_of(v2_recipes, "cifar10", "8/255")
    assert mix_at(recipe, 50) == 0.1 and mix_at(recipe, 1250) == pytest.approx(0.0005)
    assert mix_at(recipe, 699) == pytest.approx(0.0063, abs=1e-4)


def test_learning_rates_of_both_papers_at_epoch_50():
    v1, v2 = recipe_of(v1_recipes, "cifar10", "8/255"), recipe_of(v2_recipes, "cifar10", "8/255")
    assert v1.lr * lr_factor(step_at(v1, 50)) == 0.02
    assert v2.lr * lr_factor(step_at(v2, 50)) == pytest.approx(0.02989, abs=5e-6)


def test_theta_in_normalised_units_matches_the_logs():
    """v2 logs eps 0.4684 for CIFAR 8/255 and 1.4606 for MNIST 0.3."""
    cifar, mnist = recipe_of(v2_recipes, "cifar10", "8/255"), recipe_of(v2_recipes, "mnist", "0.3")
    assert cifar.eps_train / 0.2009 == pytest.approx(0.4684, abs=1e-4)
    assert mnist.eps_train / 0.3081 == pytest.approx(1.4606, abs=1e-4)


def test_the_wanted_margin_is_two_radii_in_the_nets_units():
    """The logs' number times 2: a margin of 2 eps is what certifies eps."""
    recipe = recipe_of(v2_recipes, "cifar10", "8/255")
    net = torch.nn.Module()
    net.normalize = torch.nn.Module()
    net.normalize.scalar_std = 0.2009
    assert theta(net, step_at(recipe, 0)) == pytest.approx(2 * 0.4684, abs=2e-4)
    assert theta(net, step_at(recipe, 0, eps_now=0.01)) == pytest.approx(0.02 / 0.2009)


def jumping(**changes):
    return DistRecipe(
        dataset="synthetic", eps="0.1", preset="quick", source="t", epochs=10, p_hold=4.0, p_inf_from=6.0, p_jump=50.0,
        **changes,
    )  # fmt: skip


def test_a_jump_leaves_out_the_middle_exponents():
    recipe = jumping()
    assert p_at(recipe, 0) == p_at(recipe, 3.999) == 8
    assert p_at(recipe, 4.0) == 50 and p_at(recipe, 5.0) == pytest.approx(math.sqrt(50 * 1000))
    assert p_at(recipe, 5.999) == pytest.approx(1000, rel=0.01) and p_at(recipe, 6.0) == math.inf
    seen = {p_at(jumping(p_grid="coarse"), e / 100) for e in range(600)}
    assert not [p for p in seen if 8 < p < 50]


def test_no_jump_is_the_schedule_of_the_papers():
    plain, jump = jumping(), dataclasses.replace(jumping(), p_jump=0.0)
    assert p_at(jump, 4.5) == pytest.approx(8 * 125**0.25) and p_at(plain, 4.5) > 100
    assert p_at(dataclasses.replace(plain, p_jump=8.0), 4.5) == p_at(jump, 4.5)


def test_the_cross_entropy_may_fade_on_a_ramp_of_its_own():
    own = jumping(lambda_ramp=(2.0, 9.0))
    assert mix_at(own, 2.0) == own.lambda0 and mix_at(own, 9.0) == pytest.approx(own.lambda_end)
    assert mix_at(own, 5.5) == pytest.approx(math.sqrt(own.lambda0 * own.lambda_end))
    assert mix_at(jumping(), 4.0) == own.lambda0 and mix_at(jumping(), 6.0) == pytest.approx(own.lambda_end)


def test_the_coarse_grid_is_even_close_and_starts_at_8():
    for p in (8.0, 9.3, 17.0, 40.0, 150.0, 900.0):
        coarse = coarse_even_p(p)
        assert coarse % 2 == 0 and 0.74 < coarse / p < 1.35
    assert coarse_even_p(8.0) == 8.0


@pytest.mark.parametrize("p", [2.0, 8.0, 20.3, 100.0])
def test_weight_decay_is_the_gradient_of_half_the_squared_p_norm(p):
    torch.manual_seed(0)
    weight = torch.randn(4, 30, dtype=torch.float64, requires_grad=True)
    (torch.linalg.vector_norm(weight, ord=p, dim=1).square().sum() / 2).backward()
    assert torch.allclose(norm_gradient(weight.detach(), p), weight.grad, rtol=1e-9, atol=1e-12)


def test_weight_decay_at_infinity_touches_each_rows_largest_entry_only():
    weight = torch.tensor([[1.0, -3.0, 2.0], [0.0, 0.0, 0.0]])
    assert torch.equal(norm_gradient(weight, math.inf), torch.tensor([[0.0, -3.0, 0.0], [0.0, 0.0, 0.0]]))


def small_net(**changes):
    torch.manual_seed(0)
    recipe = DistRecipe(dataset="synthetic", eps="0.1", preset="quick", source="t", widths=(8,), lr=0.02, **changes)
    return DistNet(DataSpec("synthetic", 1, 3, 3, 4, (0.5,), (0.5,)), recipe), recipe


def test_decay_runs_before_the_step_with_the_current_lr_and_p():
    net, recipe = small_net(weight_decay=0.5)
    optimizer = build_optimizer(net, recipe)
    layer = net.dense[0]
    layer.p = math.inf
    before = layer.weight.detach().clone()
    optimizer.param_groups[0]["lr"] = 0.1
    decay(net, optimizer, recipe.weight_decay)
    assert torch.allclose(layer.weight, before - 0.05 * norm_gradient(before, math.inf))


def test_the_optimizer_decays_of_itself_exactly_where_the_recipe_says():
    for strength in (0.0, 0.5):
        net, recipe = small_net(weight_decay=strength)
        optimizer = build_optimizer(net, recipe)
        layer = net.dense[0]
        before = layer.weight.detach().clone()
        for parameter in net.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        assert bool((layer.weight != before).any()) == bool(strength)


def test_means_are_estimated_at_the_end_where_the_recipe_says():
    for wanted in (False, True):
        net, recipe = small_net(estimate_means=wanted)
        seen = []
        net.estimate_means = lambda batches, seen=seen: seen.append(list(batches))
        registry.get("linf_dist").finish(net, recipe, lambda: iter([1, 2]))
        assert seen == [[1, 2]] * wanted and net.dense[0].p == math.inf


def test_the_scale_has_its_own_learning_rate_and_adam_its_tiny_eps():
    """At p = 8 gradients are about 1e-10: eps 1e-10 moves a weight by about lr / 2, torch's 1e-8 by lr / 100."""
    net, recipe = small_net()
    optimizer = build_optimizer(net, recipe)
    scale = [g for g in optimizer.param_groups if any(p is net.scale for p in g["params"])]
    assert scale[0]["lr"] == 0.006 and all(g["eps"] == ADAM_EPS == 1e-10 for g in optimizer.param_groups)
    for parameter in net.parameters():
        parameter.grad = torch.full_like(parameter, 1e-9)
    before = net.dense[0].weight.detach().clone()
    optimizer.step()
    assert torch.allclose(before - net.dense[0].weight, torch.full_like(before, 0.02), rtol=0.12)


def test_adam_keeps_moving_weights_whose_gradient_is_zero():
    net, recipe = small_net()
    optimizer = build_optimizer(net, recipe)
    for value in (1e-3, 0.0):
        for parameter in net.parameters():
            parameter.grad = torch.full_like(parameter, value)
        before = net.dense[0].weight.detach().clone()
        optimizer.step()
    assert (net.dense[0].weight != before).all()


@pytest.mark.parametrize("recipe", ALL, ids=lambda r: f"{r.dataset}-{r.eps}-{r.preset}")
def test_recipes_hold_at_infinity_at_the_end_and_name_their_source(recipe):
    assert p_at(recipe, recipe.epochs) == math.inf
    assert p_at(recipe, 0) == recipe.p_start == 8
    assert 0.03 <= 1 - recipe.p_inf_from / recipe.epochs <= 0.2
    assert recipe.source and Eps(recipe.eps).fraction > 0


@pytest.mark.parametrize("name", ["linf_dist", "linf_dist_mlp", "linf_dist_v2"])
def test_every_method_has_quick_recipes_for_the_small_sets_and_no_doubles(name):
    keys = [(r.dataset, r.eps, r.preset) for r in registry.get(name).recipes()]
    assert len(keys) == len(set(keys))
    small = {("digits", "0.1"), ("mnist", "0.1"), ("mnist", "0.3"), ("fashion_mnist", "0.1"), ("cifar10", "8/255")}
    assert small <= {(dataset, eps) for dataset, eps, preset in keys if preset == "quick"}


def test_the_mnist_rows_of_the_papers_table():
    """The official scripts, field by field for one row each."""
    v1, v2 = recipe_of(v1_recipes, "mnist", "0.3"), recipe_of(v2_recipes, "mnist", "0.3")
    expected_v1 = {"epochs": 400, "p_hold": 50, "p_inf_from": 350, "batch_size": 512, "lr": 0.02, "lr_hold": 50,
                   "eps_train": 0.45, "weight_decay": 5e-3, "mix": 0.75, "crop_pad": 1, "crop_mode": "zeros",
                   "widths": (5120,) * 4, "identity": 10.0, "p_grid": "real"}  # fmt: skip
    expected_v2 = {"epochs": 450, "p_hold": 25, "p_inf_from": 400, "batch_size": 512, "lr": 0.03, "lr_hold": 0,
                   "eps_train": 0.45, "weight_decay": 0.0, "lambda0": 0.05, "lambda_end": 0.0002, "scale_lr": 0.006,
                   "crop_pad": 1, "crop_mode": "edge", "widths": (5120,) * 4, "identity": 10.0}  # fmt: skip
    for recipe, expected in ((v1, expected_v1), (v2, expected_v2)):
        assert {k: getattr(recipe, k) for k in expected} == expected


def test_the_eps_ramp_of_net_plus_mlp_is_linear_over_its_epochs():
    recipe, method = recipe_of(mlp_recipes, "cifar10", "8/255"), registry.get("linf_dist_mlp")
    assert method.eps_schedule(recipe, 50.0) == pytest.approx(0.03451 / 2)
    assert method.eps_schedule(recipe, 100.0) == 0.03451


@pytest.mark.parametrize(
    "changes",
    [{"p_jump": 6.0}, {"p_jump": 2000.0}, {"lambda_ramp": (5.0, 1.0)},
     {"p_grid": "odd"}, {"conv_channels": (3,)}, {"p_hold": 5.0, "p_inf_from": 1.0}, {"widths": (0,)}, {"lr": -1.0}],
)
def test_nonsense_recipes_are_refused(changes):
    with pytest.raises(ValueError, match="recipe"):
        dataclasses.replace(ALL[0], **changes)
