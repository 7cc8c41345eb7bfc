"""What freed memory is spent on: a larger micro-batch and less accumulation, at the same global batch.

Every forward pass has a price of its own, whatever its size: kernel launches, hooks, and under ZeRO-2 and 3 a reduction
of all gradients. The sizes are worked out before the run from `trainer.planning.memory`, not probed, so that all ranks
and a resumed run agree on them, and the data workers know them ahead of time. Imports torch only where it works them
out: a run is planned, and most are without this, before anything heavy is imported.
"""

from itertools import groupby

from trainer.byte_sizes import show_bytes
from trainer.data.micro_batches import MicroBatches
from trainer.engine.ds_config import ResolvedDsConfig
from trainer.errors import BadInput
from trainer.freezing.schedule import FreezeSchedule
from trainer.model.config import ModelConfig


def micro_batch_by_frozen_units(
    config: ModelConfig,
    ds: ResolvedDsConfig,
    world_size: int,
    budget: int | None,
    *,
    initial_units: int = 0,
    checkpoint_activations: bool = False,
) -> tuple[int, ...]:
    """Images per rank and forward pass with 0, 1, … all but the last unit frozen.

    The configured micro-batch until the first freeze beyond `initial_units`; then the largest divisor of a rank's share
    of the global batch whose predicted memory is within `budget` (bytes per rank; None: what the configured one needs
    before the first freeze). Raises `BadInput` if that is more than the budget."""
    from trainer.planning.memory import step_memory

    def needed(frozen_units: int, micro_batch: int) -> int:
        return step_memory(
            config, ds, world_size, frozen_units, micro_batch, checkpoint_activations=checkpoint_activations
        ).total

    before_freezing = needed(initial_units, ds.micro_batch)
    limit = before_freezing if budget is None else budget
    if before_freezing > limit:
        raise BadInput(
            f"freezing.memory_budget {show_bytes(limit)}: micro-batch {ds.micro_batch} needs "
            f"{show_bytes(before_freezing)} per rank before the first freeze, by the memory model; raise the budget "
            "or lower train.micro_batch"
        )
    share = ds.micro_batch * ds.accumulation
    candidates = [size for size in range(share, ds.micro_batch, -1) if share % size == 0]
    return tuple(
        next(
            (size for size in candidates if frozen_units > initial_units and needed(frozen_units, size) <= limit),
            ds.micro_batch,
        )
        for frozen_units in range(config.num_blocks + 1)
    )


def micro_batches_of_run(by_frozen_units: tuple[int, ...], schedule: FreezeSchedule) -> MicroBatches:
    """When the sizes change: at the freezes that allow a larger one."""
    freezes = {step for step in schedule.freeze_steps() if step is not None}
    phases = [(step, by_frozen_units[schedule.frozen_units(step)]) for step in sorted({0, *freezes})]
    return MicroBatches(tuple(next(same) for _, same in groupby(phases, key=lambda phase: phase[1])))


def describe_rebatching(micro_batches: MicroBatches, ds: ResolvedDsConfig) -> str:
    """One sentence for the start of a run."""
    if ds.accumulation == 1:
        return "re-batching: nothing to gain, a step is a single micro-batch already"
    if len(micro_batches.changes) == 1:
        return f"re-batching: nothing to gain, no freeze frees enough for a micro-batch above {ds.micro_batch}"
    share = ds.micro_batch * ds.accumulation
    phases = [f"{size} x {share // size} after step {first}" for first, size in micro_batches.changes[1:]]
    return f"re-batching: micro-batch {ds.micro_batch} x {ds.accumulation}, {', '.join(phases)}"
