"""A plan drawn over the steps of its run."""

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from trainer.errors import BadInput
from trainer.planning.report import Plan

PARTS = ("parameters", "early_gradients", "masters", "moments", "buffers", "activations", "working")
"""As the last backward pass of a step begins."""
ON_THE_HOST = ("masters", "moments")


def draw_plan(plan: Plan, path: Path) -> None:
    """Memory of a rank by part and at its peak, FLOPs of an image, bytes sent in a step, from one freeze to the next.

    Raises `BadInput` if the file cannot be written."""
    edges = [*(phase.first_step for phase in plan.phases), plan.total_steps]
    figure = Figure(figsize=(10, 8), layout="constrained")
    memory, flops, traffic = figure.subplots(3, 1, sharex=True, height_ratios=[3, 1.2, 1.2])

    parts = [part for part in PARTS if not (plan.offload_optimizer and part in ON_THE_HOST)]
    stacked = np.cumsum([[getattr(phase.memory, part) / 1e9 for phase in plan.phases] for part in parts], axis=0)
    colours = matplotlib.colormaps["viridis"](np.linspace(0.05, 0.95, len(parts)))
    floor = np.zeros(len(plan.phases))
    for part, top, colour in zip(parts, stacked, colours, strict=True):
        memory.stairs(top, edges, baseline=floor, fill=True, color=colour, label=part.replace("_", " "))
        floor = top
    # Above the parts where a reduction or the update needs more.
    peaks = [phase.memory_total / 1e9 for phase in plan.phases]
    memory.stairs(peaks, edges, baseline=None, color="black", lw=1.5, label="peak")
    budget = None if plan.memory_budget is None else plan.memory_budget / 1e9
    if budget is not None and budget < 2 * max(peaks):  # a line far above would flatten the rest
        memory.axhline(budget, color="tab:red", lw=1, ls="--", label="budget")
    memory.set_ylabel("memory of a rank, GB")
    memory.set_title(
        f"{plan.parameters / 1e6:.0f} M parameters, ZeRO-{plan.zero_stage}, {plan.world_size} ranks", loc="left"
    )
    memory.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, reverse=True)

    flops.stairs([phase.flops_per_image / 1e9 for phase in plan.phases], edges, color="tab:blue", baseline=None)
    flops.set_ylabel("GFLOP per image")
    traffic.stairs([phase.traffic.sent_bytes / 1e9 for phase in plan.phases], edges, color="tab:green", baseline=None)
    traffic.set_ylabel("GB sent per step")
    traffic.set_xlabel("optimizer step")
    for axis in (memory, flops, traffic):
        axis.set_ylim(bottom=0)
        axis.spines[["top", "right"]].set_visible(False)
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    try:
        figure.savefig(path, dpi=110)
    except OSError as error:
        raise BadInput(f"--picture {path}: cannot be written ({error.strerror}): give another file") from None
    except ValueError as error:  # a file name whose ending is no format of matplotlib's
        raise BadInput(f"--picture {path}: {str(error).splitlines()[0]}: end the name in .png") from None
