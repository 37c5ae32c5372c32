"""The tables people come for: one per (data set, eps), the headlines, measured against published, all published."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from fractions import Fraction

from ..recipe import PRESETS
from . import detail, fmt, league, paper, posthoc, reattacks, stats, styles
from .blocks import Block as Rows
from .blocks import Standing
from .cells import (
    ACC,
    ACCURACIES,
    KIND_OF,
    METHOD,
    PRESET_NOTE,
    PUBLISHED_NOTE,
    accuracy,
    certificate,
    certifier,
    costs,
    daggers,
    delta,
    measured_data,
    method,
    plain,
    published_accuracy,
    published_data,
    seeds,
    setting_cell,
    source,
    table,
    triple,
)
from .fmt import DASH
from .model import Block, Cell, Column, Row, Table
from .pool import PRESET_MEANS, Pool, Setting
from .published import Cell as Published
from .published import fullest
from .rows import Inputs, lead
from .wording import name

HEADLINES = (
    ("mnist", "0.3"), ("fashion_mnist", "0.1"), ("cifar10", "2/255"), ("cifar10", "8/255"), ("tinyimagenet", "1/255"),
)  # fmt: skip


def describe(block: Rows) -> str:
    """`Preset quick (minutes on a CPU), n = 10000, interval +-0.96 at 40 %`."""
    best = max(float(p.count("certified")) for p in block.pools)
    lo, hi = stats.wilson(best, block.n)
    value = 100 * best / block.n
    width = fmt.half_width(lo, hi, value, fmt.decimals(block.n))
    at = f"95 % interval {width}" + (f" at {fmt.fixed(value, 0)} %" if width.startswith("\u00b1") else "")
    subset = block.pools[0].first.data["data"]["subset"]
    part = ", subset" + "".join(f" {k} = {subset[k]}" for k in sorted(subset)) if subset else ""
    if not subset and block.is_subset:
        part = ", subset of the test images"
    return f"Preset {block.preset} ({PRESET_MEANS[block.preset]}), n = {block.n}{part}, {at}"


def protocol(blocks: Iterable[Rows]) -> list[str]:
    """What robust and certified mean in these blocks: the attack suites by name, and who was attacked by which."""
    suites: dict[str, set[str]] = {}
    many = len(found := list(blocks)) > 1
    for block in found:
        for pool in block.pools:
            suites.setdefault(pool.suite, set()).add(name(pool) + (f" {block.preset}" if many else ""))
    if not suites:
        return []
    if len(suites) == 1:
        text = next(iter(suites))
    else:
        text = "; ".join(f"{suite}: {fmt.names(sorted(suites[suite]))}" for suite in sorted(suites))
    more = [
        meaning
        for word, meaning in (
            ("pgd_p", "pgd_pN is PGD guided by the same net at exponent N, whose gradients touch many pixels"),
            ("autoattack", "later autoattack is a longer PGD and then AutoAttack's standard four on what is left"),
        )
        if word in text
    ]
    return [
        "Robust: right and surviving every attack of the suite (steps \u00d7 restarts), an upper bound. Suites: "
        f"{text}. {'; '.join(more)}{'.' * bool(more)}".strip(),
        "Certified: right and proved so for the whole ball; in brackets its class (D: every deployed bit, F32: every "
        "float32 evaluation, R: real arithmetic only). A lower bound.",
    ]


def main(inputs: Inputs, setting: Setting) -> Table:
    """Everything about one (data set, eps): measured rows by block, then what is only published."""
    columns = (
        METHOD, *ACC, Column("certificate", "Certificate", numeric=False), Column("seeds", "Seeds", numeric=False),
        Column("train_s", "Train time", "down"),
        Column("published", "Published clean / robust / certified", numeric=False),
        Column("delta", "\u0394 certified"),
        Column("n", "n", formats=("html",)),
        Column("params", "Params", formats=("html",)), Column("flops", "FLOPs", formats=("html",)),
        Column("s_per_epoch", "Per epoch", "down", formats=("html",)),
        Column("certify_ms", "Per certificate", "down", formats=("html",)),
        Column("device", "Device", numeric=False, formats=("html",)),
    )  # fmt: skip
    blocks = []
    for block in inputs.blocks_of(setting):
        rows = [main_row(block, at) for at in range(len(block.pools))]
        blocks.append(Block(describe(block), rows))
    pools = [p for b in inputs.blocks_of(setting) for p in b.pools]
    ran = {p.method for p in pools}
    only = [c for m in sorted(inputs.published_of.get(setting, {})) if (c := inputs.headline_of(setting, m))]
    only = [c for c in only if c.method not in ran]
    shown = [*only, *(p.published for p in pools if p.published)]
    printed = {(c.method, c.certified) for c in shown}
    only += [c for c in best_published(inputs, setting) if (c.method, c.certified) not in printed]
    only.sort(key=lambda c: (-(c.certified if c.certified is not None else -1), c.method))
    if only:
        blocks.append(Block("Published, not measured here", [published_only(c) for c in only]))
    cells = [c for m in sorted(inputs.published_of.get(setting, {})) for c in inputs.published_of[setting][m]]
    notes = [*protocol(inputs.blocks_of(setting)), *[PUBLISHED_NOTE] * bool(cells)]
    return table(f"main_{setting.slug}", setting.title, columns, blocks, pools, notes, cells)


def main_row(block: Rows, at: int) -> Row:
    """One measured row of a main table."""
    pool = block.pools[at]
    cells = {k: accuracy(pool, k, block.standings.get((at, KIND_OF[k]), Standing())) for k in ACCURACIES}
    cells |= {
        "method": method(pool), "certificate": certificate(pool), "seeds": seeds(pool),
        "published": triple(pool.published), "delta": delta(pool, "certified"), "n": plain(pool.n),
        **costs(pool),
    }  # fmt: skip
    return Row(cells, measured_data(pool))


def published_only(cell: Published) -> Row:
    cells = {k: published_accuracy(cell, k) for k in ACCURACIES}
    name = styles.title(cell.method)
    cells |= {
        "method": Cell(name, daggers(cell), sort=name.lower(), ref=cell.key),
        "certificate": certifier(cell),
        "published": source(cell),
        "flops": Cell(fmt.si(cell.ops), sort=cell.ops),
        "n": plain(cell.n_test),
    }
    return Row(cells, published_data(cell))


def best_published(inputs: Inputs, setting: Setting) -> list[Published]:
    """The cells of highest certified accuracy on the whole test split among those collected here, one per method."""
    cells = [c for found in inputs.published_of.get(setting, {}).values() for c in found]
    known = [c for c in cells if c.certified is not None and (c.n_test or 10_000) >= 1000]
    most = max((c.certified for c in known if c.certified is not None), default=None)
    by_method: dict[str, Published] = {}
    for cell in sorted(known, key=fullest):
        if cell.certified == most:
            by_method.setdefault(cell.method, cell)
    return [by_method[name] for name in sorted(by_method, key=styles.order)]


def headline(inputs: Inputs) -> Table:
    """Per setting the best rows of its leading block, the two best of every other preset, the best published number."""
    columns = (
        Column("setting", "Data, eps", numeric=False), METHOD, Column("preset", "Preset", numeric=False), *ACC,
        Column("certificate", "Certificate", numeric=False), Column("train_s", "Train time", "down"),
        Column("published", "Published certified"),
    )  # fmt: skip
    wanted = {Setting.of(d, "linf", Fraction(e)) for d, e in HEADLINES} | {b.setting for b in inputs.blocks}
    rows, pools = [], []
    for setting in sorted(wanted):
        block = lead(inputs, setting)
        others = [b for b in inputs.blocks_of(setting) if b is not block and not b.is_subset]
        shown = [(b, at) for b in others for at in range(min(2, len(b.pools)))]
        shown += [(block, at) for at in range(min(4, len(block.pools)))] if block else []
        shown.sort(key=lambda one: PRESETS.index(one[0].preset))
        for of, at in shown:
            pool = of.pools[at]
            row = main_row(of, at)
            cells = {**row.cells, "setting": setting_cell(setting), "preset": Cell(pool.first.preset)}
            cells["published"] = published_accuracy(pool.published, "certified") if pool.published else Cell()
            if others:  # bold and ties are of one preset and would be read across all
                cells = {
                    key: replace(cell, bold=False, marks=tuple(m for m in cell.marks if m != "t"))
                    for key, cell in cells.items()
                }
            rows.append(Row(cells, row.data))
            pools.append(pool)
        best = best_published(inputs, setting)
        printed = {(cell.method, cell.certified) for of, at in shown if (cell := of.pools[at].published)}
        if best and not {(cell.method, cell.certified) for cell in best} & printed:
            row = published_only(best[0])
            cells = {**row.cells, "setting": setting_cell(setting), "preset": Cell("published"), "certified": Cell()}
            if len(best) > 1:  # an exact tie: what they share stands in the row
                names = ", ".join(styles.title(cell.method) for cell in best)
                cells |= {"method": replace(row["method"], text=names), "clean": Cell(), "robust": Cell()}
            cells |= {"published": row["certified"]}
            rows.append(Row(cells, row.data))
    notes = [
        "Of every setting the four rows that certify most with the preset of most rows, the two best of every other "
        "preset, and the best published number of those collected, if no row above names it.",
        PUBLISHED_NOTE,
    ]
    return table("headline", "Most certified, setting by setting", columns, [Block("", rows)], pools, notes)


def gap(inputs: Inputs) -> Table:
    """Measured minus published, wherever both exist on the same test images."""
    columns = (
        Column("setting", "Data, eps", numeric=False), METHOD, Column("preset", "Preset", numeric=False),
        Column("published", "Published clean / robust / certified", numeric=False),
        Column("measured", "Measured clean / robust / certified", numeric=False), Column("d_clean", "\u0394 clean"),
        Column("delta", "\u0394 certified"), Column("inside", "Inside our interval", numeric=False),
        Column("source", "Source", numeric=False),
    )  # fmt: skip
    pools = [p for b in inputs.blocks for p in b.pools if has_gap(p)]
    blocks = []
    for preset in PRESETS:
        rows = []
        for pool in (p for p in pools if p.first.preset == preset):
            cell = pool.published
            assert cell is not None and cell.certified is not None
            lo, hi = pool.interval("certified")
            measured = " / ".join(accuracy(pool, k).text for k in ACCURACIES)
            setting = Setting.of(pool.first.dataset, pool.first.norm, pool.first.eps.fraction)
            cells = {
                "setting": setting_cell(setting), "method": method(pool), "preset": Cell(preset),
                "published": triple(cell), "measured": Cell(measured, pool.marks(), ref=pool.first.id),
                "d_clean": delta(pool, "clean"), "delta": delta(pool, "certified"),
                # only the published recipe can be expected to land there
                "inside": Cell("yes" if lo <= float(cell.certified) <= hi else "no") if preset == "paper" else Cell(),
                "source": source(cell),
            }  # fmt: skip
            rows.append(Row(cells, measured_data(pool)))
        if rows:
            blocks.append(Block(f"Preset {preset} ({PRESET_MEANS[preset]})", rows))
    return table("gap", "Measured minus published, in points", columns, blocks, pools, [PRESET_NOTE, PUBLISHED_NOTE])


def has_gap(pool: Pool) -> bool:
    cell = pool.published
    return cell is not None and cell.certified is not None and not pool.broken and not pool.first.is_subset


def all_published(inputs: Inputs) -> Table:
    """Every published accuracy of results/published, with its source."""
    columns = (
        METHOD, *(Column(k, f"{k.capitalize()} %") for k in ACCURACIES), Column("net", "Network", numeric=False),
        Column("certifier", "Certifier", numeric=False), Column("attack", "Attack", numeric=False),
        Column("tag", "Tag", numeric=False), Column("source", "Source", numeric=False),
    )  # fmt: skip
    blocks = []
    for setting in sorted(inputs.published_of):
        rows = []
        by_method = inputs.published_of[setting]
        for cell in (c for method_id in sorted(by_method, key=styles.order) for c in by_method[method_id]):
            rows.append(
                Row(
                    {
                        "method": Cell(styles.title(cell.method), daggers(cell), ref=cell.key),
                        **{k: published_accuracy(cell, k) for k in ACCURACIES},
                        "net": Cell(cell.architecture or DASH), "certifier": certifier(cell),
                        "attack": Cell(cell.attack or DASH), "tag": Cell(cell.tag), "source": source(cell, whole=True),
                    },
                    published_data(cell),
                )
            )  # fmt: skip
        blocks.append(Block(setting.title, rows))
    notes = ["Tag: where the number stands. paper, repo, log: the authors' own; secondary: a later source quotes it."]
    return table("published", "Published numbers", columns, blocks, [], notes, inputs.published)


def build(inputs: Inputs) -> list[Table]:
    """Every table, in the order of the page."""
    found: list[Table | None] = [headline(inputs)]
    found += [main(inputs, setting) for setting in inputs.settings()]
    found += [paper.paper(inputs, 1), paper.paper(inputs, 2), paper.paper_cost(inputs)]
    makers: list[Callable[[Inputs], Table | None]] = [
        gap,
        posthoc.posthoc,
        reattacks.reattacks,
        detail.cost,
        detail.attacks,
        detail.ablation,
        detail.seed_table,
        detail.runs,
        all_published,
    ]
    found += [
        detail.radius(inputs, d) for d in sorted({b.setting.dataset for b in inputs.blocks}, key=styles.dataset_order)
    ]
    found += [league.league(inputs, "cpu"), league.league(inputs, "gpu"), *(make(inputs) for make in makers)]
    return [table for table in found if table is not None]
