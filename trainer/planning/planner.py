"""Works out a `Plan` from what the training command would be given. No DeepSpeed, no ranks, no device."""

from dataclasses import replace
from itertools import pairwise
from math import gcd
from pathlib import Path

import numpy as np

from trainer.data.order import LaneOrder, Positions
from trainer.data.shard_index import ShardIndex
from trainer.data.source import open_source, positions_of
from trainer.engine.ds_config import ZERO_DEFAULTS, ResolvedDsConfig
from trainer.freezing.schedule import saving
from trainer.model.flops import step_flops
from trainer.plan import plan_engine, plan_micro_batches, plan_schedule
from trainer.planning.memory import StepMemory, optimizer_bytes, step_memory
from trainer.planning.parameter_use import planned_use
from trainer.planning.report import DataFit, Phase, Plan, StageNeeds
from trainer.planning.traffic import step_traffic
from trainer.recipe import Recipe


def plan_on_paper(recipe: Recipe, ds_config: Path, world_size: int, *, samples: int, memory_budget: int | None) -> Plan:
    """The plan of a run on `world_size` ranks, over `samples` samples unless the recipe names data.

    `memory_budget`: bytes of device memory per rank to fill, None to leave that question out. Raises `BadInput` where
    training would."""
    ds = plan_engine(recipe, ds_config, world_size)
    positions, shards = _positions(recipe, world_size, samples)
    schedule = plan_schedule(recipe, positions.steps_per_epoch)
    micro_batches = plan_micro_batches(recipe, ds, world_size, schedule)
    planner = _Planner(recipe, ds, world_size, memory_budget)
    starts = sorted({0, *(step for step in schedule.freeze_steps() if step is not None)})
    phases = [
        planner.phase(schedule.frozen_units(first), first, end - first, micro_batches.at(first))
        for first, end in pairwise([*starts, schedule.total_steps])
    ]
    sent = sum(phase.steps * phase.traffic.sent_bytes for phase in phases)
    sent_without_freezing = schedule.total_steps * phases[0].traffic.sent_bytes
    config = recipe.model
    return Plan(
        world_size=world_size,
        global_batch=recipe.train.global_batch,
        zero_stage=ds.zero_stage,
        precision=ds.precision,
        offload_optimizer=ds.offload_optimizer,
        memory_budget=memory_budget,
        parameters=sum(planned_use(config, 0).sizes.values()),
        units=config.num_units,
        total_steps=schedule.total_steps,
        flops_saving=saving(schedule, [step_flops(config, units).total for units in range(config.num_units)]),
        traffic_saving=1 - sent / sent_without_freezing if sent_without_freezing else 0.0,
        data=_data_fit(positions, shards),
        phases=phases,
        zero_stages=planner.zero_stages(),
    )


def _positions(recipe: Recipe, world_size: int, samples: int) -> tuple[Positions, int | None]:
    """The order of the samples, and the number of shards where it is known."""
    seed, global_batch, data = recipe.train.seed, recipe.train.global_batch, recipe.data
    if data.path is not None:
        source = open_source(data, rank=0)
        shards = len(source.shard_lengths) if isinstance(source, ShardIndex) else None
        return positions_of(source, data, seed=seed, global_batch=global_batch, world_size=world_size), shards
    order = LaneOrder(np.array([samples]), seed=seed, global_batch=global_batch, lanes=data.lanes, window=data.window)
    order.require_ranks(world_size)
    return order, None


def _data_fit(positions: Positions, shards: int | None) -> DataFit:
    lanes = positions.lanes if isinstance(positions, LaneOrder) else None
    return DataFit(
        samples=positions.num_samples,
        shards=shards,
        steps_per_epoch=positions.steps_per_epoch,
        left_out=positions.num_samples % positions.global_batch,
        lanes=lanes,
        samples_per_lane=positions.num_samples // lanes if lanes else None,
        world_sizes=_divisors(gcd(positions.global_batch, lanes or positions.global_batch)),
    )


class _Planner:
    """The figures of one recipe, ds_config and number of ranks, by frozen count."""

    def __init__(self, recipe: Recipe, ds: ResolvedDsConfig, world_size: int, memory_budget: int | None):
        self._config, self._ds, self._world_size, self._budget = recipe.model, ds, world_size, memory_budget
        self._checkpointing = recipe.train.checkpoint_activations
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

    def zero_stages(self) -> list[StageNeeds]:
        """The four stages, but for those that the ds_config's other settings exclude."""
        excluded = self._ds.offload_optimizer or self._ds.precision == "fp16"
        use = planned_use(self._config, 0, checkpoint_activations=self._checkpointing)
        needs = []
        for stage in range(1 if excluded else 0, 4):
            ds = self._at_stage(stage)
            needs.append(
                StageNeeds(
                    zero_stage=stage,
                    optimizer_bytes=sum(optimizer_bytes(use.live_sizes, ds, self._world_size)),
                    memory_total=self._memory(ds, 0, ds.micro_batch).total,
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
