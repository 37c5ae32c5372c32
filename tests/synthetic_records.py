"""Invented records for tests: plausible arrays, every field of the schema, no training. Never committed as results."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from bench import record
from bench.eps import Eps

TITLES = {
    "linf_dist": "l_inf-dist net",
    "linf_dist_v2": "l_inf-dist net, improved",
    "linf_dist_mlp": "l_inf-dist net + MLP",
    "ibp": "IBP",
    "crown_ibp": "CROWN-IBP",
    "groupsort": "GroupSort",
    "standard": "Standard training",
    "pgd": "PGD training",
}
DATA_SEED = 20210719  # every method sees the same invented examples, so records can be paired


def sha(*parts: object) -> str:
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()


def example_arrays(
    *, n: int, dataset: str, method: str, seed: int, eps: str, skill: float = 1.0, reach: float = 0.05
) -> dict[str, np.ndarray]:
    """Examples of shared difficulty; `skill` moves the clean accuracy (1.0: 84 %), `reach` the mean radius."""
    difficulty = np.random.default_rng([DATA_SEED, int(sha(dataset)[:8], 16)]).normal(size=n)
    own = np.random.default_rng(int(sha(method, seed, dataset)[:15], 16))
    margin = skill - difficulty + 0.3 * own.normal(size=n)
    label = own.integers(0, 10, n)
    correct = margin > 0
    radius = np.where(correct, margin * reach, 0.0)
    radius = np.nextafter(radius.astype(np.float32), np.float32(0))
    certified = correct & (radius >= np.float32(float(Eps(eps))))
    robust = certified | (correct & (radius * 1.3 >= float(Eps(eps))))
    survived_pgd = robust | (own.random(n) < 0.02)
    return {
        "label": label.astype(np.int16),
        "index": np.arange(n, dtype=np.int32),
        "pred": np.where(correct, label, (label + 1) % 10).astype(np.int16),
        "margin": margin,
        "radius": radius,
        "correct": correct,
        "robust": robust,
        "certified": certified,
        "bound_interval": np.where(certified, np.abs(margin) + 1e-9, -np.abs(margin)),
        "bound_lipschitz": np.where(certified, 0.5 * np.abs(margin) + 1e-9, -np.abs(margin)),
        "survived_pgd": survived_pgd,
        "survived_pgd_p30": robust | ~survived_pgd,
    }


def payload(arrays: dict[str, np.ndarray], **cell: Any) -> dict[str, Any]:
    """A payload that agrees with the arrays. Cell keys, plus device, cls, dirty, n_test, subset, epochs, overrides."""
    method, dataset = cell.get("method", "linf_dist"), cell.get("dataset", "mnist")
    eps, preset, seed = cell.get("eps", "0.1"), cell.get("preset", "paper"), cell.get("seed", 0)
    overrides = cell.get("overrides", {})
    n = len(arrays["label"])
    certified, robust, correct = (int(arrays[k].sum()) for k in ("certified", "robust", "correct"))
    epochs = cell.get("epochs", 6)
    device = cell.get("device", "CPU: Example 3000 (AVX2)")
    key = (method, dataset, eps, preset, seed, sorted(overrides.items()), cell.get("split", "test"), n)
    train_s = cell.get("train_s", 61.5)
    recipe_fields = {"epochs": epochs, "lr": 0.03, "width": 5120, "p_start": 8.0, "dataset": dataset, "eps": eps}
    steps = [i / max(1, epochs - 1) for i in range(epochs)]
    return {
        "cell": {
            "method": method, "dataset": dataset, "eps": eps, "preset": preset, "seed": seed,
            "overrides": overrides, "split": cell.get("split", "test"), "id": sha(*key)[:12],
        },
        "recipe": {
            "fields": recipe_fields, "source": "Table 1 of the paper", "hash": sha("recipe", *key[:4]),
            "modified": bool(overrides),
        },
        "method": {
            "name": method, "title": cell.get("title", TITLES.get(method, method)), "paper": "zhang2021linf",
            "norm": "linf",
        },
        "data": {
            "name": dataset, "checksum": cell.get("checksum", sha("data", dataset)), "official": True,
            "order": "official", "subset": cell.get("subset"), "n_train": 60000, "n_val": 5000,
            "n_test": cell.get("n_test", n), "val_index_sha256": sha("val", dataset),
            "test_index_sha256": sha("test", dataset, n),
        },
        "environment": {
            "python": "3.11.2", "torch": "2.13.0", "numpy": "2.4.6", "platform": "linux-x86_64", "device": device,
            "device_type": "cuda" if "NVIDIA" in device else "cpu", "threads": 2, "kernels": {"dist": "reference"},
            "cpu_flags": ["avx2"], "switches": {"tf32": False},
        },
        "code": {
            "version": "0.1.0", "commit": "0123456789abcdef0123456789abcdef01234567", "dirty": cell.get("dirty", False),
            "source_sha256": sha("source"),
        },
        "weights_sha256": sha("weights", *key),
        "training": {
            "epochs": epochs, "iterations": epochs * 469, "train_s": train_s, "s_per_epoch": train_s / max(1, epochs),
            "history": [
                {
                    "epoch": i, "loss": 2.0 - t, "lr": 0.03 * (1 - t), "eps": float(Eps(eps)) * min(1.0, 2 * t),
                    "p": "inf" if i == epochs - 1 else 8.0 * 125**t, "train_acc": 60 + 35 * t, "s": 10.0,
                }
                for i, t in enumerate(steps)
            ],
            "peak_memory_bytes": 734003200, "resumes": 0,
        },
        "evaluation": {
            "n": n, "n_correct": correct, "n_robust": robust, "n_certified": certified,
            "n_contradicted": cell.get("n_contradicted", 0), "n_borderline": cell.get("n_borderline", 0),
            "certificates": cell.get("certificates") or [
                {"name": "interval", "cls": cell.get("cls", "D"), "n_certified": certified, "seconds": 1.5,
                 "headline": True},
                {"name": "lipschitz", "cls": "F32", "n_certified": certified, "seconds": 0.5, "headline": False},
            ],
            "attacks": [
                {"name": "pgd", "steps": 40, "restarts": 2, "step": 0.25, "loss": "margin", "surrogate": None,
                 "seed": 1, "n_attacked": correct, "n_broken": int((correct - arrays["survived_pgd"].sum()).clip(0)),
                 "seconds": 12.0},
                {"name": "pgd_p30", "steps": 20, "restarts": 1, "step": 0.25, "loss": "margin",
                 "surrogate": {"p": 30}, "seed": 2, "n_attacked": correct, "n_broken": 3, "seconds": 9.0},
            ],
            "eps": eps, "eps_float32": Eps(eps).float32_up, "ftz": False, "notes": [],
        },
        "cost": {
            "params": 130_000_000, "flops": 82_700_000, "train_s": train_s, "s_per_epoch": train_s / max(1, epochs),
            "forward_ms": 0.4, "certify_ms": 1.25, "attack_s": 21.0, "peak_memory_bytes": 734003200,
        },
        "finished": cell.get("finished", "2026-01-31"),
        "wall_s": train_s + 30.0,
    }  # fmt: skip


def make(
    results_dir: Path, *, n: int = 400, skill: float = 1.0, reach: float = 0.05, noise: str = "", **cell: Any
) -> record.Record:
    """Write one invented record and return it. `noise`: take the luck of another method."""
    arrays = example_arrays(
        n=n,
        dataset=cell.get("dataset", "mnist"),
        method=noise or cell.get("method", "linf_dist"),
        seed=cell.get("seed", 0),
        eps=cell.get("eps", "0.1"),
        skill=skill,
        reach=reach,
    )
    return record.write(results_dir, payload(arrays, **cell), arrays)
