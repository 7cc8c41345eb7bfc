"""Carries a policy out: before each step it tells the engine which units are done and what rate the others get."""

from typing import Any, Protocol

from torch import Tensor

from trainer.data.micro_batches import MicroBatches
from trainer.engine.engine import FreezeReport, FreezingEngine
from trainer.engine.frozen import FrozenArchive
from trainer.freezing.plasticity import PlasticityPolicy
from trainer.freezing.probe import Probe


class FreezePolicy(Protocol):
    """When units freeze, and their learning rates until then: a `FreezeSchedule`, which knows all in advance, or a
    `PlasticityPolicy`, which knows as much as it has been told."""

    def frozen_units(self, step: int) -> int: ...

    def learning_rates(self, step: int) -> list[float | None]: ...


class FreezeController:
    def __init__(
        self,
        policy: FreezePolicy,
        micro_batches: MicroBatches,
        engine: FreezingEngine,
        archive: FrozenArchive,
        probe: Probe | None = None,
    ):
        """`engine`: with the micro-batch that `micro_batches` gives to the next step. `probe`: what a
        `PlasticityPolicy` is told by, on every rank."""
        self.policy = policy
        self._micro_batches, self._engine, self._archive, self._probe = micro_batches, engine, archive, probe

    def is_probed(self, step: int) -> bool:
        """Whether the blocks are to be measured before this step."""
        return isinstance(self.policy, PlasticityPolicy) and self.policy.is_probed(step)

    def measure(self, step: int) -> list[float | None]:
        """Measure the blocks for the policy, before it is asked for anything of this step. Collective. Returns each
        unit's plasticity relative to the most that it had."""
        assert isinstance(self.policy, PlasticityPolicy)
        assert self._probe is not None
        return self.policy.observe(step, self._probe.measure(self._engine, self.policy.frozen_units(step)))

    def is_due(self, step: int) -> bool:
        """Whether a unit freezes before this step (0-based)."""
        return self.policy.frozen_units(step) > self._engine.model.frozen_units

    def freeze(self, step: int) -> FreezeReport:
        """Freeze all that is due at this step in one rebuild, and take the micro-batch that goes with it. Collective,
        at an accumulation boundary."""
        model = self._engine.model
        due = self.policy.frozen_units(step)
        names = {name for name, p in model.named_parameters() if p.requires_grad and model.unit_of(name) < due}
        self._archive.keep(self._engine, names)  # the fp32 masters are gone after the freeze
        self._engine.set_micro_batch(self._micro_batches.at(step))  # first: the rebuilt wrapper is told of it
        return self._engine.freeze(due)

    def set_rates(self, step: int) -> None:
        """Give every live unit its learning rate for this step."""
        self._engine.set_learning_rates(self.policy.learning_rates(step))

    def state(self) -> dict[str, Any]:
        """What the policy has been told so far, JSON-able; the same on every rank."""
        return self.policy.state() if isinstance(self.policy, PlasticityPolicy) else {}

    @property
    def reference(self) -> dict[str, Tensor]:
        """What the next measurement is compared with, fp32 on the host, on rank 0."""
        return self._probe.reference if self._probe else {}

    def load(self, state: dict[str, Any], reference: dict[str, Tensor]) -> None:
        """Put back a `state` and the `reference` that was saved with it."""
        if isinstance(self.policy, PlasticityPolicy):
            assert self._probe is not None
            self.policy.load_state(state)
            self._probe.load(reference)
