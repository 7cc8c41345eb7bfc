"""`python -m tests.freezing.documented` draws docs/freezing.png: the learning rate of every unit, policy by policy."""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from trainer.freezing.config import FreezingConfig
from trainer.freezing.plasticity import PlasticityPolicy
from trainer.freezing.schedule import FreezeSchedule

PICTURE = Path(__file__).parents[2] / "docs" / "freezing.png"
STEPS, WARMUP = 400, 40
POLICIES: dict[str, dict[str, Any]] = {
    "none": {"how": "none"},
    "cubic, t0 = 0.8, scaled (as published)": {"how": "cubic"},
    "cubic, t0 = 0.8, not scaled": {"how": "cubic", "scale_lr": False},
    "cubic, scaled, warmup: per_unit": {"how": "cubic", "warmup": "per_unit"},
    "steps: [0.5, 0.5, 0.5, 0.75, 0.75, 0.75], not scaled": {
        "how": "steps", "steps": [0.5, 0.5, 0.5, 0.75, 0.75, 0.75], "scale_lr": False},
    "plasticity (three units made to stop changing)": {
        "how": "plasticity", "probe_every": 20, "cool_down": 20, "patience": 2},
}  # fmt: skip


def rates(options: dict[str, Any]) -> np.ndarray:
    """Learning rates over the peak, [steps, units], NaN once frozen."""
    schedule = FreezeSchedule(FreezingConfig.model_validate(options), 12, STEPS, WARMUP, lr=1.0, min_lr=0.01)
    policy = PlasticityPolicy(schedule) if options["how"] == "plasticity" else schedule
    rows = []
    for step in range(STEPS):
        if isinstance(policy, PlasticityPolicy) and policy.is_probed(step):
            policy.observe(step, [0.0 if unit < 3 and step > 120 + 40 * unit else 1.0 for unit in range(13)])
        rows.append([np.nan if rate is None else rate for rate in policy.learning_rates(step)])
    return np.array(rows)


def draw(path: Path) -> None:
    figure = Figure(figsize=(11, 6), layout="constrained")
    axes = figure.subplots(2, 3, sharex=True, sharey=True)
    colours = matplotlib.colormaps["viridis"](np.linspace(0, 0.95, 13))
    for axis, (title, options) in zip(axes.flat, POLICIES.items(), strict=True):
        for unit, curve in enumerate(rates(options).T):
            axis.plot(curve, color=colours[unit], lw=1.2, label=f"unit {unit}" if unit in (0, 6, 12) else None)
        axis.set_title(title, fontsize=9)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0, 0].legend(frameon=False, fontsize=8)
    figure.supxlabel("optimizer step")
    figure.supylabel("learning rate over the peak")
    figure.savefig(path, dpi=85)


if __name__ == "__main__":
    draw(PICTURE)
