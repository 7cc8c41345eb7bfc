"""Accuracy on held-out shards: every image exactly once over all ranks, so the counts are exact."""

from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F

from trainer.data.cache import open_storage
from trainer.data.errors import ShardError
from trainer.data.evaluation import EvaluationBatch, evaluation_batches
from trainer.finetuning.mixing import normalised
from trainer.finetuning.plan import FinetunePlan


@dataclass(frozen=True)
class Accuracy:
    """Over `images` centre crops. `top1`, `top5`: share with the label first, or among the first five (all, where there
    are fewer classes). `loss`: mean cross-entropy."""

    top1: float
    top5: float
    loss: float
    images: int


class Validation:
    """Holds a copy of the model, in the training's precision, that nothing else uses: the engine is not touched."""

    def __init__(self, plan: FinetunePlan, device: torch.device, dtype: torch.dtype):
        self._plan, self._device = plan, device
        with torch.random.fork_rng(devices=[]):
            self._model = plan.new_model().eval().requires_grad_(False).to(device=device, dtype=dtype)
        self._dtype = dtype

    @torch.no_grad()
    def measure(self, weights: Iterable[tuple[str, torch.Tensor]], tick: Callable[[], None]) -> Accuracy:
        """The accuracy with these weights, given for every parameter. Collective. `tick` is called now and then.

        Raises ShardError where an image or its label is not there."""
        parameters = dict(self._model.named_parameters())
        for name, values in weights:
            parameters[name].copy_(values)
        plan = self._plan
        assert plan.validation is not None
        # float64 holds these counts exactly, and the loss travels with them
        totals = torch.zeros(4, dtype=torch.float64, device=self._device)
        with closing(open_storage(plan.recipe.data)) as storage:
            for batch in evaluation_batches(
                plan.validation,
                image_size=plan.recipe.model.image_size,
                batch=plan.recipe.validation.batch,
                rank=plan.ranks.rank,
                world_size=plan.ranks.world_size,
                storage=storage,
            ):
                tick()
                totals += self._count(batch)
        dist.all_reduce(totals)
        top1, top5, loss, images = totals.tolist()
        return Accuracy(top1 / images, top5 / images, loss / images, int(images))

    def _count(self, batch: EvaluationBatch) -> torch.Tensor:
        """float64 [4]: images with the label first, among the first five, sum of the losses, images."""
        self._require_labels(batch)
        valid = batch.valid.to(self._device)
        labels = batch.labels.to(self._device)
        logits = self._model(normalised(batch.images.to(self._device)).to(self._dtype)).float()
        first = logits.topk(min(5, self._plan.classes)).indices
        hits = (first == labels[:, None]) & valid[:, None]
        losses = F.cross_entropy(logits, labels, reduction="none") * valid
        return torch.stack([value.double() for value in (hits[:, 0].sum(), hits.sum(), losses.sum(), valid.sum())])

    def _require_labels(self, batch: EvaluationBatch) -> None:
        wrong = (batch.labels < 0) | (batch.labels >= self._plan.classes)
        if wrong.any():
            at = int(wrong.nonzero()[0])
            assert self._plan.validation is not None
            raise ShardError(
                f"{self._plan.validation.name}: sample {int(batch.samples[at])} "
                + label_problem(int(batch.labels[at]), self._plan.classes)
            )


def label_problem(label: int, classes: int) -> str:
    """What to say of a label that is none of the classes."""
    if label < 0:
        return "has no label: give shards whose samples have a .cls each"
    return f"has label {label}, the classes are 0 to {classes - 1}: set finetune.classes, or mend the shards"
