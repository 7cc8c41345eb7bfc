"""Works out a `Plan` from the settled parts of a run. No DeepSpeed, no ranks, no device."""

from dataclasses import dataclass, replace
from itertools import pairwise

from trainer.data.micro_batches import MicroBatches
from trainer.data.order import LaneOrder, Positions
from trainer.engine.ds_config import ZERO_DEFAULTS, ResolvedDsConfig
from trainer.freezing.schedule import FreezeSchedule, predicted_saving
from trainer.model.flops import step_flops
from trainer.planning.memory import StepMemory, accumulates_in, optimizer_bytes, reference_bytes, step_memory
from trainer.planning.parameter_use import planned_use
from trainer.planning.report import DataFit, Phase, Plan, StageNeeds
from trainer.planning.traffic import step_traffic
from trainer.recipe import Recipe


@dataclass(frozen=True)
class SettledRun:
    """What is known of a run once its recipe, ds_config, data and ranks are checked against each other."""

    recipe: Recipe
    ds: ResolvedDsConfig
    world_size: int
    positions: Positions
    shards: int | None
    """How many there are; None where the data are not there to be looked at."""
    schedule: FreezeSchedule
    micro_batches: MicroBatches
    world_sizes: list[int]
    """Numbers of ranks that the run can start or continue on."""


def plan_on_paper(run: SettledRun, *, memory_budget: int | None) -> Plan:
    """The plan of a run. `memory_budget`: bytes of device memory per rank to fill, None to leave that question out."""
    config, freezing, schedule = run.recipe.model, run.recipe.freezing, run.schedule
    planner = _Planner(run, memory_budget)
    starts = sorted({0, *(step for step in schedule.freeze_steps() if step is not None)})
    phases = [
        planner.phase(schedule.frozen_units(first), first, end - first, run.micro_batches.at(first))
        for first, end in pairwise([*starts, schedule.total_steps])
    ]
    sent = sum(phase.steps * phase.traffic.sent_bytes for phase in phases)
    sent_without_freezing = schedule.total_steps * planner.sent_without_freezing()
    return Plan(
        world_size=run.world_size,
        global_batch=run.positions.global_batch,
        zero_stage=run.ds.zero_stage,
        precision=run.ds.precision,
        offload_optimizer=run.ds.offload_optimizer,
        memory_budget=memory_budget,
        parameters=sum(planned_use(config, 0).sizes.values()),
        units=config.num_units,
        total_steps=schedule.total_steps,
        freezes_by_measurement=freezing.how == "plasticity",
        reference_bytes=reference_bytes(config, freezing.probe_images) if freezing.how == "plasticity" else 0,
        flops_saving=predicted_saving(schedule, config),
        traffic_saving=1 - sent / sent_without_freezing if sent_without_freezing else 0.0,
        data=_data_fit(run),
        phases=phases,
        zero_stages=planner.zero_stages(),
    )


def _data_fit(run: SettledRun) -> DataFit:
    positions = run.positions
    lanes = positions.lanes if isinstance(positions, LaneOrder) else None
    return DataFit(
        samples=positions.num_samples,
        shards=run.shards,
        steps_per_epoch=positions.steps_per_epoch,
        left_out=positions.num_samples % positions.global_batch,
        lanes=lanes,
        samples_per_lane=positions.num_samples // lanes if lanes else None,
        world_sizes=run.world_sizes,
    )


class _Planner:
    """The figures of one run, by frozen count."""

    def __init__(self, run: SettledRun, memory_budget: int | None):
        self._config, self._ds, self._world_size = run.recipe.model, run.ds, run.world_size
        self._budget = memory_budget
        self._initial_units = run.schedule.frozen_units(0)
        self._checkpointing, self._compiled = run.recipe.train.checkpoint_activations, run.recipe.train.compile
        self._whole_cost = step_flops(self._config, 0).total

    def phase(self, frozen_units: int, first_step: int, steps: int, micro_batch: int) -> Phase:
        ds = self._ds.with_micro_batch(micro_batch)
        use = planned_use(self._config, frozen_units, checkpoint_activations=self._checkpointing)
        memory = self._memory(ds, frozen_units, micro_batch)
        flops = step_flops(self._config, frozen_units).total
        return Phase(
            frozen_units=frozen_units,
            first_step=first_step,
            steps=steps,
            trained_parameters=sum(map(sum, use.live_sizes)),
            micro_batch=micro_batch,
            accumulation=ds.accumulation,
            memory=memory,
            memory_total=memory.total,
            optimizer_bytes=sum(optimizer_bytes(use.live_sizes, ds, self._world_size)),
            flops_per_image=flops,
            relative_cost=flops / self._whole_cost,
            traffic=step_traffic(use, ds, self._world_size),
            largest_micro_batch=self._largest_micro_batch(frozen_units),
        )

    def sent_without_freezing(self) -> float:
        """Bytes that a rank sends in a step where every unit trains."""
        use = planned_use(self._config, 0, checkpoint_activations=self._checkpointing)
        return step_traffic(use, self._ds, self._world_size).sent_bytes

    def zero_stages(self) -> list[StageNeeds]:
        """The four stages, but for those that the run's other settings exclude."""
        lowest = 1 if self._ds.offload_optimizer or self._ds.precision == "fp16" else 0
        if accumulates_in(self._ds) != self._ds.precision:
            lowest = 2
        highest = 2 if self._compiled else 3
        use = planned_use(self._config, self._initial_units, checkpoint_activations=self._checkpointing)
        needs = []
        for stage in range(lowest, highest + 1):
            ds = self._at_stage(stage)
            needs.append(
                StageNeeds(
                    zero_stage=stage,
                    optimizer_bytes=sum(optimizer_bytes(use.live_sizes, ds, self._world_size)),
                    memory_total=self._memory(ds, self._initial_units, ds.micro_batch).total,
                    sent_bytes_per_step=step_traffic(use, ds, self._world_size).sent_bytes,
                )
            )
        return needs

    def _at_stage(self, stage: int) -> ResolvedDsConfig:
        zero = ZERO_DEFAULTS | self._ds.config.get("zero_optimization", {}) | {"stage": stage}
        return replace(self._ds, zero_stage=stage, config=self._ds.config | {"zero_optimization": zero})

    def _largest_micro_batch(self, frozen_units: int) -> int | None:
        if self._budget is None:
            return None
        share = self._ds.micro_batch * self._ds.accumulation
        fitting = (size for size in reversed(_divisors(share)) if self._fits(frozen_units, size))
        return next(fitting, None)

    def _fits(self, frozen_units: int, micro_batch: int) -> bool:
        assert self._budget is not None
        return self._memory(self._ds, frozen_units, micro_batch).total <= self._budget

    def _memory(self, ds: ResolvedDsConfig, frozen_units: int, micro_batch: int) -> StepMemory:
        return step_memory(
            self._config,
            ds,
            self._world_size,
            frozen_units,
            micro_batch,
            checkpoint_activations=self._checkpointing,
        )


def _divisors(number: int) -> list[int]:
    return [size for size in range(1, number + 1) if number % size == 0]
