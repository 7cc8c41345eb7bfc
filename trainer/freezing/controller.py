"""Carries the schedule out: before each step it tells the engine which units are done and what rate the others get."""

from trainer.data.micro_batches import MicroBatches
from trainer.engine.engine import FreezeReport, FreezingEngine
from trainer.engine.frozen import FrozenArchive
from trainer.freezing.schedule import FreezeSchedule


class FreezeController:
    def __init__(
        self, schedule: FreezeSchedule, micro_batches: MicroBatches, engine: FreezingEngine, archive: FrozenArchive
    ):
        """`engine`: with the micro-batch that `micro_batches` gives to the next step."""
        self._schedule, self._micro_batches, self._engine, self._archive = schedule, micro_batches, engine, archive

    def is_due(self, step: int) -> bool:
        """Whether a unit freezes before this step (0-based)."""
        return self._schedule.frozen_units(step) > self._engine.model.frozen_units

    def freeze(self, step: int) -> FreezeReport:
        """Freeze all that is due at this step in one rebuild, and take the micro-batch that goes with it. Collective,
        at an accumulation boundary."""
        model = self._engine.model
        due = self._schedule.frozen_units(step)
        names = {name for name, p in model.named_parameters() if p.requires_grad and model.unit_of(name) < due}
        self._archive.keep(self._engine, names)  # the fp32 masters are gone after the freeze
        self._engine.set_micro_batch(self._micro_batches.at(step))  # first: the rebuilt wrapper is told of it
        return self._engine.freeze(due)

    def set_rates(self, step: int) -> None:
        """Give every live unit its learning rate for this step."""
        self._engine.set_learning_rates(self._schedule.learning_rates(step))
