"""Tables behind the headlines: cost, attacks, changed recipes, radii, seeds, every record."""

from __future__ import annotations

import shlex
from dataclasses import replace
from typing import Any

import numpy as np

from ..eps import Eps
from ..record import Record
from . import fmt, limits, styles
from .cells import (
    ACC,
    ACCURACIES,
    KIND_OF,
    METHOD,
    accuracy,
    costs,
    measured_data,
    method,
    only,
    plain,
    setting_cell,
    table,
)
from .checked import Checked
from .fmt import DASH
from .model import Block, Cell, Column, Row, Table
from .pool import LEVELS, Pool, Setting
from .rows import Inputs, lead


def cost(inputs: Inputs) -> Table:
    """What each row cost, one block per device: times of different machines are never in one block."""
    columns = (
        METHOD, Column("setting", "Data, eps", numeric=False), Column("params", "Params"), Column("flops", "FLOPs"),
        Column("s_per_epoch", "Per epoch", "down"), Column("train_s", "Train time", "down"),
        Column("certify_ms", "Per certificate", "down"), Column("peak", "Peak memory", "down"),
        Column("kernel", "Kernel", numeric=False),
    )  # fmt: skip
    pools = [p for b in inputs.blocks for p in b.pools]
    devices: dict[tuple[str, int], list[Pool]] = {}
    for pool in pools:
        for machine in pool.machines:
            devices.setdefault(machine, []).append(pool.on(machine))
    blocks = []
    for device, threads in sorted(devices):
        rows = []
        for pool in devices[device, threads]:
            setting = Setting.of(pool.first.dataset, pool.first.norm, pool.first.eps.fraction)
            rows.append(
                Row({"method": method(pool), "setting": setting_cell(setting), **costs(pool)}, measured_data(pool))
            )
        blocks.append(Block(fmt.machine(device, threads), rows))
    notes = [
        "FLOPs: one forward pass of one image; a multiply-accumulate or one |x - w| counts 1, as the papers count.",
        "Per epoch: mean over the run. Per certificate: median of timed batches, per example.",
    ]
    if apart := limits.spread([p for p in pools if not p.broken]):
        notes.append(f"Wall clock, with whatever else the machine did{apart}.")
    return table("cost", "Cost", columns, blocks, pools, notes)


def attacks(inputs: Inputs) -> Table:
    """Each attack of each row: settings, survivors, time."""
    columns = (
        METHOD, Column("setting", "Data, eps", numeric=False), Column("attack", "Attack", numeric=False),
        Column("loss", "Loss", numeric=False), Column("steps", "Steps"), Column("restarts", "Restarts"),
        Column("attacked", "Attacked"), Column("broken", "Broken"), Column("seconds", "Time", "down"),
    )  # fmt: skip
    pools = [p for b in inputs.blocks for p in b.pools if not p.broken]
    blocks = []
    for block in inputs.blocks:
        rows = []
        for pool in (p for p in block.pools if not p.broken):
            for a in pool.first.data["evaluation"]["attacks"]:
                cells = {
                    "method": method(pool), "setting": setting_cell(block.setting), "attack": Cell(a["name"]),
                    "loss": plain(a.get("loss")), "steps": plain(a.get("steps")), "restarts": plain(a.get("restarts")),
                    "attacked": plain(a["n_attacked"]), "broken": plain(a["n_broken"]),
                    "seconds": Cell(fmt.seconds(a.get("seconds")), sort=a.get("seconds")),
                }  # fmt: skip
                rows.append(Row(cells, measured_data(pool)))
        if rows:
            blocks.append(Block(f"{block.setting.title}, preset {block.preset}", rows))
    notes = ["Attacked: examples that were right and not yet broken when the attack began; first seed of each row."]
    return table("attacks", "Attacks", columns, blocks, pools, notes)


def ablation(inputs: Inputs) -> Table | None:
    """Rows whose recipe was changed by --set, beside the unchanged row of the same block."""
    columns = (
        METHOD, Column("change", "Change", numeric=False), *ACC, Column("d_clean", "\u0394 clean"),
        Column("delta", "\u0394 certified"), Column("train_s", "Train time", "down"),
    )  # fmt: skip
    blocks, shown = [], []
    for block in inputs.blocks:
        changed = sorted({p.method for p in block.pools if p.overrides}, key=styles.order)
        for name in changed:
            mine = [p for p in block.pools if p.method == name and not p.broken]
            base = next((p for p in mine if not p.overrides), None)
            rows = [_ablation_row(p, base) for p in sorted(mine, key=lambda p: (p.overrides != "", p.overrides))]
            shown += mine
            blocks.append(
                Block(f"{block.setting.title}, preset {block.preset}: {mine[0].first.title}" if mine else name, rows)
            )
    return table("ablation", "Changed recipes", columns, blocks, shown) if blocks else None


def _ablation_row(pool: Pool, base: Pool | None) -> Row:
    def against(kind: str) -> Cell:
        if base is None or base is pool:
            return Cell()
        value = pool.percent(kind) - base.percent(kind)
        return Cell(fmt.points(value, fmt.decimals(pool.n)), pool.marks(), sort=float(value), ref=pool.first.id)

    cells = {k: accuracy(pool, k) for k in ACCURACIES} | only(costs(pool), "train_s")
    cells |= {
        "method": Cell(pool.first.title, pool.marks(), ref=pool.first.id), "change": Cell(pool.overrides or "none"),
        "d_clean": against("correct"), "delta": against("certified"),
    }  # fmt: skip
    return Row(cells, measured_data(pool))


_GRIDS = {True: ("0", "1/255", "2/255", "4/255", "8/255", "16/255"), False: ("0", "0.05", "0.1", "0.2", "0.3", "0.4")}


def radius(inputs: Inputs, dataset: str) -> Table | None:
    """Certified accuracy at standard radii and the mean radius, from the stored radii; a block per eps."""
    levels = dataset in LEVELS
    columns = (
        METHOD,
        *(Column(f"at{i}", f"at {eps}", "up") for i, eps in enumerate(_GRIDS[levels])),
        Column("mean", "Mean radius", "up"),
    )
    blocks, shown, lines = [], [], []
    for setting in sorted({b.setting for b in inputs.blocks if b.setting.dataset == dataset}):
        block = lead(inputs, setting)
        rows = []
        for pool in block.pools if block else ():
            if pool.broken or not pool.cls:
                continue
            row, line = _radius_row(pool, levels)
            shown.append(pool)
            rows.append(row)
            lines.append({"eps": setting.eps_text, **line})
        if rows and block:
            blocks.append(Block(f"{setting.title}, preset {block.preset}, n = {block.n}", rows))
    if not blocks:
        return None
    made = table(f"radius_{dataset}", f"Certified radii, {styles.dataset_title(dataset)}", columns, blocks, shown)
    names = ("method", "record", "preset", "eps", "n", "radius", "n_certified", "median_radius", "mean_radius")
    each = [
        {**line, "radius": eps, "n_certified": count}
        for line in lines
        for eps, count in zip(_GRIDS[levels], line["counts"], strict=True)
    ]
    notes = (
        "Percent of all n images; misclassified images count with radius 0, in the mean (the average certified radius) "
        "too. First seed of each row.",
    )
    return replace(made, csv_columns=names, csv_rows=each, notes=notes)


def _radius_row(pool: Pool, levels: bool) -> tuple[Row, dict[str, Any]]:
    r = pool.first.arrays("radius")["radius"]
    unit = 255 if levels else 1
    counts = [_reaching(pool, r, Eps(eps)) for eps in _GRIDS[levels]]
    median, mean = float(np.median(r)), float(np.mean(r.astype(np.float64)))
    cells = {"method": method(pool)}
    for at, count in enumerate(counts):
        cells[f"at{at}"] = Cell(fmt.percent(count, pool.n), pool.marks(), sort=float(count), ref=pool.first.id)
    cells["mean"] = Cell(f"{fmt.significant(mean * unit, 3)}{'/255' if levels and mean else ''}", sort=mean)
    line = {"method": pool.method, "record": pool.first.id, "preset": pool.first.preset, "n": pool.n, "counts": counts}
    return Row(cells, measured_data(pool)), {**line, "median_radius": median, "mean_radius": mean}


def _reaching(pool: Pool, radius: np.ndarray, eps: Eps) -> int:
    """Examples certified at eps; at the row's own eps by the certificate: stored radii are rounded down below it."""
    if not eps.fraction:
        return pool.first.n_correct
    return pool.first.n_certified if eps == pool.first.eps else int((radius >= eps.float32_up).sum())


def seed_table(inputs: Inputs) -> Table | None:
    """Rows with more than one seed: every seed's value, mean, standard deviation."""
    columns = (
        METHOD, Column("kind", "Accuracy", numeric=False), Column("k", "Seeds"), Column("mean", "Mean %"),
        Column("sd", "sd"), Column("low", "Min"), Column("high", "Max"), Column("values", "By seed", numeric=False),
    )  # fmt: skip
    blocks, shown = [], []
    for block in inputs.blocks:
        rows = []
        for pool in (p for p in block.pools if p.k > 1 and not p.broken):
            shown.append(pool)
            places = fmt.decimals(pool.n)
            for key in ACCURACIES:
                s = pool.over_seeds(KIND_OF[key])
                uneven = key == "robust" and pool.is_unevenly_attacked
                counts = {m.record.seed: m.count(KIND_OF[key]) for m in pool.members}
                each = ", ".join(f"{seed}: {fmt.percent(count, pool.n)}" for seed, count in counts.items())
                cells = {
                    "method": method(pool), "kind": Cell(key), "k": plain(s.k),
                    "mean": Cell(fmt.fixed(pool.percent(KIND_OF[key]), places), pool.marks(KIND_OF[key]), sort=s.mean),
                    "sd": Cell("n/a" if uneven else DASH if s.sd is None else fmt.fixed(s.sd, places), sort=s.sd),
                    "low": Cell(fmt.fixed(s.low, places), sort=s.low),
                    "high": Cell(fmt.fixed(s.high, places), sort=s.high),
                    "values": Cell(each),
                }  # fmt: skip
                rows.append(Row(cells, measured_data(pool)))
        if rows:
            blocks.append(Block(f"{block.setting.title}, preset {block.preset}", rows))
    return table("seeds", "Seeds", columns, blocks, shown) if blocks else None


def runs(inputs: Inputs) -> Table:
    """Every record: where it comes from, and the command that repeats it."""
    columns = (
        Column("id", "Record", numeric=False), METHOD, Column("setting", "Data, eps", numeric=False),
        Column("preset", "Preset", numeric=False), Column("seed", "Seed"), Column("certified", "Certified %"),
        Column("finished", "Date", numeric=False), Column("device", "Device", numeric=False),
        Column("command", "Command", numeric=False),
    )  # fmt: skip
    rows = []
    pools = [p for b in inputs.blocks for p in b.pools]
    for pool in pools:
        for r in pool.records:
            setting = Setting.of(r.dataset, r.norm, r.eps.fraction)
            cells = {
                "id": Cell(r.short, ref=r.id), "method": Cell(r.title, pool.marks()), "setting": setting_cell(setting),
                "preset": Cell(r.preset), "seed": plain(r.seed), "finished": Cell(r.data["finished"]),
                "certified": _of_record(pool, pool.of(r.seed)),
                "device": Cell(r.device), "command": Cell(command(r)),
            }  # fmt: skip
            rows.append(Row(cells, {**measured_data(pool), "ref": r.id}))
    return table("runs", "Every record", columns, [Block("", rows)], pools)


def _of_record(pool: Pool, member: Checked) -> Cell:
    r, count = member.record, member.count("certified")
    if pool.broken:
        return Cell("!", ref=r.id)
    return Cell(fmt.percent(count, r.n), pool.marks("certified"), sort=float(member.percent("certified")), ref=r.id)


def changes_of(r: Record) -> list[str]:
    """`lr=0.01`, `widths=64,32`: the overrides of a record as `--set` takes them, fit for a shell."""
    found = r.data["cell"]["overrides"]
    texts = {k: ",".join(map(str, v)) if isinstance(v, list) else str(v) for k, v in found.items()}
    return [shlex.quote(f"{k}={texts[k]}") for k in sorted(texts)]


def command(r: Record) -> str:
    """The command that repeats a record; a plugin's file is not known by name, its hash stands in the record."""
    changes = "".join(f" --set {change}" for change in changes_of(r))
    plugin = "--plugin FILE.py " if any(code.get("method_sha256") for code in r.trained_by) else ""
    return f"bench run {plugin}-m {r.method} -d {r.dataset} --eps {r.eps} --preset {r.preset} --seed {r.seed}{changes}"
