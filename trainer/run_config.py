"""What every run's recipe says of the run itself: how long, in which batches, and when to give up."""

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from trainer.section import Section

_STEP_RANGE = re.compile(r"(\d+)(?:-(\d+))?")
_DURATION = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m(?:in)?)?(?:(\d+)s)?")

MOST_PROFILED_STEPS = 100


def _seconds(value: Any) -> Any:
    """``3h50m`` → 13800; what is no text stays as it is."""
    if not isinstance(value, str):
        return value
    parts = _DURATION.fullmatch(value.replace(" ", ""))
    if not value or parts is None:
        raise ValueError(f"write a duration as 3h50m, 45m, 1d or a number of seconds, not {value!r}")
    return float(sum(int(part or 0) * unit for part, unit in zip(parts.groups(), (86400, 3600, 60, 1), strict=True)))


Seconds = Annotated[float, BeforeValidator(_seconds)]
"""A duration in seconds, which a recipe may also write as 1d, 3h50m, 45m or 30s."""


def _step_numbers(value: Any) -> list[int]:
    """``100-103`` → [100, 101, 102, 103]; a number stands for itself, a list may hold both, nothing is no step."""
    numbers: set[int] = set()
    for part in value if isinstance(value, list) else [] if value is None else [value]:
        found = _STEP_RANGE.fullmatch(str(part))
        if found is None:
            raise ValueError(f"write steps as 100, 100-103 or a list of both, not {part!r}")
        steps = range(int(found[1]), int(found[2] or found[1]) + 1)
        if not steps or steps[0] == 0:
            raise ValueError(f"{part} holds no step: the first is 1, and 100-103 goes up")
        numbers.update(steps[: MOST_PROFILED_STEPS + 1])
    if len(numbers) > MOST_PROFILED_STEPS:
        raise ValueError(f"name at most {MOST_PROFILED_STEPS} steps: no viewer opens a recording of more")
    return sorted(numbers)


Steps = Annotated[list[int], BeforeValidator(_step_numbers)]
"""Numbers of steps from 1, which a recipe may also write as 100-103."""


class RunConfig(Section):
    """The section `train`. Each kind of run says for itself how long it is and how large its batches are."""

    epochs: float = Field(gt=0, description="length of the run in passes over the data")
    global_batch: int = Field(ge=1, description="images per optimizer step over all ranks and micro-batches")
    micro_batch: int | None = Field(
        None, ge=1, description="images per rank per forward; empty = as the ds_config says, else no accumulation"
    )
    precision: Literal["fp32", "bf16", "fp16"] | None = Field(None, description="empty = as the ds_config says")
    seed: int = Field(0, ge=0, description="of the initial weights, the order of the data, the crops and the masks")
    stop_after: Seconds | None = Field(
        None,
        gt=0,
        description="save and leave with exit code 75 so long after the process started (3h50m, 45m, seconds): before "
        "a scheduler's limit, with room for one step and one save; empty = no limit",
    )
    max_bad_steps: int = Field(
        10,
        ge=1,
        description="steps in a row with a loss or gradient that is not finite, each of which is skipped, before the "
        "run ends with exit code 1 and leaves a report in RUN/inspection",
    )
    hang_timeout: Seconds = Field(
        1800,
        ge=0,
        description="when a rank has stood still for so long (30m, seconds), all tell where each of them is, and end "
        "with exit code 1; must be longer than any pause that is no hang, a save to slow storage for instance; "
        "0 = never",
    )
    profile: Steps = Field(
        [],
        description="steps (1 = the first) to record into RUN/profile, with torch's profiler and the memory over time: "
        "a number, 100-103, or a list of both; empty = none",
    )
