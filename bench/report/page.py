"""One page, one file: tables, figures and how each number was made; opens from disk, loads nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from .. import __version__
from ..recipe import PRESETS
from . import findings, fmt, inline, provenance, render, styles, tables
from .cells import ACCURACIES, accuracy, published_accuracy, setting_cell
from .figures import Spec
from .fmt import DASH
from .model import BEST, MARKS, Block, Cell, Column, Row, Table
from .pool import Pool, Setting
from .published import Cell as Published
from .rows import Inputs, lead

_HERE = Path(__file__).parent
_SIGNS = ("\u2020", "\u2021")
ELSEWHERE = ("runs", "attacks", "cost", "headline")  # too long, or repeated by the main table; linked instead

_WORDY = ("certificate", "published", "source", "net", "certifier", "attack", "values")  # wrapped when long
LONG = 120  # rows of a secondary table that the page still prints


def build(inputs: Inputs, found: Sequence[Table], specs: Sequence[Spec], svgs: Mapping[str, str]) -> str:
    """The whole page as text."""
    inliner = inline.Inliner()
    short = {spec.name: f"f{at}" for at, spec in enumerate(specs)}
    figures = _figures(specs, svgs, inliner, short)
    results = _results(inputs, found)
    facts = provenance.build(inputs)
    facts["curves"] = {
        short[s.name]: {
            "x": s.data["x"], "levels": s.data["levels"], "places": fmt.decimals(s.csv_rows[0]["n"]),
            "series": [[t["label"], t["method"], t["y"]] for t in s.data["series"]],
        }
        for s in specs if s.kind == "curve" and s.name in svgs
    }  # fmt: skip
    parts = {
        "css": _text("page.css") + _palette() + _labels([results, *found]) + inliner.css(),
        "lead": _lead(inputs),
        "problems": _problems(inputs),
        "cards": _cards(inputs),
        "filters": _filters(results),
        "results": _html_table(results, "results", grouped=False),
        "legend": _legend(results),
        "findings": _findings(findings.build(inputs)),
        "figures": figures,
        "tables": _more_tables(found),
        "reading": _reading(),
        "data": provenance.dump(facts),
        "js": _text("page.js"),
    }
    text = _text("page.html")
    for name, part in parts.items():
        text = text.replace(f"<!--slot:{name}-->", part, 1)
    return "\n".join(line.rstrip() for line in text.splitlines()) + "\n"


def _text(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")


def _slug(name: str) -> str:
    """A name as an id that needs no escaping in a selector."""
    return "".join(c if c.isalnum() or c == "-" else "_" for c in name)


def _palette() -> str:
    """Method colours and shades of both themes as variables."""
    light = [f"{name[4:-1]}:{a}" for name, a, _ in inline.variables().values() if a]
    dark = [f"{name[4:-1]}:{b}" for name, _, b in inline.variables().values() if b]
    rule = ";".join(dark)
    return (
        f"\n:root{{{';'.join(light)}}}\n:root[data-theme=dark]{{{rule}}}\n"
        f"@media (prefers-color-scheme:dark){{:root:not([data-theme=light]){{{rule}}}}}\n"
    )


# --- the top ----------------------------------------------------------------------------------------------------------


def _lead(inputs: Inputs) -> str:
    records = inputs.records
    if not records:
        return (
            "No records yet: <code>bench run</code> makes the first one. Until then only published numbers stand here."
        )
    dates = max(r.data["finished"] for r in records)
    words = f"{fmt.many(len(records), 'record')} of {fmt.many(len({r.method for r in records}), 'method')}"
    return f"{words}; newest {fmt.html(dates)}; {len(inputs.published)} published cells; certbench {__version__}."


def _problems(inputs: Inputs) -> str:
    lines = [f"<li><strong>Problem:</strong> {fmt.html(p)}</li>" for p in inputs.problems]
    lines += [f"<li>Notice: {fmt.html(n)}</li>" for n in inputs.notices]
    return f'<ul class="problems">{"".join(lines)}</ul>' if lines else ""


def _best(inputs: Inputs, setting: Setting) -> Pool | None:
    """The row that certifies most: on the whole split if there is any, its recipe unchanged, its guards whole."""
    blocks = inputs.blocks_of(setting)
    blocks = [b for b in blocks if not b.is_subset] or blocks
    pools = [p for b in blocks for p in b.pools if not p.broken and p.cls and not p.overrides]
    return max(pools, key=lambda p: p.percent("certified"), default=None)


def _cards(inputs: Inputs) -> str:
    """Per headline setting the best certified row of any preset, which is named, and the best published number."""
    wanted = [s for s in inputs.settings() if (s.dataset, s.eps_text) in tables.HEADLINES and not s.norm]
    wanted += [s for s in inputs.settings() if lead(inputs, s) and s not in wanted]
    cards = []
    for setting in sorted(wanted, key=lambda s: lead(inputs, s) is None)[:8]:  # what was run first
        pool = _best(inputs, setting)
        lines = [f"<h3>{fmt.html(setting.title)}</h3>"]
        if pool:
            cell = accuracy(pool, "certified")
            lines.append(
                f'<p class="big">{_value(cell, provenance.short_id(pool.first))}<span class="unit">%</span></p>'
            )
            lines.append(
                f"<p>certified by <b>{fmt.html(pool.title)}</b>, preset <b>{pool.first.preset}</b>, n = {pool.n}</p>"
            )
        else:
            lines.append(f'<p class="big none">{DASH}</p><p>not run yet</p>')
        best = tables.best_published(inputs, setting)
        if best:
            daggers = published_accuracy(best[0], "certified")
            names = " and ".join(_whose(cell) for cell in best)
            lines.append(
                f'<p class="pub">best of the published numbers collected here: {_value(daggers, best[0].key)} by '
                f"{fmt.html(names)}</p>"
            )
        cards.append(f'<li class="card">{"".join(lines)}</li>')
    return f'<ul class="cards">{"".join(cards)}</ul>'


def _whose(cell: Published) -> str:
    """`SortNet, NeurIPS 2022`, or `CROWN-IBP as another paper ran it, ICML 2025`."""
    own = styles.own_paper(cell.method) in (None, cell.source.citekey)
    return f"{styles.title(cell.method)}{'' if own else ' as another paper ran it'}, {cell.source.short}"


# --- the table of everything ------------------------------------------------------------------------------------------


def _results(inputs: Inputs, found: Sequence[Table]) -> Table:
    """All main tables in one, with data set and preset as columns."""
    first = next((t for t in found if t.name.startswith("main_")), None)
    own = {c.key: c for c in (first.columns if first else ())}
    lead_keys = ("method", "preset", *ACCURACIES, "train_s")  # what it cost stands beside what it bought, in sight
    own["preset"] = Column("preset", "Preset", numeric=False)
    order = [key for key in lead_keys if key in own] + [key for key in own if key not in lead_keys]
    columns = (Column("setting", "Data, eps", numeric=False), *(own[key] for key in order))
    rows = []
    for setting in inputs.settings():
        table = next((t for t in found if t.name == f"main_{setting.slug}"), None)
        for row in table.rows() if table else ():
            preset = Cell(row.data["preset"]) if row.data.get("preset") else Cell("published", sort="~")
            rows.append(Row({**row.cells, "setting": setting_cell(setting), "preset": preset}, row.data))
    return Table("results", "Measured and published results", "", columns, [Block("", rows)], (), ())


def _filters(table: Table) -> str:
    """Check boxes: none checked in a group means all."""
    rows = list(table.rows())
    settings = list(dict.fromkeys((r.data["dataset"], r.data["eps"]) for r in rows))
    groups: list[tuple[str, str, list[tuple[str, str]]]] = [
        ("s", "Data, eps", [(f"{d} {e}", f"{styles.dataset_title(d)} {e}") for d, e in settings]),
        ("k", "Source", [(k, k) for k in ("measured", "published") if any(r.data["kind"] == k for r in rows)]),
        ("p", "Preset", [(p, p) for p in PRESETS if any(r.data["preset"] == p for r in rows)]),
        ("c", "Class", [(c, c) for c in ("D", "F32", "R", "none") if any(r.data["cls"] == c for r in rows)]),
        ("m", "Method", [(m, m) for m in sorted({r.data["method"] for r in rows}, key=styles.order)]),
    ]
    out = []
    for key, title, options in groups:
        if len(options) < 2:
            continue
        boxes = "".join(
            f'<label><input type="checkbox" name="{key}" value="{fmt.html(v)}"><span>{fmt.html(t)}</span></label>'
            for v, t in options
        )
        fieldset = f"<fieldset><legend>{title}</legend>{boxes}</fieldset>"
        out.append(f"<details><summary>{title}</summary>{fieldset}</details>" if len(options) > 12 else fieldset)
    return "".join(out)


def _html_table(table: Table, name: str, *, grouped: bool = True) -> str:
    columns = table.columns_for("html")
    heads = "".join(
        f'<th scope="col"{"" if c.numeric else " class=t"}><button type="button">'
        f"{fmt.html(render.head(c))}</button></th>"
        for c in columns
    )
    bodies = []
    for block in table.blocks:
        inside = "".join(_html_row(row, columns, selectable=not grouped) for row in block.rows)
        if grouped and block.heading:
            span = f'<th colspan="{len(columns)}" scope="rowgroup">{fmt.html(block.heading)}</th>'
            inside = f'<tr class="block">{span}</tr>{inside}'
        bodies.append(f"<tbody>{inside}</tbody>")
    caption = f"<caption>{fmt.html(table.title)}</caption>"
    return f'<table id="t-{_slug(name)}">{caption}<thead><tr>{heads}</tr></thead>{"".join(bodies)}</table>'


def _html_row(row: Row, columns: Sequence[Column], *, selectable: bool) -> str:
    ref = row.data.get("ref", "")
    short = ref if "#" in ref else ref[:12]
    data = f' data-r="{fmt.html(short)}"' if short else ""
    if selectable:
        keys = {"s": f"{row.data['dataset']} {row.data['eps']}", "k": row.data["kind"], "p": row.data["preset"],
                "c": row.data["cls"], "m": row.data["method"]}  # fmt: skip
        data += "".join(f' data-{k}="{fmt.html(v)}"' for k, v in keys.items() if v)
    cells = []
    for at, column in enumerate(columns):
        cell = row[column.key]
        tag = 'th scope="row"' if at == 0 else "td"
        sort = " class=w" if column.key in _WORDY and len(cell.text) > 24 else ""
        if isinstance(cell.sort, (int, float)) and not _is_plain(cell.text):
            sort += f' data-v="{cell.sort:.6g}"'
        elif cell.sort == "~":
            sort = ' data-v="~"'
        pad = selectable and column.key in ACCURACIES
        cells.append(f"<{tag}{sort}>{_value(cell, short, pad=pad)}</{tag.split()[0]}>")
    return f"<tr{data}>{''.join(cells)}</tr>"


def _is_plain(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _value(cell: Cell, row_ref: str, *, pad: bool = False) -> str:
    """A printed value; one with a source of its own is a button that tells how it was made. `pad` keeps digits in line
    by leaving room for marks and interval where there are none."""
    text = fmt.html(cell.text)
    if cell.bold:
        text = f"<b>{text}</b>"
    if cell.href:
        text = f'<a href="{fmt.html(cell.href)}">{text}</a>'
    elif cell.ref and not cell.is_empty:
        short = cell.ref if "#" in cell.ref else cell.ref[:12]
        own = f' data-r="{fmt.html(short)}"' if short != row_ref or not row_ref else ""
        text = f'<button type="button" class="v"{own}>{text}</button>'
    signs = "".join(m for m in cell.marks if m in _SIGNS) + ",".join(m for m in cell.marks if m not in _SIGNS)
    text += f"<sup>{fmt.html(signs)}</sup>" if signs or pad else ""
    return text + (f" <small>{fmt.html(cell.note)}</small>" if cell.note or pad else "")


def _legend(table: Table) -> str:
    items = "".join(f"<li><b>{fmt.html(sign)}</b> {fmt.html(meaning)}</li>" for sign, meaning in table.legend("html"))
    return f'<ul class="legend">{items}</ul>'


def _labels(found: Sequence[Table]) -> str:
    """Column heads for the cards of a phone, by position: no byte in the rows themselves."""
    rules = []
    for table in found:
        if table.name not in ELSEWHERE and not table.name.startswith("main_"):
            for at, column in enumerate(table.columns_for("html"), 1):
                head = column.head.replace('"', "'").replace("\\", "")
                rules.append(f'#t-{_slug(table.name)} tr:not(.block)>:nth-child({at})::before{{content:"{head}"}}')
    return "@media (max-width:640px){" + "\n".join(rules) + "}\n"


# --- figures and the other tables -------------------------------------------------------------------------------------


def _figures(specs: Sequence[Spec], svgs: Mapping[str, str], inliner: inline.Inliner, short: Mapping[str, str]) -> str:
    groups: dict[Setting | None, list[Spec]] = {}
    for spec in specs:
        if spec.name in svgs:
            groups.setdefault(spec.setting, []).append(spec)
    if not groups:
        return "<p>No figures yet.</p>"
    out = []
    measured = [s for s, group in groups.items() if any(g.records for g in group)]
    order = [s for s in groups if s in measured] + [s for s in groups if s not in measured]
    for at, setting in enumerate(order):
        title = setting.title if setting else "Across settings"
        body = "".join(_figure(spec, svgs[spec.name], inliner, short[spec.name]) for spec in groups[setting])
        opened = " open" if at == 0 or setting is None else ""
        what = "" if setting in measured or setting is None else " (published only)"
        out.append(f'<details class="group"{opened}><summary><h3>{fmt.html(title)}{what}</h3></summary>'
                   f'<div class="grid">{body}</div></details>')  # fmt: skip
    return "".join(out)


def _figure(spec: Spec, svg: str, inliner: inline.Inliner, prefix: str) -> str:
    slug = _slug(spec.name)
    tools = ""
    if spec.kind == "curve":
        chips = "".join(
            f'<button type="button" aria-pressed="true" data-m="{fmt.html(s["method"])}">'
            f'<i style="background:var(--m{s["slot"]})"></i>{fmt.html(s["label"])}</button>'
            for s in spec.data["series"]
        )
        last = len(spec.data["x"]) - 1
        tools = (
            f'<div class="tools" hidden><div class="chips">{chips}</div><label>radius <input type="range" min="0" '
            f'max="{last}" value="0" data-curve="{prefix}"></label><output></output></div>'
        )
    links = f'<a href="figures/{spec.name}.png">png</a> <a href="figures/{spec.name}.csv">csv</a>'
    kind = "wide" if 'width="486' in svg[:900] else "narrow"
    return (
        f'<figure id="f-{slug}" class="{kind}"><div class="scroll" tabindex="0" role="group" '
        f'aria-label="{fmt.html(spec.title)}">{inliner.fragment(svg, prefix)}</div>{tools}'
        f"<figcaption>{fmt.html(spec.alt)} {links}</figcaption></figure>"
    )


def _more_tables(found: Sequence[Table]) -> str:
    out = []
    for table in found:
        if table.name in ELSEWHERE or table.name.startswith("main_"):
            continue
        links = " ".join(f'<a href="tables/{table.name}.{e}">{e}</a>' for e in ("md", "csv", "tex"))
        notes = "".join(f"<p>{fmt.html(n)}</p>" for n in table.notes)
        opened = " open" if table.name == "paper_table1" else ""
        count = len(list(table.rows()))
        body = f'<div class="scroll" tabindex="0" role="group" aria-label="{fmt.html(table.title)}">' + (
            _html_table(table, table.name) if 0 < count <= LONG or table.name == "published" else _instead(count)
        )
        out.append(
            f'<details class="group"{opened}><summary><h3>{fmt.html(table.title)}</h3></summary>{body}</div>'
            f"{_legend(table)}{notes}<p>{links}</p></details>"
        )
    return "".join(out)


def _findings(found: findings.Findings) -> str:
    """The distance nets against the others, a list per block, then the limits of all of them."""
    if not found.limits:
        return "<p>Nothing yet: there are no records.</p>"
    across = f"<p>{render.ACROSS}:</p>{_list(found.across)}" if found.across else ""
    says = "".join(f"<dt>{fmt.html(head)}</dt><dd>{_list(text)}</dd>" for head, text in found.says)
    says = f"<dl>{says}</dl>" if says else ""
    return f"{across}{says}<h3>What it does not say</h3>{_list(found.limits)}"


def _list(lines: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{fmt.html(line)}</li>' for line in lines)}</ul>"


def _instead(count: int) -> str:
    return f"<p>{count} rows, in the files below.</p>" if count else "<p>Nothing here yet.</p>"


def _reading() -> str:
    """What the columns mean, once."""
    terms = [
        ("Clean", "right on the image itself; percent of the whole test split unless n says otherwise."),
        ("Robust", "right, and no attack of the row's suite succeeded: an upper bound of the truth."),
        ("Certified", "right, and proved right for every image within eps: a lower bound of the truth."),
        ("Certificate", "what proved it, and its class. D: holds for the deployed network bit for bit. F32: for every "
         "float32 evaluation. R: in real arithmetic, rounding not controlled."),
        ("Interval", "95 % Wilson interval of the proportion, about the test images only, not about training."),
        ("Seeds", "runs pooled in a row; sd from three on. To call one method better takes three seeds each."),
        ("Bold", f"{BEST}."),
        ("\u0394", "measured minus published, in points; says something about a paper only for preset paper."),
        ("Preset", "paper: the published recipe. short, hour, quick: cheaper, and never comparable with a paper."),
    ]  # fmt: skip
    items = "".join(f"<dt>{fmt.html(t)}</dt><dd>{fmt.html(d)}</dd>" for t, d in terms)
    signs = "".join(f"<dt>{fmt.html(s)}</dt><dd>{fmt.html(m)}</dd>" for s, m in MARKS.items())
    return f"<dl>{items}</dl><h3>Signs</h3><dl>{signs}</dl>"


assert ACCURACIES[0] == "clean"
