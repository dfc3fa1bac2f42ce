"""Synthetic run directories: invented numbers in the real layout, to develop and test against."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np

# task -> metric, direction, where AdamW ends, what a unit of noise is, steps per epoch, epochs
TASKS = {
    "etth1": ("MSE", "minimize", 0.0064, 0.0003, 72, 8),
    "wikitext2": ("perplexity", "minimize", 127.0, 1.5, 60, 10),
    "multi30k": ("perplexity", "minimize", 9.1, 0.12, 80, 6),
    "cifar10": ("accuracy, %", "maximize", 68.0, 0.8, 90, 6),
    "imdb": ("accuracy, %", "maximize", 81.0, 1.0, 90, 5),
    "digits": ("accuracy, %", "maximize", 97.0, 0.4, 10, 30),
}
# arm -> effect in units of noise (positive is better), seconds per step
ARMS = {
    "adamw": (0.0, 0.0200),
    "adamw-tuned": (1.0, 0.0200),
    "adamw-cosine": (1.4, 0.0201),
    "adamw-matched": (0.2, 0.0200),
    "metaadamw": (2.0, 0.0207),
    "metaadamw-two-horizons": (2.0, 0.0207),
    "metaadamw-two-horizons-cosine": (1.4, 0.0207),
    "metaadamw-redistribution-cosine": (1.4, 0.0207),
    "adamw-tuned-cosine": (1.4, 0.0201),
    "metaadamw-online": (1.2, 0.0206),
    "metaadamw-paper": (-0.4, 0.0290),
    "metaadamw-random": (-0.6, 0.0250),
    "schedulefree": (0.8, 0.0202),
    "muon": (1.8, 0.0320),
}
GROUPS = ("embedding.middle.weight", "attention.shallow.weight", "attention.deep.weight",
          "feed_forward.deep.weight", "layer_norm.deep.bias", "other.middle.weight")  # fmt: skip


def write_run(
    root: Path,
    task: str,
    arm: str,
    seed: int,
    *,
    ablation: str | None = None,
    protocol: str = "clean",
    size: str = "small",
    max_steps: int | None = None,
    shift: float = 0.0,
    lr: float = 1e-3,
    epochs: int | None = None,
    place: str | None = None,
) -> Path:
    """Write one finished run; ``shift`` is a gain in units of noise on top of the arm's own."""
    metric_name, direction, level, noise, steps_per_epoch, max_epochs = TASKS[task]
    effect, per_step = ARMS[arm]
    arm_noise = np.random.default_rng(
        [seed, *task.encode(), *arm.encode(), *(ablation or "").encode()]
    )
    seed_noise = np.random.default_rng([seed, *task.encode()])
    sign = 1 if direction == "maximize" else -1
    end = level + sign * noise * (effect + shift + seed_noise.normal() + 0.5 * arm_noise.normal())
    epochs = epochs or max_epochs
    stopped = bool(arm_noise.random() < 0.3) and epochs > 3
    epochs -= stopped
    curve = [
        end - sign * 3 * noise * (math.exp(-1.1 * epoch) * 8) + 0.15 * noise * arm_noise.normal()
        for epoch in range(1, epochs + 1)
    ]
    best = max(range(epochs), key=lambda index: sign * curve[index])
    steps = steps_per_epoch * epochs
    train = per_step * steps * (1 + 0.02 * arm_noise.normal())
    meta = 0.1 * train if arm.startswith("metaadamw") and "online" not in arm else 0.0

    variant = arm if ablation is None else f"{arm}+{ablation}"
    directory = root / (place or f"{protocol}-{size}/{task}/{variant}/seed{seed}")
    directory.mkdir(parents=True)
    common = {
        "task": task,
        "arm": arm,
        "ablation": ablation,
        "seed": seed,
        "protocol": protocol,
        "size": size,
    }
    key = f"{task}-{arm}-{ablation}-{seed}-{lr}"
    config = {**common, "lr": lr, "weight_decay": 0.01, "max_steps": max_steps, "key": key}
    config |= {"device": "cpu", "threads": 1, "steps_per_epoch": steps_per_epoch}
    environment = {"python": "3.12", "torch": "2.13.0", "metaadamw": "0.1", "cpu": "Synthetic CPU"}
    summary = {
        **common,
        "status": "finished",
        "error": None,
        "best_metric": curve[best],
        "best_epoch": best + 1,
        "best_step": (best + 1) * steps_per_epoch,
        "best_loss": 1.0,
        "final_loss": 1.0,
        "final_metric": curve[-1],
        "test_loss": 1.0 if protocol == "clean" else None,
        "test_metric": curve[best] - sign * 0.1 * noise if protocol == "clean" else None,
        "epochs": epochs,
        "steps": steps,
        "stopped_early": stopped,
        "parameters": 12345,
        "steps_per_epoch": steps_per_epoch,
        "metric_name": metric_name,
        "metric_direction": direction,
        "seconds": {
            "train": train,
            "optimizer_step": 0.3 * train,
            "meta": meta,
            "evaluation": 0.1 * train,
            "logging": 0.01 * train,
            "total": 1.12 * train + meta,
        },
    }
    lines = []
    for epoch, value in enumerate(curve, start=1):
        step = epoch * steps_per_epoch
        lines.append({"kind": "train", "step": step, "epoch": epoch, "loss": 1.0})
        lines.append(
            {
                "kind": "evaluation",
                "step": step,
                "epoch": epoch,
                "split": "validation",
                "loss": 1.0,
                "metric": value,
            }
        )
    write_json(directory / "config.json", config)
    write_json(directory / "environment.json", {**environment, "threads": 1})
    write_json(directory / "summary.json", summary)
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (directory / "metrics.jsonl").write_text(text, encoding="utf-8")
    if arm.startswith("metaadamw"):
        _write_modulation(directory / "modulation.csv", steps, arm_noise)
    return directory


def write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


def change_json(path: Path, **changes: object) -> None:
    write_json(path, {**json.loads(path.read_text(encoding="utf-8")), **changes})


def _write_modulation(path: Path, steps: int, generator: np.random.Generator) -> None:
    columns = [f"{group}/{part}" for group in GROUPS for part in ("alpha", "beta")]
    lines = [",".join(["step", *columns])]
    slopes = generator.normal(0.3, 0.3, len(columns)) + np.linspace(-0.6, 0.6, len(columns))
    for step in range(2, steps + 1, 2):
        values = 1 + 0.8 * np.tanh(slopes * step / steps)
        lines.append(",".join(map(str, (step, *values.tolist()))))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_everything(root: Path, seeds: int = 5) -> None:
    """Several tasks, arms, seeds, settings and ablations, with everything that can go wrong."""
    for task in TASKS:
        for arm in ARMS:
            if (task, arm) not in {("imdb", "muon"), ("digits", "metaadamw-paper")}:
                # A task that MetaAdamW loses.
                shift = -3.5 if (task, arm) == ("cifar10", "metaadamw") else 0.0
                for seed in range(seeds):
                    write_run(root, task, arm, seed, shift=shift)
    ablations = {"features-enhanced": -1.5, "objective-gradient": -0.3, "gating-on": 0.1,
                 "frequency-10": 0.3, "encoder-8x16": -0.2, "mine": 0.0}  # fmt: skip
    for task in ("etth1", "wikitext2"):
        for ablation, shift in ablations.items():
            for seed in range(seeds - 1):
                write_run(root, task, "metaadamw", seed, ablation=ablation, shift=shift)
    for task in ("etth1", "wikitext2", "cifar10"):
        for arm in ("adamw", "metaadamw", "metaadamw-paper"):
            for seed in range(3):
                write_run(root, task, arm, seed, protocol="paper", size="full")
    for factor, loss in {0.25: 3.0, 0.5: 1.0, 2.0: 0.5, 4.0: 4.0}.items():
        for arm in ("adamw", "metaadamw"):
            for seed in range(3):
                shift = -loss if arm == "adamw" else -0.3 * loss
                place = f"rates/etth1/{arm}/{factor:g}/seed{seed}"
                write_run(root, "etth1", arm, seed, shift=shift, lr=factor * 1e-3, place=place)
    # The runs that tune an arm lie beside its runs.
    for lr in (3e-4, 1e-3):
        place = f"clean-small/etth1/adamw-tuned/tuning/lr{lr:g}-wd0.01"
        write_run(root, "etth1", "adamw", 1000, lr=lr, place=place)
    break_runs(root)


def break_runs(root: Path) -> None:
    """Failed, diverged, unfinished and corrupt runs, one of each."""
    small = root / "clean-small"
    failed = small / "multi30k" / "muon" / "seed0" / "summary.json"
    change_json(failed, status="failed", error="FloatingPointError: loss is nan at step 31")
    change_json(small / "multi30k" / "muon" / "seed1" / "summary.json", best_metric=None)
    (small / "wikitext2" / "adamw" / "seed4" / "summary.json").unlink()
    metrics = small / "imdb" / "schedulefree" / "seed2" / "metrics.jsonl"
    metrics.write_text(metrics.read_text(encoding="utf-8")[:-20], encoding="utf-8")
