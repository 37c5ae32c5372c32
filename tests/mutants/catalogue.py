"""Seeded faults, each of which some test must notice: the table of trust.md 3.6 as patches.

`old` stands exactly once in `file` and becomes `new`; then one of `tests` must fail. A fault that no test notices is a
hole in the tests, not in the list: mend the tests.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """One fault. tests: files or pytest node ids, those likely to notice first."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


EPS, THREAT = "tests/bench/test_eps.py", "tests/bench/test_threat.py"
EVALUATE, ATTACK, EXACT = "tests/bench/test_evaluate.py", "tests/bench/test_attack.py", "tests/bench/test_exact.py"
CERTIFY, VERIFY, TRAIN = "tests/bench/test_certify.py", "tests/bench/test_verify.py", "tests/bench/test_train.py"
STATE, RECORD, CONTRACT = "tests/bench/test_state.py", "tests/bench/test_record.py", "tests/bench/test_contract.py"
DATASET, SPLITS, BATCHES = (f"tests/bench/data/test_{name}.py" for name in ("dataset", "splits", "batches"))
AUTOATTACK = "tests/bench/test_autoattack.py"
STATS, BLOCKS = (f"tests/bench/report/test_{name}.py" for name in ("stats", "blocks"))
KEPT, REATTACK = "tests/bench/test_kept.py", "tests/bench/test_reattack.py"
COST, RUN, RECHECK, POSTHOC = (f"tests/bench/test_{name}.py" for name in ("cost", "run", "recheck", "posthoc"))
DIST, DIST_LAYERS = (f"tests/methods/linf_dist/test_{n}.py" for n in ("certificates", "layers_and_nets"))
KERNELS = (
    "tests/methods/linf_dist/kernels/test_kernels_api.py"
    "::test_interval_ends_are_the_smallest_and_largest_distance_of_the_box"
)
INTERVAL, GROUPSORT, NETS = (f"tests/methods/test_{name}.py" for name in ("interval_net", "groupsort", "nets"))
BOX, ALLOWANCES = "tests/methods/test_box.py", "tests/methods/test_rounding_allowances.py"

MUTANTS = (
    # --- eps and boxes ------------------------------------------------------------------------------------------------
    Mutant("eps-rounded-down", "bench/eps.py", '"I", bits + 1', '"I", bits', (EPS,)),
    Mutant(
        "eps-divided-by-255-twice",
        "bench/eps.py",
        "value = Fraction(written)\n",
        'value = Fraction(written) / (255 if "/" in written else 1)\n',
        (EPS,),
    ),
    Mutant(
        "box-to-nearest", "bench/threat.py", "torch.where(short, torch", "torch.where(short & False, torch", (THREAT,)
    ),
    Mutant(
        "box-forgets-residual",
        "bench/threat.py",
        " | ((single.double() == total) & (residual > 0))",
        "",
        (THREAT,),
    ),
    Mutant("box-too-small", "bench/threat.py", "radius = eps.float32_up", "radius = eps.float32_up * 0.99", (THREAT,)),
    Mutant(
        "box-without-clamp",
        "bench/threat.py",
        "return _down(x, -radius).clamp_(min=0.0), _up(x, radius).clamp_(max=1.0)",
        "return _down(x, -radius), _up(x, radius)",
        (THREAT,),
    ),
    Mutant(
        "radii-box-without-clamp",
        "bench/threat.py",
        "return _down(x, -shaped).clamp_(min=0.0), _up(x, shaped).clamp_(max=1.0)",
        "return _down(x, -shaped), _up(x, shaped)",
        (THREAT,),
    ),
    Mutant(
        "attack-box-to-nearest",
        "bench/threat.py",
        "if Fraction(float(single)) > value:",
        "if False:",
        (THREAT,),
    ),
    Mutant(
        "attack-box-leaves-the-pixels",
        "bench/threat.py",
        "high = min(Fraction(1), exact + eps.fraction)",
        "high = exact + eps.fraction",
        (THREAT,),
    ),
    # --- certificates of distance nets --------------------------------------------------------------------------------
    Mutant(
        "interval-lower-end-below-zero",
        "methods/linf_dist/kernels/reference.py",
        ".clamp(min=0).amax(-1) + 0.0",
        ".amax(-1) + 0.0",
        (KERNELS,),
    ),
    Mutant(
        "interval-lower-end-of-the-nearest",
        "methods/linf_dist/kernels/reference.py",
        "torch.maximum(a, c).clamp(min=0).amax(-1)",
        "torch.maximum(a, c).clamp(min=0).amin(-1)",
        (KERNELS,),
    ),
    Mutant(
        "interval-upper-end-without-abs",
        "methods/linf_dist/kernels/reference.py",
        "torch.maximum(a.abs(), c.abs())",
        "torch.maximum(a, c)",
        (KERNELS,),
    ),
    Mutant(
        "mean-of-upper-end-only",
        "methods/linf_dist/layers.py",
        "return lower - shift, upper - shift",
        "return lower, upper - shift",
        (DIST,),
    ),
    Mutant(
        "bias-of-lower-end-only",
        "methods/linf_dist/layers.py",
        "return lower + self.bias, upper + self.bias",
        "return lower + self.bias, upper",
        (DIST,),
    ),
    Mutant(
        "padding-differs-in-bounds",
        "methods/linf_dist/layers.py",
        "        d_low, d_high = interval(low, high, self.weight)",
        "        low, high = low + (low == 0).float(), high + (high == 0).float()\n"
        "        d_low, d_high = interval(low, high, self.weight)",
        (DIST,),
    ),
    Mutant(
        "ends-not-swapped",
        "methods/linf_dist/certificates.py",
        "own = -high.gather",
        "own = -low.gather",
        (DIST,),
    ),
    Mutant(
        "others-at-their-lower-end",
        "methods/linf_dist/certificates.py",
        "rest = (-low).scatter",
        "rest = (-high).scatter",
        (DIST,),
    ),
    Mutant(
        "half-the-ball",
        "methods/linf_dist/certificates.py",
        "- 2 * _scaled(eps.float32_up, net) - guard",
        "- _scaled(eps.float32_up, net) - guard",
        (DIST,),
    ),
    Mutant(
        "no-guard",
        "methods/linf_dist/certificates.py",
        "return 2 * (here + ball) * (1 + 2.0**-20), -h",
        "return 0 * (here + ball), -h",
        (DIST,),
    ),
    Mutant(
        "guard-of-the-last-layer-only",
        "methods/linf_dist/certificates.py",
        "here = here + U32 * size",
        "here = U32 * size",
        (f"{DIST}::test_the_guard_is_the_formula_of_the_proof",),
    ),
    Mutant(
        "certified-in-training-mode",
        "methods/linf_dist/certificates.py",
        "    if any(module.training for module in net.modules()):\n",
        "    if False:\n",
        (f"{DIST}::test_certifying_in_training_mode_or_at_finite_p_is_refused",),
    ),
    Mutant(
        "certified-at-finite-p",
        "methods/linf_dist/certificates.py",
        "    if not net.is_exact:\n",
        "    if False:\n",
        (f"{DIST}::test_certifying_in_training_mode_or_at_finite_p_is_refused",),
    ),
    Mutant(
        "no-ulps-for-tanh",
        "methods/linf_dist/certificates.py",
        "slack = 2 * TANH_ULPS * U32",
        "slack = 0.0",
        (f"{DIST}::test_every_tanh_of_a_head_is_doubted_by_its_ulps",),
    ),
    Mutant(
        "radius-of-wrong-examples",
        "methods/linf_dist/certificates.py",
        "return torch.where(gap > 0, good.double(), torch.zeros_like(gap))",
        "return good.double() + 1e-3 * (gap <= 0)",
        (f"{DIST}::test_radius_is_zero_where_the_prediction_is_wrong",),
    ),
    Mutant(
        "std-forgotten",
        "methods/linf_dist/certificates.py",
        "    return radius / float(net.normalize.std) * (1 + 2.0**-50)\n\n",
        "    return radius\n\n",
        (DIST,),
    ),
    # --- rigorous intervals -------------------------------------------------------------------------------------------
    Mutant(
        "gamma-without-channels",
        "methods/interval.py",
        "    n = weight[0].numel()",
        "    n = weight[0, 0].numel()",
        (f"{DIST}::test_affine_bounds_hold_for_the_order_that_loses_most",),
    ),
    Mutant(
        "no-rounding-error",
        "methods/interval.py",
        "return (deployed + gamma",
        "return 0 * (deployed + gamma",
        (f"{DIST}::test_affine_bounds_contain_exact_and_float32_values",),
    ),
    # --- one allowance for rounding each ------------------------------------------------------------------------------
    Mutant("average-unrounded", "methods/interval_net.py", "terms = kernel**2 + 2", "terms = 0", (ALLOWANCES,)),
    Mutant(
        "average-overflows-late",
        "methods/interval_net.py",
        "no_overflow(mass * kernel**2) / kernel**2",
        "no_overflow(mass)",
        (ALLOWANCES,),
    ),
    Mutant(
        "sum-of-branches-unrounded",
        "methods/interval_net.py",
        "slack = (gamma(2, U32) + gamma(8, U64))",
        "slack = 0 * (gamma(2, U32) + gamma(8, U64))",
        (ALLOWANCES,),
    ),
    Mutant(
        "normalisation-unrounded",
        "methods/interval_net.py",
        "NORMALIZE_ROUNDINGS = 4",
        "NORMALIZE_ROUNDINGS = 0",
        (ALLOWANCES,),
    ),
    Mutant(
        "batch-norm-rounded-once",
        "methods/interval_net.py",
        "BATCH_NORM_ROUNDINGS = 12",
        "BATCH_NORM_ROUNDINGS = 1",
        (ALLOWANCES,),
    ),
    Mutant(
        "batch-norm-scale-never-underflows",
        "methods/interval_net.py",
        "roundings * TINY32 * (1 + seen)",
        "roundings * TINY32",
        (ALLOWANCES,),
    ),
    Mutant(
        "linear-bounds-forget-hidden-rounding",
        "methods/tape.py",
        "-contract(rows.abs(), entry.loss) * (1 + 1e-9)",
        "-0.0 * contract(rows.abs(), entry.loss)",
        (ALLOWANCES,),
    ),
    Mutant(
        "groupsort-factor-unrounded",
        "methods/groupsort_bounds.py",
        "gaps = gaps - 2 * gamma(2, U32)",
        "gaps = gaps - 0 * gamma(2, U32)",
        (ALLOWANCES,),
    ),
    Mutant(
        "tanh-of-infinity",
        "methods/linf_dist/certificates.py",
        "if not bool(torch.isfinite(low64).all() & torch.isfinite(high64).all()):",
        "if False:",
        (DIST,),
    ),
    Mutant(
        "one-layer-in-training-mode",
        "methods/linf_dist/certificates.py",
        "if any(module.training for module in net.modules()):",
        "if net.training:",
        (DIST,),
    ),
    Mutant(
        "winograd-allowed",
        "bench/exact.py",
        "lambda v: torch._C._set_nnpack_enabled(v), False)",
        "lambda v: torch._C._set_nnpack_enabled(v), True)",
        (EXACT,),
    ),
    Mutant(
        "signed-spread", "methods/interval.py", "product(reach, w.abs(), None)", "product(reach, w, None)", (INTERVAL,)
    ),
    Mutant(
        "rows-reversed",
        "methods/interval.py",
        "gap_w = w[label] - w[others]",
        "gap_w = w[others] - w[label]",
        (INTERVAL,),
    ),
    Mutant(
        "error-of-one-logit",
        "methods/interval.py",
        "both = deployed[rows][:, [label]] + deployed[rows][:, others]",
        "both = 0 * deployed[rows][:, [label]]",
        (f"{DIST}::test_margin_bounds_of_a_last_layer_beat_the_difference_of_bounds", INTERVAL),
    ),
    Mutant(
        "batch-norm-without-its-eps",
        "methods/interval_net.py",
        "scale = weight / (var + module.eps).sqrt()",
        "scale = weight / var.sqrt()",
        (f"{INTERVAL}::test_batch_norm_is_bounded_as_deployed",),
    ),
    Mutant(
        "batch-norm-error-of-the-folded-shift",
        "methods/interval_net.py",
        "bias.abs() + (mean * scale).abs()",
        "(bias - mean * scale).abs()",
        (f"{INTERVAL}::test_batch_norm_is_bounded_as_deployed",),
    ),
    Mutant(
        "relu-forgets-the-upper-end",
        "methods/interval_net.py",
        "return ends[0].clamp(min=0), ends[1].clamp(min=0)",
        "return ends[0].clamp(min=0), ends[0].clamp(min=0)",
        (INTERVAL,),
    ),
    Mutant(
        "training-mode-in-the-body",
        "methods/interval_net.py",
        "if any(module.training for module in net.modules()):",
        "if net.training:",
        (INTERVAL,),
    ),
    Mutant(
        "norms-assumed-one",
        "methods/groupsort_bounds.py",
        "return layer.weight.double().abs().sum(dim=1) * (1 + gamma(layer.in_features + 2, U64))",
        "return torch.ones(layer.out_features, dtype=torch.float64)",
        (f"{GROUPSORT}::test_norms_are_rounded_up",),
    ),
    Mutant(
        "norms-to-nearest",
        "methods/groupsort_bounds.py",
        ".abs().sum(dim=1) * (1 + gamma(layer.in_features + 2, U64))",
        ".abs().sum(dim=1)",
        (f"{GROUPSORT}::test_norms_are_rounded_up",),
    ),
    Mutant(
        "pair-constant-halved",
        "methods/groupsort_bounds.py",
        "overall = parts.gaps - 2 * parts.overall",
        "overall = parts.gaps - parts.overall",
        (GROUPSORT,),
    ),
    # --- radii --------------------------------------------------------------------------------------------------------
    Mutant(
        "bisection-returns-the-other-end",
        "bench/certify.py",
        "return torch.where(alive, good.view",
        "return torch.where(alive, bad.view",
        (CERTIFY,),
    ),
    Mutant(
        "radii-to-nearest",
        "bench/certify.py",
        "return np.where(single.astype(np.float64) > value, np.nextafter(single, np.float32(-np.inf)), single)",
        "return single",
        (CERTIFY,),
    ),
    Mutant(
        "grid-one-step-too-far",
        "bench/certify.py",
        "return values[good]",
        "return values[np.minimum(good + 1, top)]",
        (CERTIFY,),
    ),
    # --- evaluation ---------------------------------------------------------------------------------------------------
    Mutant(
        "ties-certified",
        "bench/evaluate.py",
        "return self.correct & (self.certificates[0].lower > 0)",
        "return self.correct & (self.certificates[0].lower >= 0)",
        (EVALUATE,),
    ),
    Mutant(
        "ties-correct",
        "bench/evaluate.py",
        "return np.asarray(self.margin > 0)",
        "return np.asarray(self.margin >= 0)",
        (EVALUATE,),
    ),
    Mutant(
        "certified-although-wrong",
        "bench/evaluate.py",
        "return self.correct & (self.certificates[0].lower > 0)",
        "return self.certificates[0].lower > 0",
        (EVALUATE,),
    ),
    Mutant(
        "robust-although-wrong",
        "bench/evaluate.py",
        "robust = self.correct & ~cascade.broken",
        "robust = ~cascade.broken",
        (EVALUATE,),
    ),
    Mutant(
        "only-wrong-examples-attacked",
        "bench/evaluate.py",
        "cascade.run(attacks, job.correct, job.certified)",
        "cascade.run(attacks, ~job.correct, job.certified)",
        (EVALUATE,),
    ),
    Mutant(
        "contradicted-counts-all-the-same",
        "bench/evaluate.py",
        "certified = self.certified & ~refuted",
        "certified = self.certified",
        (EVALUATE,),
    ),
    Mutant(
        "bound-above-the-margin-believed",
        "bench/guards.py",
        "    if bool(above.any()):\n",
        "    if False:\n",
        (EVALUATE,),
    ),
    Mutant(
        "outcomes-of-another-batch",
        "bench/cascade.py",
        "at = part[fallen].cpu().numpy()",
        "at = rows[fallen].cpu().numpy()",
        (EVALUATE,),
    ),
    Mutant(
        "labels-shifted",
        "bench/cascade.py",
        "return x, split.labels[rows]",
        "return x, split.labels[rows].roll(1)",
        (EVALUATE,),
    ),
    Mutant(
        "images-mirrored",
        "bench/cascade.py",
        "x = split.pixels(rows)\n",
        "x = split.pixels(rows).flip(-1)\n",
        (EVALUATE,),
    ),
    Mutant(
        "last-batch-dropped",
        "bench/chunks.py",
        "while at < len(rows):",
        "while at < len(rows) and (at == 0 or at + self.size <= len(rows)):",
        (EVALUATE,),
    ),
    Mutant(
        "violations-ignored",
        "bench/cascade.py",
        'if cls == "R" or not len(refuted):',
        "if True:",
        (EVALUATE,),
    ),
    # --- attacks ------------------------------------------------------------------------------------------------------
    Mutant("attack-descends", "bench/attack.py", "z - step * direction", "z + step * direction", (ATTACK,)),
    Mutant(
        "attack-leaves-the-ball",
        "bench/attack.py",
        "z = torch.minimum(torch.maximum(z - step * direction, lo), hi)",
        "z = z - step * direction",
        (ATTACK,),
    ),
    Mutant(
        "surrogate-judges",
        "bench/attack.py",
        "return Outcome(judged(net, adversarial",
        "return Outcome(judged(attack.guide or net, adversarial",
        (ATTACK,),
    ),
    Mutant(
        "attack-believes-itself",
        "bench/attack.py",
        "broken[rows] = ~(margin(net(points[rows]), y[rows]) > 0)",
        "broken[rows] = True",
        (ATTACK,),
    ),
    Mutant(
        "last-restart-counts",
        "bench/attack.py",
        "rows = (~fight.broken).nonzero()[:, 0]",
        "rows = torch.arange(len(fight.broken))",
        (ATTACK,),
    ),
    Mutant(
        "steps-depend-on-their-number",
        "bench/attack.py",
        "pace / (1 + t / DECAY)",
        "pace * (1 - t / attack.steps)",
        (ATTACK,),
    ),
    Mutant(
        "noise-forgets-the-example",
        "bench/attack.py",
        "z = index[:, None] * _wrapped(0x9E3779B97F4A7C15)",
        "z = torch.arange(len(index), device=index.device)[:, None] * _wrapped(0x9E3779B97F4A7C15)",
        (ATTACK,),
    ),
    Mutant("every-restart-the-same", "bench/attack.py", "attack.name, restart)", "attack.name, 1)", (ATTACK,)),
    Mutant(
        "autoattack-not-projected",
        "bench/autoattack.py",
        "points = torch.minimum(torch.maximum(found, ball.lower), ball.upper)",
        "points = found",
        (AUTOATTACK,),
    ),
    Mutant(
        "autoattack-believed",
        "bench/autoattack.py",
        "broken = judged(net, points, y, (points != x).flatten(1).any(dim=1))",
        "broken = (points != x).flatten(1).any(dim=1)",
        (AUTOATTACK,),
    ),
    Mutant("autoattack-unheard", "bench/autoattack.py", "        self._note(said)\n", "", (AUTOATTACK,)),
    Mutant(
        "the-broken-attacked-again",
        "bench/cascade.py",
        "            self._part(attack, targets & ~self.broken)",
        "            self._part(attack, targets)",
        (EVALUATE,),
    ),
    # --- arithmetic and switches --------------------------------------------------------------------------------------
    Mutant(
        "margin-in-float32",
        "bench/contract.py",
        "return own.double() - best_other.double()",
        "return (own - best_other).double()",
        (CONTRACT,),
    ),
    Mutant(
        "training-mode-evaluated",
        "bench/exact.py",
        "            net.eval()\n            _force",
        "            _force",
        (EXACT,),
    ),
    Mutant(
        "bf16-products-allowed",
        "bench/exact.py",
        '"float32_matmul_precision", "highest"',
        '"float32_matmul_precision", "medium"',
        (EXACT,),
    ),
    Mutant(
        "switches-not-restored",
        "bench/exact.py",
        "                if value is not None:",
        "                if False:",
        (EXACT,),
    ),
    Mutant("probe-of-toy-shapes", "bench/exact.py", "_PROBE_WIDTHS = (256, 1024)", "_PROBE_WIDTHS = (4,)", (EXACT,)),
    Mutant("flush-to-zero-unseen", "bench/exact.py", '    if flush != "off":\n', "    if False:\n", (EXACT,)),
    # --- data ---------------------------------------------------------------------------------------------------------
    Mutant(
        "pixels-by-reciprocal",
        "bench/data/dataset.py",
        "return table.index_select(0, images.reshape(-1).int()).view(images.shape)",
        "return images.float() * torch.tensor(1 / (len(table) - 1), dtype=torch.float32)",
        (DATASET,),
    ),
    Mutant(
        "tested-on-training-images",
        "bench/data/dataset.py",
        "= (arrays.x_test, arrays.y_test, index_test)",
        "= (arrays.x_train, arrays.y_train, index_train)",
        (DATASET, "tests/bench/data/test_layouts.py"),
    ),
    Mutant(
        "tuned-on-validation-images",
        "bench/data/dataset.py",
        "return self.train_all.subset(torch.from_numpy(self._kept).to(self._device))",
        "return self.train_all",
        (DATASET,),
    ),
    Mutant("test-split-opens-again", "bench/data/dataset.py", "        self._test = None\n", "", (DATASET,)),
    Mutant(
        "augmented-by-one-generator",
        "bench/data/batches.py",
        "columns = torch.where(mirrored, columns.flip(1), columns)",
        "columns = columns.flip(1)",
        (BATCHES,),
    ),
    Mutant("order-forgets-the-epoch", "bench/data/batches.py", '"order", epoch', '"order", 0', (BATCHES,)),
    Mutant(
        "channels-normalised-in-reverse",
        "methods/nets.py",
        'self.register_buffer("mean", torch.tensor(mean,',
        'self.register_buffer("mean", torch.tensor(mean[::-1],',
        (f"{NETS}::test_every_channel_has_its_own_mean_and_deviation",),
    ),
    Mutant(
        "distance-channels-normalised-in-reverse",
        "methods/linf_dist/layers.py",
        "torch.tensor(mean, dtype=torch.float32).reshape(1, -1, 1, 1)",
        "torch.tensor(mean[::-1], dtype=torch.float32).reshape(1, -1, 1, 1)",
        (f"{DIST_LAYERS}::test_normalisation_gives_every_channel_its_own_mean",),
    ),
    # --- training and states ------------------------------------------------------------------------------------------
    Mutant(
        "training-drops-the-last-batch",
        "bench/train.py",
        "math.ceil(len(split) / recipe.batch_size)",
        "len(split) // recipe.batch_size",
        (TRAIN,),
    ),
    Mutant(
        "training-labels-shifted",
        "bench/train.py",
        "self.table), self.split.labels[rows], step",
        "self.table), self.split.labels[rows].roll(1), step",
        (TRAIN,),
    ),
    Mutant(
        "resumed-at-step-0",
        "bench/train.py",
        'self.iteration = state.meta["iteration"]',
        "self.iteration = 0",
        (TRAIN,),
    ),
    Mutant(
        "optimizer-forgotten",
        "bench/train.py",
        'unpack_optimizer(self.optimizer, _under(state, "optimizer/"), state.meta["optimizer"])',
        "pass",
        (TRAIN,),
    ),
    Mutant(
        "radius-by-whole-epochs",
        "bench/steps.py",
        "method.eps_schedule(recipe, iteration / per_epoch)",
        "method.eps_schedule(recipe, iteration // per_epoch)",
        (TRAIN,),
    ),
    Mutant(
        "nan-goes-on", "bench/train.py", "        if int(self.first_bad) != NEVER:\n", "        if False:\n", (TRAIN,)
    ),
    Mutant(
        "buffers-not-saved",
        "bench/state.py",
        "found = dict(net.state_dict())",
        "found = dict(net.named_parameters())",
        (STATE, TRAIN),
    ),
    Mutant(
        "state-written-in-place",
        "bench/files.py",
        "temporary = path.with_name(",
        "temporary = path or path.with_name(",
        (STATE,),
    ),
    Mutant("renamed-without-fsync", "bench/files.py", "        _fsync(temporary)\n", "", (STATE,)),
    Mutant("folder-without-fsync", "bench/files.py", "        _fsync(path.parent)\n", "", (STATE,)),
    Mutant(
        "damaged-state-believed", "bench/state.py", 'if meta.get("sha256") != _digest(tensors):', "if False:", (STATE,)
    ),
    Mutant(
        "lock-for-everybody",
        "bench/files.py",
        "fcntl.LOCK_EX | fcntl.LOCK_NB",
        "fcntl.LOCK_SH | fcntl.LOCK_NB",
        (STATE,),
    ),
    # --- records ------------------------------------------------------------------------------------------------------
    Mutant(
        "order-not-asserted",
        "bench/record_arrays.py",
        '("certified but not robust", certified & ~robust)',
        '("certified but not robust", certified & robust & ~robust)',
        (RECORD,),
    ),
    Mutant("ties-survive-verify", "bench/replay.py", "(~(gap > 0)).sum(dim=0)", "(gap < 0).sum(dim=0)", (VERIFY,)),
    Mutant(
        "points-outside-the-radius",
        "bench/replay.py",
        "return torch.nextafter(lower, x), torch",
        "return lower, torch",
        (VERIFY,),
    ),
    Mutant(
        "verify-inside-half-the-radius",
        "bench/replay.py",
        "lower, upper = inside(x, radius)",
        "lower, upper = inside(x, radius / 2)",
        (VERIFY,),
    ),
    Mutant(
        "f32-beyond-overflow",
        "methods/interval.py",
        "    return torch.where(mass < HALF_MAX32, mass, torch.inf)",
        "    return mass",
        (INTERVAL,),
    ),
    Mutant(
        "parts-of-other-attacks",
        "bench/kept.py",
        'if meta["key"] != self._key or meta["about"] != json.loads(json.dumps(about)):',
        'if meta["key"] != self._key:',
        (KEPT,),
    ),
    Mutant(
        "lost-classes-come-back",
        "bench/exact.py",
        'self.refuse(*kept["refused"], reason=reason)',
        "self.refuse(reason=reason)",
        (KEPT,),
    ),
    Mutant(
        "identity-with-tuples",
        "bench/state.py",
        "self.identity = json.loads(json.dumps(identity))",
        "self.identity = dict(identity)",
        (STATE,),
    ),
    Mutant(
        "an-attack-begins-anew-in-the-middle",
        "bench/cascade.py",
        "self.chunks.run(rows[done:], work)",
        "self.chunks.run(rows, work)",
        (KEPT,),
    ),
    Mutant(
        "time-of-earlier-processes-lost",
        "bench/kept.py",
        'self._before = max(self._before, float(meta["elapsed"]))',
        "pass",
        (KEPT,),
    ),
    Mutant(
        "attacks-share-their-parts",
        "bench/recheck.py",
        "name = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:12]",
        'name = "parts"',
        (RECHECK,),
    ),
    Mutant(
        "an-attack-writes-for-the-record-of-before",
        "bench/recheck.py",
        "    return found\n\n\ndef attacked_with",
        "    return record\n\n\ndef attacked_with",
        (RECHECK,),
    ),
    Mutant(
        "a-weaker-attack-replaces",
        "bench/recheck.py",
        "    if stronger := reattack.stronger(record, named, examples, certified_too=config.attack_certified):",
        "    if stronger := None:",
        (RECHECK,),
    ),
    Mutant(
        "a-certification-begins-anew",
        "bench/posthoc.py",
        "np.flatnonzero((self.margin > 0) & ~self.reached)",
        "np.flatnonzero(self.margin > 0)",
        (RECHECK,),
    ),
    Mutant(
        "the-whole-limit-twice",
        "bench/posthoc.py",
        "                if until is None or time.monotonic() < until:",
        "                if True:",
        (POSTHOC,),
    ),
    Mutant(
        "waiting-for-another-gpu",
        "bench/cost.py",
        "partial(torch.cuda.synchronize, device)",
        "torch.cuda.synchronize",
        (COST,),
    ),
    Mutant(
        "times-of-another-machine",
        "bench/record.py",
        'self.data["cost"].get("machine", last)]',
        "last]",
        (RUN,),
    ),
    Mutant("damaged-arrays-count-as-finished", "bench/run.py", '        found.arrays("index")\n', "", (RUN,)),
    Mutant(
        "one-seed-speaks-for-all",
        "bench/report/blocks.py",
        "    for one, two in pairs:",
        "    for one, two in pairs[:1]:",
        (BLOCKS,),
    ),
    Mutant(
        "compare-before-later-attacks",
        "bench/report/compare.py",
        "checked = check(r, reattack.of_record(r)[0])",
        "checked = check(r)",
        (REATTACK,),
    ),
    Mutant("wilson-of-90-percent", "bench/report/stats.py", "Z = 1.959964", "Z = 1.644854", (STATS,)),
)
