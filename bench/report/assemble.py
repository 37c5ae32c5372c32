"""`bench report`: gather, make every file in memory, then write what changed, or compare with what is committed."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import os
import posixpath
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .. import __version__, record
from ..errors import BenchError
from ..recipe import PRESETS
from . import columns, draw, figures, findings, fmt, page, published, readme, render, rows, tables
from .model import Table

FORMATS = ("svg", "png")
MANIFEST = "manifest.json"
_NUMBER = re.compile(r"^-?[\d.]+(e-?\d+)?$")
_VERSIONED = re.compile(r"<svg .*?</svg>", re.DOTALL)  # drawings inside the page: bytes of one matplotlib version


class ReportError(BenchError):
    """A report that cannot be made: published numbers or README markers are broken. Names file and place."""

    exit_code = 2


@dataclass
class BuildResult:
    """What a build did. `lines` is what a command prints."""

    written: list[Path] = field(default_factory=list)
    removed: list[Path] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)  # only of a check
    changes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    records: int = 0
    page: Path | None = None
    checked: bool = False

    @property
    def exit_code(self) -> int:
        """0 done or equal; 1 a guard is broken, a record cannot be read, or a check found a difference."""
        return 1 if self.problems or self.differences else 0

    @property
    def lines(self) -> list[str]:
        found = [f"problem: {p}" for p in self.problems] + [f"notice: {n}" for n in self.notices]
        if self.checked:
            found += self.differences[:20]
            if len(self.differences) > 20:
                found.append(f"and {len(self.differences) - 20} more differences")
            same = "reports agree with the records"
            found.append("run `bench report` and commit the result" if self.differences else same)
        else:
            found += self.changes
            what = f"{len(self.written)} files written" if self.written else "nothing to change"
            found.append(f"{what} from {fmt.many(self.records, 'record')}: {self.page}")
        return found


@dataclass(frozen=True)
class _Made:
    """A whole report in memory."""

    files: dict[str, bytes]
    blocks: dict[str, str]
    inputs: rows.Inputs


def build(
    results_dir: Path,
    out_dir: Path,
    *,
    published_dir: Path | None = None,
    check: bool = False,
    readme: Path | None = None,
    formats: Sequence[str] = FORMATS,
    jobs: int | None = None,
) -> BuildResult:
    """Write every table, figure and page below `out_dir`, and the marked blocks of `readme`.

    Args:
        results_dir: searched for records at any depth; may be missing or empty.
        out_dir: `tables/`, `figures/`, `index.html`, `README.md`, `manifest.json`; nothing else belongs there.
        published_dir: default: results/published of the checkout, else of the installed wheel.
        check: write nothing; list every difference between the files and what the records give.
        readme: a Markdown file with markers; None: no such file is touched.
        formats: of figures: svg, png, pdf.
        jobs: processes that draw; default: the cores, if there is much to draw.

    Raises:
        ReportError: published numbers or README markers break their form (exit code 2).
    """
    results_dir, out_dir = Path(results_dir), Path(out_dir)
    old = _manifest(out_dir)
    made = _make(results_dir, out_dir, old if not check else {}, published_dir, formats, jobs)
    result = BuildResult(problems=list(made.inputs.problems), notices=list(made.inputs.notices), checked=check)
    result.records = len(made.inputs.records)
    result.page = out_dir / "index.html"
    wanted = {out_dir / name: content for name, content in made.files.items()}
    if readme is not None:
        wanted[Path(readme)] = _readme(Path(readme), made.blocks, out_dir)
    if check:
        result.differences = _differences(wanted, out_dir, old)
        return result
    result.changes = _changes(wanted, out_dir)
    for path, content in wanted.items():
        if not path.is_file() or path.read_bytes() != content:
            _write(path, content)
            result.written.append(path)
    listed = old.get("outputs")
    for name in sorted(set(listed) - set(made.files)) if isinstance(listed, dict) else ():
        if (out_dir / name).is_file() and ".." not in name.split("/"):  # a table or figure that is no longer made
            (out_dir / name).unlink()
            result.removed.append(out_dir / name)
    return result


# --- making -----------------------------------------------------------------------------------------------------------


def _make(
    results_dir: Path, out_dir: Path, old: Mapping[str, object], published_dir: Path | None, formats: Sequence[str],
    jobs: int | None,
) -> _Made:  # fmt: skip
    painter = draw.Painter(formats, jobs)
    try:
        if not old:  # everything is to be drawn
            painter.warm()
        records, broken = record.scan(results_dir)
        try:
            theirs = published.load(published_dir)
        except published.PublishedError as error:
            raise ReportError(str(error)) from error
        inputs = rows.gather(records, theirs)
        inputs.problems[:0] = [f"{_relative(p.path, results_dir)}: {p.reason}" for p in broken]
        specs = figures.build(inputs)
        keep = _kept(specs, out_dir, old, formats)
        painter.start([spec for spec in specs if spec.name not in keep])
        found = tables.build(inputs)
        files: dict[str, bytes] = {}
        for table in found:
            files[f"tables/{table.name}.md"] = render.markdown(table).encode()
            files[f"tables/{table.name}.csv"] = render.csv(table).encode()
            files[f"tables/{table.name}.tex"] = render.tex(table).encode()
        files |= _everything(inputs)
        for spec in specs:
            files[f"figures/{spec.name}.csv"] = _rows_csv(spec.csv_columns, spec.csv_rows)
        drawn = painter.finish() | keep
    finally:
        painter.close()
    for spec in specs:
        for form in formats:
            files[f"figures/{spec.name}.{form}"] = drawn[spec.name][form]
    svgs = {spec.name: drawn[spec.name]["svg"].decode() for spec in specs if "svg" in drawn[spec.name]}
    files["index.html"] = page.build(inputs, found, specs, svgs).encode()
    files["README.md"] = _index(inputs, found, specs).encode()
    files[MANIFEST] = _new_manifest(inputs, theirs, specs, files).encode()
    return _Made(files, _blocks(inputs, found, specs), inputs)


def _everything(inputs: rows.Inputs) -> dict[str, bytes]:
    """The two files for people's own analysis: wide (a row per record) and long (a row per number)."""
    wide = [row for b in inputs.blocks for pool in b.pools for row in pool.csv_rows]
    wide += [columns.published_row(cell) for cell in inputs.published]
    long = list(columns.long_rows(wide))
    return {
        "tables/all.csv": _rows_csv(columns.CSV_COLUMNS, wide),
        "tables/long.csv": _rows_csv(columns.LONG_COLUMNS, long),
    }


def _rows_csv(names: Sequence[str], lines: Iterable[Mapping[str, object]]) -> bytes:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([fmt.csv(line.get(name)) for name in names] for line in lines)
    return out.getvalue().encode()


def _kept(
    specs: Sequence[figures.Spec], out_dir: Path, old: Mapping[str, object], formats: Sequence[str]
) -> dict[str, dict[str, bytes]]:
    """Figures that need no new drawing: same input, same drawing code, and the files are those we wrote."""
    known, outputs = old.get("figures"), old.get("outputs")
    if not isinstance(known, dict) or not isinstance(outputs, dict) or old.get("drawing") != draw.code_hash():
        return {}
    kept = {}
    for spec in specs:
        if not isinstance(known.get(spec.name), dict) or known[spec.name].get("input") != spec.input_hash:
            continue
        found = {}
        for form in formats:
            name = f"figures/{spec.name}.{form}"
            path = out_dir / name
            if path.is_file() and _sha(content := path.read_bytes()) == outputs.get(name):
                found[form] = content
        if len(found) == len(formats):
            kept[spec.name] = found
    return kept


def _new_manifest(
    inputs: rows.Inputs, theirs: Sequence[published.Cell], specs: Sequence[figures.Spec], files: Mapping[str, bytes]
) -> str:
    data = {
        "certbench": __version__,
        "drawing": draw.code_hash(),
        "figures": {s.name: {"alt": s.alt, "input": s.input_hash, "records": sorted(s.records)} for s in specs},
        "matplotlib": draw.matplotlib_version(),
        "outputs": {name: _sha(files[name]) for name in sorted(files)},
        "published": len(theirs),
        "records": {r.id: r.data["arrays"]["sha256"] for r in inputs.records},
    }
    return json.dumps(data, sort_keys=True, indent=1, ensure_ascii=False) + "\n"


def _blocks(inputs: rows.Inputs, found: Sequence[Table], specs: Sequence[figures.Spec]) -> dict[str, str]:
    """What a README may ask for: every table, every figure, `runs` in three lines."""
    blocks = {table.name: _without_title(render.markdown(table, title=False)) for table in found}
    blocks |= {f"figure_{spec.name}": _picture(spec) for spec in specs}
    curves = [s for s in specs if s.kind == "curve"] or [s for s in specs if s.kind == "pareto"]
    if curves:
        blocks["figure"] = _picture(curves[0])
    blocks["what_was_run"] = _what_was_run(inputs)
    blocks["findings"] = render.findings(findings.build(inputs))
    return blocks


def _without_title(text: str) -> str:
    first, _, rest = text.partition("\n")
    return f"{first}\n{rest}"


def _picture(spec: figures.Spec) -> str:
    return f"![{fmt.md(spec.alt)}](figures/{spec.name}.svg)\n\n{fmt.md(spec.alt)}"


def _what_was_run(inputs: rows.Inputs) -> str:
    records = inputs.records
    if not records:
        return "No records yet: `bench run` makes the first one."
    names = sorted({r.method for r in records})
    devices = sorted({r.device for r in records})
    dates = sorted(r.data["finished"] for r in records)
    presets = [p for p in PRESETS if any(r.preset == p for r in records)]
    span = dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"
    return "\n".join(
        [
            f"- {fmt.many(len(records), 'record')} of {fmt.many(len(names), 'method')} ({fmt.md(', '.join(names))}), "
            f"presets {', '.join(presets)}.",
            f"- Devices: {fmt.md('; '.join(devices))}.",
            f"- Finished {span}; certbench {__version__}; every number leads to its record in "
            "[tables/runs.md](tables/runs.md).",
        ]
    )


def _index(inputs: rows.Inputs, found: Sequence[Table], specs: Sequence[figures.Spec]) -> str:
    """reports/README.md: what lies where, the headlines, one figure."""
    records = fmt.many(len(inputs.records), "record")
    lines = [
        f"certbench {__version__}; {records}; {len(inputs.published)} published cells",
        "",
        "# Reports",
        "",
        "Written by `bench report`; edits are overwritten. [index.html](index.html) is the page.",
        "",
    ]
    for problem in inputs.problems:
        lines += [f"- **Problem:** {fmt.md(problem)}"]
    lines += [f"- Notice: {fmt.md(notice)}" for notice in inputs.notices]
    lines += [""] if inputs.problems or inputs.notices else []
    lines += [_what_was_run(inputs), ""]
    lines += ["## Headlines", "", _without_title(render.markdown(found[0], title=False))]
    lines += ["## What it says, and what it does not", "", render.findings(findings.build(inputs)), "## Tables", ""]
    lines += ["| Table | Files |", "| --- | --- |"]
    for table in found:
        links = ", ".join(f"[{e}](tables/{table.name}.{e})" for e in ("md", "csv", "tex"))
        lines.append(f"| {fmt.md(table.title)} | {links} |")
    lines += [
        "| Every record and published cell, wide and long | [all.csv](tables/all.csv), [long.csv](tables/long.csv) |",
        "",
    ]
    lines += ["## Figures", ""]
    for spec in specs:
        lines += [f"### {fmt.md(spec.title)}", "", _picture(spec), ""]
    return "\n".join(lines).rstrip() + "\n"


def _readme(path: Path, blocks: Mapping[str, str], out_dir: Path) -> bytes:
    """The new text of a README, links turned to where the reports lie."""
    try:
        text = path.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise ReportError(f"{path}: {error}") from error
    base = posixpath.join(*Path(os.path.relpath(out_dir, path.parent)).parts)
    moved = {name: re.sub(r"\]\((?=figures/|tables/|index\.html)", f"]({base}/", body) for name, body in blocks.items()}
    try:
        return readme.update(text, moved, path.name).encode()
    except ValueError as error:
        raise ReportError(str(error)) from error


# --- comparing and writing --------------------------------------------------------------------------------------------


def _differences(wanted: Mapping[Path, bytes], out_dir: Path, old: Mapping[str, object]) -> list[str]:
    """One line per file that differs, is missing or does not belong."""
    other_version = bool(old) and old.get("matplotlib") != draw.matplotlib_version()
    found = []
    for path in sorted(wanted):
        name = _relative(path, out_dir)
        if not path.is_file():
            found.append(f"{name} is missing")
            continue
        have, want = path.read_bytes(), wanted[path]
        if other_version and path.suffix in (".svg", ".png", ".pdf"):
            continue  # its bytes belong to another matplotlib; the sibling csv is compared
        if other_version and path.name == "index.html":
            have, want = (_VERSIONED.sub("", t.decode("utf-8", "replace")).encode() for t in (have, want))
        if other_version and path.name == MANIFEST:
            have, want = _comparable(have), _comparable(want)
        if have != want:
            found.append(_difference(name, have, want))
    present = sorted(p for p in out_dir.rglob("*") if p.is_file()) if out_dir.is_dir() else []
    found += [f"{_relative(p, out_dir)} does not belong into the reports" for p in present if p not in wanted]
    return found


def _comparable(manifest: bytes) -> bytes:
    data = json.loads(manifest)
    for key in ("matplotlib", "drawing", "outputs"):
        data.pop(key, None)
    return json.dumps(data, sort_keys=True).encode()


def _difference(name: str, have: bytes, want: bytes) -> str:
    if name.endswith((".png", ".pdf")):
        return f"{name}: the picture differs from what the records give"
    old, new = have.decode("utf-8", "replace").splitlines(), want.decode("utf-8", "replace").splitlines()
    for number in range(max(len(old), len(new))):
        a = old[number] if number < len(old) else "nothing"
        b = new[number] if number < len(new) else "nothing"
        if a != b:
            start = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
            cut = slice(max(0, start - 20), start + 40)
            return (
                f"{name} line {number + 1}: committed {fmt.printable(a[cut])!r}, records give {fmt.printable(b[cut])!r}"
            )
    return f"{name}: line ends differ"


def _changes(wanted: Mapping[Path, bytes], out_dir: Path) -> list[str]:
    """`main_cifar10_8_255: 1 row new, 2 rows changed`, from the tables' csv."""
    found = []
    for path in sorted(p for p in wanted if p.suffix == ".csv" and p.parent.name == "tables" and p.is_file()):
        old, new = (_keyed(text) for text in (path.read_bytes(), wanted[path]))
        if old == new or path.stem in ("long", "all"):
            continue
        counts = {
            "new": len(new.keys() - old.keys()),
            "gone": len(old.keys() - new.keys()),
            "changed": sum(old[k] != new[k] for k in old.keys() & new.keys()),
        }
        words = [f"{fmt.many(n, 'row')} {what}" for what, n in counts.items() if n]
        found.append(f"{path.stem}: {', '.join(words)}")
    return found


def _keyed(text: bytes) -> dict[tuple[str, ...], list[list[str]]]:
    """Rows by their words; their numbers are what may change."""
    found: dict[tuple[str, ...], list[list[str]]] = {}
    for line in csv.reader(io.StringIO(text.decode("utf-8", "replace"))):
        words = tuple(v for v in line if v and not _NUMBER.match(v))
        found.setdefault(words, []).append([v for v in line if _NUMBER.match(v)])
    return found


def _manifest(out_dir: Path) -> dict[str, object]:
    try:
        data = json.loads((out_dir / MANIFEST).read_bytes())
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def _write(path: Path, content: bytes) -> None:
    """Whole or not at all."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh.write_bytes(content)
        os.replace(fresh, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            fresh.unlink(missing_ok=True)
        raise ReportError(f"cannot write {path}: {error.strerror}; choose another folder with --out") from error


def _relative(path: Path, base: Path) -> str:
    try:
        return path.relative_to(base).as_posix()
    except ValueError:
        return path.name


def _sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
