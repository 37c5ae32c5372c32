"""How each number on the page was made, as JSON for its popover: everything a reader needs to doubt or repeat it."""

from __future__ import annotations

import json
from fractions import Fraction
from typing import Any

from ..record import Record
from . import fmt, styles
from .cells import KIND_OF, kernel_words
from .detail import command
from .pool import Pool
from .published import Cell
from .rows import Inputs

_CERTIFICATE = ("name", "cls", "n_certified", "headline")


def build(inputs: Inputs) -> dict[str, Any]:
    """{"records": id -> facts, "recipes": hash -> fields, "machines": [facts], "published": key -> facts}."""
    recipes: dict[str, Any] = {}
    machines: list[Any] = []
    records = {}
    for block in inputs.blocks:
        for pool in block.pools:
            records[pool.first.id[:12]] = _record(pool, recipes, machines)
    published = {cell.key: _published(cell) for cell in inputs.published if cell.has_accuracy or cell.seconds_per_epoch}
    return {"records": records, "recipes": recipes, "machines": machines, "published": published}


def dump(data: Any) -> str:
    """JSON that may stand inside a script element: no `<`, and nothing that ends a line in JavaScript."""
    text = json.dumps(data, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _record(pool: Pool, recipes: dict[str, Any], machines: list[Any]) -> dict[str, Any]:
    r = pool.first
    data, env = r.data, r.data["environment"]
    recipe = data["recipe"]
    recipes.setdefault(recipe["hash"][:12], {k: recipe["fields"][k] for k in sorted(recipe["fields"])})
    kernels = "; ".join(f"{k}: {v}" for k, v in kernel_words(env.get("kernels")).items())
    machine = {
        "device": env["device"], "threads": env["threads"], "python": env["python"], "torch": env["torch"],
        "numpy": env["numpy"], "platform": env["platform"], "kernels": kernels,
    }  # fmt: skip
    if machine not in machines:
        machines.append(machine)
    facts = {
        "id": r.id, "cell": r.cell_id, "title": pool.title,
        "setting": f"{styles.dataset_title(r.dataset)}, eps {r.eps}",
        "preset": r.preset, "n": r.n, "counts": {k: _count(pool.count(v)) for k, v in KIND_OF.items()},
        "intervals": {k: [round(x, 2) for x in pool.interval(v)] for k, v in KIND_OF.items()},
        "recipe": recipe["hash"][:12], "source": recipe["source"], "modified": r.is_modified,
        "certificates": [[c[k] for k in _CERTIFICATE] for c in data["evaluation"]["certificates"]],
        "attacks": [_attack(a) for a in data["evaluation"]["attacks"]]
        + [f"later {_attack(a)}" for later in pool.members[0].later for a in later.data["attacks"]],
        "data": data["data"]["checksum"][:16], "official": data["data"]["official"], "subset": r.is_subset,
        "machine": machines.index(machine), "commit": data["code"]["commit"], "dirty": r.is_dirty,
        "version": data["code"]["version"], "finished": data["finished"], "weights": data["weights_sha256"][:16],
        "train": fmt.seconds(r.train_s), "wall": fmt.seconds(data["wall_s"]), "command": command(r),
        "seeds": [[m.record.seed, m.record.short, round(float(m.percent("certified")), 4)] for m in pool.members],
        "contradicted": sum(m.n_contradicted for m in pool.members), "borderline": pool.total("n_borderline"),
    }  # fmt: skip
    if pool.broken:
        facts |= {"broken": pool.broken, "counts": {}, "intervals": {}}
    return facts


def _count(mean: Fraction) -> float:
    """A count, or the mean of several seeds' counts: the intervals beside it are of that mean."""
    return int(mean) if mean.denominator == 1 else round(float(mean), 1)


def _attack(attack: Any) -> str:
    surrogate = attack.get("surrogate")
    through = f" through p = {surrogate['p']}" if isinstance(surrogate, dict) and "p" in surrogate else ""
    parts = [f"{attack[k]} {k}" for k in ("steps", "restarts") if attack.get(k) is not None]
    parts += [f"step {attack['step']}"] if attack.get("step") is not None else []
    parts += [f"{attack['loss']} loss"] if attack.get("loss") else []
    return f"{attack['name']}{through}: {', '.join(parts)}; broke {attack['n_broken']} of {attack['n_attacked']}"


def _published(cell: Cell) -> dict[str, Any]:
    facts = {
        "title": styles.title(cell.method), "setting": f"{styles.dataset_title(cell.dataset)}, eps {cell.eps}",
        "paper": cell.source.paper, "venue": cell.source.short, "where": cell.where, "url": cell.source.url,
        "tag": cell.tag, "label": cell.label, "network": cell.architecture, "attack": cell.attack,
        "certifier": cell.certifier, "n": cell.n_test, "eps_used": cell.eps_used, "note": cell.note,
        "triple": [None if v is None else str(v) for v in (cell.clean, cell.robust, cell.certified)],
    }  # fmt: skip
    return {k: v for k, v in facts.items() if v is not None}


def short_id(record: Record) -> str:
    """The key of a record in the page's JSON."""
    return record.id[:12]
