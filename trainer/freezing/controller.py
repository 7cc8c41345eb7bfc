"""Carries the schedule out: before each step it tells the engine which units are done and what rate the others get."""

from trainer.checkpoint.frozen import FrozenArchive
from trainer.engine.engine import FreezeReport, FreezingEngine
from trainer.freezing.schedule import FreezeSchedule


class FreezeController:
    def __init__(self, schedule: FreezeSchedule, engine: FreezingEngine, archive: FrozenArchive):
        self._schedule, self._engine, self._archive = schedule, engine, archive

    def before_step(self, step: int) -> FreezeReport | None:
        """Freeze what is due at this step (0-based), all of it in one rebuild, and set the learning rates.

        Collective: every rank calls it at the same step, at an accumulation boundary. Returns None if nothing froze."""
        model = self._engine.model
        due = self._schedule.frozen_units(step)
        report = None
        if due > model.frozen_units:
            names = {name for name, p in model.named_parameters() if p.requires_grad and model.unit_of(name) < due}
            self._archive.keep(self._engine, names)  # the fp32 masters are gone after the freeze
            report = self._engine.freeze(due)
        self._engine.set_learning_rates(self._schedule.learning_rates(step))
        return report
