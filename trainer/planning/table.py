"""A plan as text for a terminal."""

from collections.abc import Sequence

from trainer.byte_sizes import show_bytes
from trainer.planning.report import Phase, Plan

PARTS = {
    "parameters": "params",
    "gradients": "grads",
    "masters": "masters",
    "moments": "moments",
    "activations": "activations",
    "working": "working",
    "buffers": "buffers",
}
"""Part of a rank's memory → heading of its column."""


def describe(plan: Plan) -> str:
    """The whole plan: how the run is laid out, then a table by frozen count and one by ZeRO stage."""
    first = plan.phases[0]
    offload = ", optimizer in host memory" if plan.offload_optimizer else ""
    lines = [
        f"model     {plan.parameters / 1e6:.1f} M parameters in {plan.units} units; "
        f"{first.flops_per_image / 1e9:.1f} GFLOP per image and step",
        f"engine    ZeRO-{plan.zero_stage}, {plan.precision}{offload}; {plan.world_size} ranks",
        f"batch     {plan.global_batch} images a step; {first.micro_batch} × {first.accumulation} on each rank",
        *_data(plan),
        *_freezing(plan),
        "",
        *_by_frozen_units(plan),
        "",
        *_by_zero_stage(plan),
    ]
    return "\n".join(lines)


def compare(plans: Sequence[Plan]) -> str:
    """One line for each plan, of what it needs before anything is frozen: the same run on several numbers of ranks."""
    header = ["ranks", "micro-batch", *PARTS.values(), "peak", "host", "sent"]
    budget = plans[0].memory_budget
    header += [] if budget is None else [f"fits {show_bytes(budget)}"]
    rows = [header]
    for plan in plans:
        first = plan.phases[0]
        row = [f"{plan.world_size:,}", f"{first.micro_batch} × {first.accumulation}", *_parts(first)]
        row += [show_bytes(first.memory.host), show_bytes(round(first.traffic.sent_bytes))]
        rows.append(row + ([] if budget is None else [_largest(first)]))
    return "\n".join(_aligned(rows))


def _data(plan: Plan) -> list[str]:
    data = plan.data
    where = "" if data.shards is None else f" in {data.shards:,} shards"
    lines = [
        f"data      {data.samples:,} samples{where}; {data.steps_per_epoch:,} steps an epoch, which leave out "
        f"{data.left_out:,}; {plan.total_steps:,} steps in all",
    ]
    if data.lanes is not None:
        on_each_rank = data.lanes // plan.world_size
        lines.append(f"lanes     {data.lanes}, {on_each_rank} on each rank, of {data.samples_per_lane:,} samples")
    sizes = " ".join(map(str, data.world_sizes))
    return [*lines, f"ranks     the run can start or continue on {sizes}"]


def _freezing(plan: Plan) -> list[str]:
    saved = f"saves {plan.flops_saving:.1%} of the run's FLOPs and {plan.traffic_saving:.1%} of the bytes sent"
    if not plan.freezes_by_measurement:
        return [f"freezing  {saved}"]
    return [
        f"freezing  by measurement, not known in advance; without any freeze to come the run {saved}",
        f"          measuring keeps {show_bytes(plan.reference_bytes)} in the host memory of rank 0",
    ]


def _by_frozen_units(plan: Plan) -> list[str]:
    header = ["frozen", "from step", "of run", "trained", "micro-batch", *PARTS.values(), "peak"]
    header += ["host"] if plan.offload_optimizer else []
    header += ["GFLOP/img", "cost", "sent"]
    header += [] if plan.memory_budget is None else [f"fits {show_bytes(plan.memory_budget)}"]
    return _aligned([header, *(_row(plan, phase) for phase in plan.phases)])


def _row(plan: Plan, phase: Phase) -> list[str]:
    row = [
        str(phase.frozen_units),
        f"{phase.first_step:,}",
        f"{phase.steps / plan.total_steps:.1%}",
        f"{phase.trained_parameters / 1e6:.1f} M",
        f"{phase.micro_batch} × {phase.accumulation}",
        *_parts(phase),
    ]
    row += [show_bytes(phase.memory.host)] if plan.offload_optimizer else []
    row += [
        f"{phase.flops_per_image / 1e9:.1f}",
        f"{phase.relative_cost:.3f}",
        show_bytes(round(phase.traffic.sent_bytes)),
    ]
    return row + ([] if plan.memory_budget is None else [_largest(phase)])


def _parts(phase: Phase) -> list[str]:
    return [*(show_bytes(getattr(phase.memory, part)) for part in PARTS), show_bytes(phase.memory_total)]


def _largest(phase: Phase) -> str:
    return "nothing" if phase.largest_micro_batch is None else str(phase.largest_micro_batch)


def _by_zero_stage(plan: Plan) -> list[str]:
    rows = [["ZeRO stage", "optimizer state", "peak", "sent"]]
    for needs in plan.zero_stages:
        mark = "this run: " if needs.zero_stage == plan.zero_stage else ""
        rows.append(
            [
                f"{mark}{needs.zero_stage}",
                show_bytes(needs.optimizer_bytes),
                show_bytes(needs.memory_total),
                show_bytes(round(needs.sent_bytes_per_step)),
            ]
        )
    return ["before the first freeze, with the other keys of this ds_config:", *_aligned(rows)]


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
