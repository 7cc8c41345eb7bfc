"""What a freeze needs while it rebuilds the optimizer: runs on the ranks, returns plain data for the tests to judge."""

import logging
from dataclasses import dataclass

import torch
import torch.distributed as dist

from tests.engine.allocations import Allocations
from tests.engine.cases import Setting, engine_for, new_model, train_step
from tests.engine.freezes import rebuilding_changes_nothing
from tests.engine.memory import expected_optimizer_bytes
from trainer.engine.engine import FreezingEngine
from trainer.engine.internals import rebuild

DEPTH = 12
FREEZES = 3


@dataclass(frozen=True)
class FreezeMemory:
    """Bytes on one rank: how far a freeze raised what is allocated, how much less there is right after it, how much
    optimizer state it gave back, and the largest state of a unit: weights, masters and moments."""

    rise: int
    freed: int
    optimizer_bytes: int
    unit_state: int


def memory_of_freezes(setting: Setting) -> list[FreezeMemory]:
    """Freeze the embedding and two blocks, one at a time, with a step before each; no collector runs meanwhile."""
    found = []
    with engine_for(new_model(depth=DEPTH), setting) as engine:
        for frozen_units in range(1, FREEZES + 1):
            train_step(engine, frozen_units)
            state, unit_state = engine.optimizer_bytes(), largest_unit_state(engine)
            with Allocations() as allocations:
                engine.freeze(frozen_units)
            freed = allocations.before - allocations.now
            found.append(FreezeMemory(allocations.rise, freed, state - engine.optimizer_bytes(), unit_state))
    return found


def unit_sizes(engine: FreezingEngine) -> list[tuple[int, tuple[int, ...]]]:
    """(unit, parameter sizes) of each group that still trains."""
    return [(group.unit, group.sizes) for group in engine._groups]


def largest_unit_state(engine: FreezingEngine) -> int:
    """Weights (a share of them at stage 3), masters and moments of the largest live unit, in bytes of this rank."""
    world_size, stage = dist.get_world_size(), engine.resolved.zero_stage
    by_unit: dict[int, list[tuple[int, ...]]] = {}
    for unit, sizes in unit_sizes(engine):
        by_unit.setdefault(unit, []).append(sizes)
    weight_bytes = (4 if engine.resolved.precision == "fp32" else 2) / (world_size if stage == 3 else 1)
    return max(
        int(weight_bytes * sum(sum(sizes) for sizes in groups))
        + expected_optimizer_bytes(groups, zero_stage=stage, world_size=world_size)
        for groups in by_unit.values()
    )


def rebuilding_without_help_changes_nothing(setting: Setting) -> tuple[bool, list[str]]:
    """`rebuilding_changes_nothing` with constructors that put their new masters elsewhere than expected, and what this
    rank warns of meanwhile."""
    original, warned = rebuild._take_over, []
    handler = logging.Handler()
    handler.emit = lambda record: warned.append(record.getMessage())  # type: ignore[method-assign]
    rebuild._take_over = lambda new, old: None
    rebuild.logger.addHandler(handler)
    try:
        return rebuilding_changes_nothing(setting), warned
    finally:
        rebuild._take_over = original
        rebuild.logger.removeHandler(handler)


def freeze_with_a_micro_batch_of_ones_own() -> str:
    """What a freeze says when each rank has been told to take another micro-batch."""
    with engine_for(new_model(), Setting(2, "fp32", accumulation=2)) as engine:
        train_step(engine, 0)
        engine.set_micro_batch(engine.resolved.micro_batch * (1 + dist.get_rank()))
        try:
            engine.freeze(1)
        except RuntimeError as error:
            return str(error)
        return "frozen"


def one_buffer_of_parts() -> tuple[bool, bool]:
    """Whether consecutive parts of a buffer stay where they are, and whether others are copied together."""
    buffer = torch.arange(10.0)
    parts = [buffer[2:5], buffer[5:9]]
    whole = rebuild._one_buffer(parts)
    in_place = whole.data_ptr() == buffer[2:].data_ptr() and torch.equal(whole, torch.arange(2.0, 9.0))
    apart = [buffer[0:3].clone(), buffer[5:9]]
    copied = rebuild._one_buffer(apart)
    moved = torch.equal(copied, torch.tensor([0.0, 1, 2, 5, 6, 7, 8])) and apart[1].data_ptr() == copied[3:].data_ptr()
    return in_place, moved


def one_buffer_of_neighbours() -> tuple[bool, bool]:
    """Of two storages that happen to follow one another: whether they do, and whether they are copied together."""
    memory = bytearray(7 * 4)
    torch.frombuffer(memory, dtype=torch.float32).copy_(torch.arange(7.0))
    neighbours = [torch.frombuffer(memory, dtype=torch.float32, count=c, offset=4 * o) for o, c in ((0, 3), (3, 4))]
    adjacent = neighbours[1].data_ptr() == neighbours[0].data_ptr() + 3 * 4
    whole = rebuild._one_buffer(neighbours)
    return adjacent, whole.untyped_storage().nbytes() >= 7 * 4 and torch.equal(whole, torch.arange(7.0))
