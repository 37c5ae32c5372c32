"""The csv form of records and published cells: stable column names, counts and unrounded values, no marks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from . import stats
from .checked import suite_of
from .published import Cell

if TYPE_CHECKING:
    from .checked import Checked
    from .pool import Pool

ACCURACIES = (("clean", "correct"), ("robust", "robust"), ("certified", "certified"))
CSV_COLUMNS: tuple[str, ...] = (
    "published", "dataset", "eps", "norm", "method", "title", "preset", "seed", "record", "cell", "n", "n_correct",
    "n_robust", "n_certified", "clean", "clean_lo", "clean_hi", "robust", "robust_lo", "robust_hi", "certified",
    "certified_lo", "certified_hi", "certificate", "certificate_class", "attacks", "n_contradicted", "n_borderline",
    "subset", "modified", "overrides", "dirty", "broken", "params", "flops", "epochs", "s_per_epoch", "train_s",
    "certify_ms", "forward_ms", "peak_memory_bytes", "device", "device_type", "threads", "torch", "version", "commit",
    "finished", "published_clean", "published_robust", "published_certified", "published_source", "delta_certified",
    "source", "where", "tag", "url", "label", "architecture", "eps_used", "note",
)  # fmt: skip
LONG_COLUMNS: tuple[str, ...] = (
    "published", "record", "dataset", "eps", "norm", "method", "preset", "seed", "metric", "value", "unit", "k", "n",
    "lo", "hi", "broken", "source",
)  # fmt: skip


def record_row(pool: Pool, member: Checked) -> dict[str, Any]:
    """One record, its counts after every attack there was."""
    r = member.record
    data, cost, env = r.data, r.data["cost"], r.data["environment"]
    row: dict[str, Any] = {
        "published": 0, "dataset": r.dataset, "eps": str(r.eps), "norm": r.norm, "method": r.method, "title": r.title,
        "preset": r.preset, "seed": r.seed, "record": r.id, "cell": r.cell_id, "n": r.n,
        "certificate": r.headline["name"], "certificate_class": r.certificate_class, "attacks": suite_of([member]),
        "n_contradicted": member.n_contradicted,
        "n_borderline": data["evaluation"].get("n_borderline", 0), "subset": r.is_subset, "modified": r.is_modified,
        "overrides": pool.overrides, "dirty": r.is_dirty, "broken": pool.broken is not None,
        **{k: cost.get(k) for k in ("params", "flops", "certify_ms", "forward_ms", "peak_memory_bytes")},
        "s_per_epoch": r.s_per_epoch,
        "epochs": data["training"]["epochs"], "train_s": r.train_s, "device": r.device,
        "device_type": env["device_type"], "threads": env["threads"], "torch": env["torch"],
        "version": data["code"]["version"], "commit": data["code"]["commit"], "finished": data["finished"],
    }  # fmt: skip
    if pool.broken is None:
        for key, kind in ACCURACIES:
            count = member.count(kind)
            lo, hi = stats.wilson(count, r.n)
            row |= {f"n_{kind}": count, key: 100 * count / r.n, f"{key}_lo": lo, f"{key}_hi": hi}
    if theirs := pool.published:
        row |= {f"published_{key}": _number(getattr(theirs, key)) for key, _ in ACCURACIES}
        row["published_source"] = theirs.key
        if theirs.certified is not None and pool.broken is None and not r.is_subset:
            row["delta_certified"] = float(Fraction(100 * member.count("certified"), r.n) - Fraction(theirs.certified))
    return row


def published_row(cell: Cell) -> dict[str, Any]:
    """One published cell, in the columns of a record where they mean the same."""
    return {
        "published": 1, "dataset": cell.dataset, "eps": cell.eps, "norm": cell.norm, "method": cell.method,
        "n": cell.n_test, **{key: _number(getattr(cell, key)) for key, _ in ACCURACIES},
        "certificate": cell.certifier, "attacks": cell.attack, "flops": cell.ops,
        "s_per_epoch": _number(cell.seconds_per_epoch), "source": cell.key, "where": cell.where, "tag": cell.tag,
        "url": cell.source.url, "label": cell.label, "architecture": cell.architecture, "eps_used": cell.eps_used,
        "note": cell.note,
    }  # fmt: skip


_UNITS = {
    "clean": "percent", "robust": "percent", "certified": "percent", "params": "count", "flops": "count",
    "s_per_epoch": "s", "train_s": "s", "certify_ms": "ms", "forward_ms": "ms", "peak_memory_bytes": "bytes",
}  # fmt: skip


def long_rows(rows: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """One row per (record or cell, metric): the form that plotting libraries want."""
    kinds = dict(ACCURACIES)
    for row in rows:
        fixed = {k: row.get(k) for k in ("published", "record", "dataset", "eps", "norm", "method", "preset", "seed")}
        for metric, unit in _UNITS.items():
            if row.get(metric) is not None:
                more = {"k": row.get(f"n_{kinds[metric]}"), "n": row.get("n")} if metric in kinds else {}
                yield {
                    **fixed, "metric": metric, "value": row[metric], "unit": unit, **more,
                    "lo": row.get(f"{metric}_lo"), "hi": row.get(f"{metric}_hi"), "broken": row.get("broken"),
                    "source": row.get("source"),
                }  # fmt: skip


def _number(value: Any) -> float | None:
    return None if value is None else float(value)
