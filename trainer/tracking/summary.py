"""The printed end of a run, made from its events alone: `summarise(read_metrics(run))`."""

from statistics import median
from typing import Any


def summarise(events: list[dict[str, Any]]) -> str:
    """Loss from → to, each freeze with what it gave back, and the step time before the first and after the last."""
    steps = [event for event in events if event["event"] == "step"]
    freezes = [event for event in events if event["event"] == "freeze"]
    if not steps:
        return "no step was logged"
    first, last = steps[0], steps[-1]
    lines = [f"{last['step']:,} steps, {last['samples']:,} images, {last['epoch']:.2f} epochs"]
    lines += ["", f"loss {first['loss']:.4f} → {last['loss']:.4f}, summed over the live stages; by stage:"]
    for stage in range(len(first["loss_stages"])):
        seen = [(event["step"], event["loss_stages"][stage]) for event in steps]
        seen = [(at, value) for at, value in seen if value is not None]
        if seen:
            end = "the end" if seen[-1][0] == last["step"] else f"step {seen[-1][0]}, when its block froze"
            lines.append(f"  stage {stage}: {seen[0][1]:.4f} → {seen[-1][1]:.4f} at {end}")
    if freezes:
        lines += ["", "freezes"]
        lines += ["    step  units           stages removed  optimizer bytes per rank before → after       seconds"]
        lines += [_freeze_line(event) for event in freezes]
        lines += ["", *_step_times(steps, freezes)]
    return "\n".join(lines)


def _freeze_line(event: dict[str, Any]) -> str:
    units = ", ".join("embedding" if unit == 0 else f"block {unit}" for unit in event["units"])
    stages = ", ".join(map(str, event["stages_removed"])) or "-"
    before, after = event["optimizer_bytes_before"], event["optimizer_bytes_after"]
    return (
        f"{event['step']:>8}  {units:<14}  {stages:<14}  {_bytes(before)} → {_bytes(after)}  {event['seconds']:>8.3f}"
    )


def _bytes(by_rank: list[int]) -> str:
    low, high = min(by_rank), max(by_rank)
    return f"{high:>15,}" if low == high else f"{low:,}–{high:,}"


def _step_times(steps: list[dict], freezes: list[dict]) -> list[str]:
    """The log line of the interval that a freeze falls into mixes both, so only whole intervals count."""
    frozen_at_end = freezes[-1]["step"]
    before = [e["step_seconds"] for e in steps if e["step"] <= freezes[0]["step"]]
    starts = [0, *[e["step"] for e in steps[:-1]]]
    after = [e["step_seconds"] for e, start in zip(steps, starts, strict=True) if start >= frozen_at_end]
    if not (before and after):
        return ["step time: too few log lines before the first or after the last freeze"]
    a, b = median(before), median(after)
    return [
        f"step time before the first freeze {a:.3f} s, after the last {b:.3f} s ({b / a:.0%})",
        f"optimizer bytes per rank {_bytes(freezes[0]['optimizer_bytes_before']).strip()} → "
        f"{_bytes(freezes[-1]['optimizer_bytes_after']).strip()}",
    ]
