"""Fine-tuning: `finetune(plan, resume)` runs a plan to its end, or to a signal, and returns the exit code.

The loop of `trainer.loop` with a classifier. What is random in a step is a function of the seed and of the step: the
shares of mixup and cutmix are the same on all ranks; which images are mixed, and which blocks drop-path leaves out,
depends on the layout as well. So a resume is exact to the bit on the same layout, and on another all ranks still see
the same images in the same crops.
"""

import time
from typing import Any

import torch
from timm.loss import SoftTargetCrossEntropy

from trainer.checkpoint.reader import Checkpoint
from trainer.checkpoint.state_file import MASTER
from trainer.data.batches import MicroBatch
from trainer.data.counter_rng import derive_key
from trainer.data.errors import ShardError
from trainer.data.loader import LaneLoader, Loader
from trainer.data.order import DROP_PATH, MIXING
from trainer.data.tar_members import shown
from trainer.engine.average import AVERAGE, AveragingEngine
from trainer.engine.ds_config import ResolvedDsConfig
from trainer.engine.engine import FreezingEngine
from trainer.engine.whole import whole_tensors
from trainer.finetuning.augment import AfterCrop
from trainer.finetuning.classifier import Classifier
from trainer.finetuning.logbook import FinetuningLogbook
from trainer.finetuning.mixing import Mixing, normalised
from trainer.finetuning.plan import FinetunePlan
from trainer.finetuning.validation import Accuracy, Validation, label_problem
from trainer.loop import PRECISIONS, Training, run_training
from trainer.model.config import ModelConfig
from trainer.model.flops import classifier_flops
from trainer.pretrained import Pretrained, load_pretrained
from trainer.pretrained.initial import Origin, require_same_weights
from trainer.ranks import on_every_rank
from trainer.stopping import StopSignals
from trainer.storages import Storages
from trainer.tracking.console import Console
from trainer.watchdog import Watchdog


class EncoderOrigin(Origin):
    """Weights for all but the head."""

    def __str__(self) -> str:
        return f"{self.source}: the encoder; the head is newly initialised"


def finetune(plan: FinetunePlan, resume: str) -> int:
    """Run on every rank. `resume`: auto, never or a path. Raises `BadInput` before any engine is built."""
    return run_training(plan, resume, Finetuning)


class Finetuning(Training):
    """A classifier on pre-trained weights."""

    plan: FinetunePlan
    logbook: FinetuningLogbook
    logbook_kind = FinetuningLogbook

    def __init__(
        self,
        plan: FinetunePlan,
        device: torch.device,
        storages: Storages,
        checkpoint: Checkpoint | None,
        watchdog: Watchdog,
        signals: StopSignals,
    ):
        self._mixing = Mixing(plan.recipe.augmentation, plan.classes)
        self._criterion = SoftTargetCrossEntropy()
        self._dtype = PRECISIONS[plan.ds.precision]
        self._pretrained: Pretrained | None = None
        super().__init__(plan, device, storages, checkpoint, watchdog, signals)
        self._validation = Validation(plan, device, self._dtype) if plan.validation else None

    def _prepare(self, checkpoint: Checkpoint | None) -> None:
        """Weights to start from that do not fit are found out before anything is written."""
        if checkpoint:
            return
        self.watchdog.at("reading the pre-trained weights", self.step)
        say = Console(self.plan.ranks.rank).say
        like = ModelConfig.around(self.plan.recipe.model)

        def read() -> Pretrained:
            pretrained = load_pretrained(self.plan.init, like=like, say=say)
            with torch.device("meta"):
                self.plan.new_model().require_fits(pretrained)
            return pretrained

        self._pretrained = on_every_rank(read)
        require_same_weights(self.plan.init, self._pretrained.encoder, self._pretrained.source)

    def _new_model(self) -> Classifier:
        model = self.plan.new_model()
        if self._pretrained:
            model.load_encoder(self._pretrained)
            self.origin = EncoderOrigin(self._pretrained.source, "a classifier has none")
        return model

    def _new_engine(self, resolved: ResolvedDsConfig) -> FreezingEngine:
        decay = self.plan.recipe.finetune.average
        if decay is None:
            return super()._new_engine(resolved)
        return AveragingEngine(self.model, resolved, self.plan.recipe.optimizer, decay)

    def _engine_ready(self, checkpoint: Checkpoint | None) -> None:
        if self._pretrained:
            self.engine.set_masters(self._pretrained.encoder)
            self._pretrained = None  # as large as the model

    def _learning_rates(self, step: int) -> list[float | None]:
        return self.plan.schedule.learning_rates(step)

    def _new_loader(self, **settings: Any) -> Loader:
        recipe = self.plan.recipe
        after_crop = AfterCrop(recipe.augmentation, recipe.model.image_size)
        return LaneLoader(self.plan.index, recipe.data, after_crop=after_crop, **settings)

    def _losses(self, batch: MicroBatch, micro_step: int) -> tuple[torch.Tensor, torch.Tensor]:
        self._require_labels(batch)
        seed = self.plan.recipe.train.seed
        labels = batch.labels.to(self.device)
        images, targets = self._mixing(normalised(batch.images), labels, derive_key(seed, MIXING, self.step))
        torch.manual_seed(derive_key(seed, DROP_PATH, self.step, self.plan.ranks.rank, micro_step))
        logits = self.engine.forward(images.to(self._dtype))
        loss = self._criterion(logits.float(), targets)
        return loss, loss[None]

    def _image_flops(self) -> int:
        return classifier_flops(self.plan.recipe.model, self.plan.classes).total

    def _after_step(self) -> None:
        if self._validation is None or not self.plan.validates_after(self.step):
            return
        with self.throughput.aside():
            started = time.perf_counter()
            accuracy = self._accuracy(MASTER)
            average = self._accuracy(AVERAGE) if self.plan.recipe.finetune.average else None
            self.logbook.evaluation(self.step, accuracy, average, time.perf_counter() - started)

    def _accuracy(self, kind: str) -> Accuracy:
        assert self._validation is not None
        weights = whole_tensors(self.engine, kind, self.shapes, self.device)
        return self._validation.measure(weights, lambda: self.watchdog.at("validation", self.step))

    def _require_labels(self, batch: MicroBatch) -> None:
        """On the host, where the labels come from. Raises ShardError naming a sample."""
        wrong = (batch.labels < 0) | (batch.labels >= self.plan.classes)
        if wrong.any():
            at = int(wrong.nonzero()[0])
            problem = label_problem(int(batch.labels[at]), self.plan.classes)
            raise ShardError(f"{self.plan.index.name}: sample {shown(batch.keys[at])} {problem}")
