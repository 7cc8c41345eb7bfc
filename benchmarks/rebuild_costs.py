"""What `benchmarks.rebuild` measures, on the ranks: the seconds and the bytes of every freeze of a run."""

import gc
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.distributed as dist

from benchmarks.freezing_cases import Case, random_batch, resolved_config, timed_step
from tests.engine.allocations import Allocations
from tests.engine.cases import close
from tests.engine.memory import expected_optimizer_bytes
from tests.engine.rebuilds import largest_unit_state, unit_sizes
from trainer.data.micro_batches import MicroBatches
from trainer.engine.config import OptimizerConfig
from trainer.engine.ds_config import Precision
from trainer.engine.engine import FreezingEngine
from trainer.engine.frozen import FrozenArchive
from trainer.freezing.controller import FreezeController
from trainer.model.localmim import LocalMIM

SMALL_BATCH = 2
"""Images per rank in the steps that show what a freeze costs the step after it: that does not grow with the batch."""
WARM_UP, STEPS = 2, 3
"""Steps of the case's micro-batch before any freeze: thrown away (the first take their memory, and ZeRO-3 learns the
order of the modules), and timed."""


@dataclass
class Costs:
    """One rank's figures. By freeze: seconds of the freeze, seconds by which the next step is slower than the one after
    it (small batch), bytes by which the freeze raised memory, bytes of optimizer state that it gave back and should.

    `step`: seconds of a step of the case's micro-batch before any freeze, the median of `STEPS`; `unit_state`: bytes of
    the largest unit's weights, masters and moments; `state`: bytes of all masters and moments before."""

    step: float = 0.0
    unit_state: int = 0
    state: int = 0
    freezes: list[float] = field(default_factory=list)
    next_steps: list[float] = field(default_factory=list)
    rises: list[int] = field(default_factory=list)
    given_back: list[int] = field(default_factory=list)
    due: list[int] = field(default_factory=list)


def costs_of_freezes(case: Case, zero_stage: int, precision: Precision) -> Costs:
    """Runs on every rank. Two engines, one after the other, since watching memory takes time of its own.

    Steps are taken under fp32 alone: a processor without bf16 instructions takes minutes for one."""
    costs = Costs()
    with _engine(case, zero_stage, precision) as engine:
        if precision == "fp32":
            steps = [_step_seconds(engine, case.micro_batch) for _ in range(WARM_UP + STEPS)]
            costs.step = statistics.median(steps[WARM_UP:])
        for units in _freeze_times(case):
            seconds, _ = _freeze(case, engine, units)
            costs.freezes.append(seconds)
            if precision == "fp32":
                first, second = (_step_seconds(engine, SMALL_BATCH) for _ in range(2))
                costs.next_steps.append(first - second)
    with _engine(case, zero_stage, precision) as engine:
        costs.unit_state, costs.state = largest_unit_state(engine), engine.optimizer_bytes()
        for units in _freeze_times(case):
            frozen = [sizes for unit, sizes in unit_sizes(engine) if unit < units]
            with Allocations() as allocations:
                _, given_back = _freeze(case, engine, units)
            costs.rises.append(allocations.rise)
            costs.given_back.append(given_back)
            costs.due.append(expected_optimizer_bytes(frozen, zero_stage=zero_stage, world_size=dist.get_world_size()))
    return costs


def _freeze_times(case: Case) -> range:
    return range(1, case.model.num_units)


@contextmanager
def _engine(case: Case, zero_stage: int, precision: Precision) -> Iterator[FreezingEngine]:
    """An engine with moments, as after its first update."""
    torch.manual_seed(0)
    resolved = resolved_config(case.micro_batch, zero_stage, dist.get_world_size(), precision)
    engine = FreezingEngine(LocalMIM(case.model), resolved, OptimizerConfig())
    engine.load_resume_state({**engine.resume_state(), "optimizer_steps": 1})
    engine.set_learning_rates([1e-4] * case.model.num_units)
    try:
        yield engine
    finally:
        close(engine)
        del engine
        gc.collect()


def _freeze(case: Case, engine: FreezingEngine, units: int) -> tuple[float, int]:
    """Freeze up to `units` as a training does, the fp32 weights archived. Seconds; optimizer bytes given back."""
    step = case.schedule.freeze_steps()[units - 1]
    assert step is not None
    micro_batches = MicroBatches.always(engine.resolved.micro_batch)
    controller = FreezeController(case.schedule, micro_batches, engine, FrozenArchive())
    dist.barrier()
    start = time.perf_counter()
    report = controller.freeze(step)
    seconds = time.perf_counter() - start
    rank = dist.get_rank()
    return seconds, report.optimizer_bytes_before[rank] - report.optimizer_bytes_after[rank]


def _step_seconds(engine: FreezingEngine, images: int) -> float:
    dist.barrier()
    return sum(timed_step(engine, *random_batch(engine.model.config, images), time.perf_counter))
