"""Pre-training: `pretrain(plan, resume, init)` runs a plan to its end, or to a signal, and returns the exit code.

The loop of `trainer.loop` with the LocalMIM loss, in whose steps units freeze.
"""

import time
from functools import partial
from pathlib import Path
from typing import Any

import torch

from trainer.checkpoint.reader import Checkpoint
from trainer.data.batches import MicroBatch
from trainer.data.loader import Loader, make_loader
from trainer.evaluation.online import OnlineKnn
from trainer.freezing.start import make_controller
from trainer.logbook import PretrainingLogbook
from trainer.loop import PRECISIONS, Training, run_training
from trainer.model.compile import CompiledBlock, compile_block
from trainer.model.flops import step_flops
from trainer.model.localmim import LocalMIM
from trainer.model.masking import mask_noise
from trainer.plan import RunPlan
from trainer.pretrained.initial import InitialWeights
from trainer.ranks import on_every_rank
from trainer.setup import choose_initial_weights
from trainer.stopping import StopSignals
from trainer.storages import Storages
from trainer.watchdog import Watchdog


def pretrain(plan: RunPlan, resume: str, init: Path | None) -> int:
    """Run on every rank. `resume`: auto, never or a path. `init`: pre-trained weights to start from, if there is no
    checkpoint to go on from. Raises `BadInput` before any engine is built."""
    return run_training(plan, resume, partial(Pretraining, init=init))


class Pretraining(Training):
    """A LocalMIM run through every freeze."""

    plan: RunPlan
    logbook: PretrainingLogbook
    logbook_kind = PretrainingLogbook

    def __init__(
        self,
        plan: RunPlan,
        device: torch.device,
        storages: Storages,
        checkpoint: Checkpoint | None,
        watchdog: Watchdog,
        signals: StopSignals,
        init: Path | None = None,
    ):
        self._init = init
        self._initial: InitialWeights | None = None
        self._compiled: CompiledBlock | None = None
        super().__init__(plan, device, storages, checkpoint, watchdog, signals)
        self.knn = OnlineKnn(plan, self.engine, device, self.logbook.say)
        if self._compiled:
            self.logbook.say(f"compiled the encoder's block in {self._compiled.seconds:.0f} s")

    def _prepare(self, checkpoint: Checkpoint | None) -> None:
        """Weights that do not fit, and a machine without a compiler, are found out before anything is written."""
        self._initial = choose_initial_weights(self.plan, self._init, checkpoint)
        config = self.plan.recipe.model
        if not self.plan.recipe.train.compile:
            return
        self.watchdog.at("compiling the block", self.step)
        sizes, dtype = self.plan.micro_batches.from_step(self.step), PRECISIONS[self.plan.ds.precision]
        self._compiled = on_every_rank(
            lambda: compile_block(config, micro_batches=sizes, device=self.device, dtype=dtype)
        )

    def _new_model(self) -> LocalMIM:
        model = self.plan.new_model()
        if self._compiled:
            self._compiled.install(model)
        if self._initial:
            self._initial.copy_into(model)
            self.origin = self._initial.origin
        return model

    def _new_loader(self, **settings: Any) -> Loader:
        return make_loader(self.plan.index, self.plan.recipe.data, **settings)

    def _initially_frozen_units(self) -> int:
        return self.plan.recipe.freezing.initial_units

    def _engine_ready(self, checkpoint: Checkpoint | None) -> None:
        if self._initial:
            self.engine.set_masters(self._initial.weights)
            self._initial = None  # as large as the model
        dtype = PRECISIONS[self.plan.ds.precision]
        self.controller = make_controller(self.plan, self.engine, self.archive, self.device, dtype)
        if checkpoint:
            self.controller.load(checkpoint.manifest.freezing, checkpoint.reference())

    def _learning_rates(self, step: int) -> list[float | None]:
        return self.controller.policy.learning_rates(step)

    def _freezing_state(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        return self.controller.state(), self.controller.reference

    def _before_step(self) -> None:
        if self.controller.is_probed(self.step):
            with self._phase("probe"), self.throughput.aside():
                started = time.perf_counter()
                plasticity = self.controller.measure(self.step)
                self.logbook.probe(self.step, plasticity, time.perf_counter() - started)
        if self.controller.is_due(self.step):
            with self._phase("freeze"), self.throughput.aside():
                self.logbook.freeze(self.step, self.controller.freeze(self.step))
        self.controller.set_rates(self.step)

    def _losses(self, batch: MicroBatch, micro_step: int) -> tuple[torch.Tensor, torch.Tensor]:
        noise = mask_noise(batch.mask_keys, self.model.num_patches)
        return self.engine.forward(batch.images, noise, self.plan.stage_weights_at(self.step))

    def _is_save_due(self) -> bool:
        """Pictures are drawn from checkpoints, too."""
        return super()._is_save_due() or self.step in self.plan.recipe.tracking.pictures_at

    def _after_step(self) -> None:
        if self.knn.is_due(self.step):
            with self.throughput.aside():
                result = self.knn.evaluate(lambda what: self.watchdog.at(what, self.step))
            self.logbook.evaluation(self.step, result)

    def _image_flops(self) -> int:
        return step_flops(self.plan.recipe.model, self.model.frozen_units).total
