"""k-NN on held-out shards while pre-training goes on, without a trace in it.

The live weights are copied into a timm ViT of its own, which lives as long as the evaluation does. So the trained
module, its hooks, the optimizer and the loader are not even touched, and no random number of theirs is drawn.
"""

from collections.abc import Callable
from contextlib import closing
from typing import Any

import torch

from trainer.data.cache import open_storage
from trainer.data.shard_index import ShardIndex
from trainer.engine.engine import FreezingEngine
from trainer.evaluation.encoder import Encoder, Precision
from trainer.evaluation.on_shards import Extraction, knn_on_shards
from trainer.evaluation.splits import Split
from trainer.model.config import ModelConfig
from trainer.plan import RunPlan
from trainer.pretrained import Pretrained, build_vit, load_into
from trainer.pretrained.weights import ENCODER_PARTS, encoder_of_localmim, last_norm


class OnlineKnn:
    """Every rank has one and calls it at the same steps. Without an `evaluation` in the recipe it is never due."""

    def __init__(self, plan: RunPlan, engine: FreezingEngine, device: torch.device, say: Callable[[str], None]):
        self._plan, self._engine, self._device, self._say = plan, engine, device, say
        self._interval = plan.recipe.evaluation.interval(plan.steps_per_epoch)

    def is_due(self, step: int) -> bool:
        """After `step` steps: at multiples of the interval, and at the end."""
        return self._interval > 0 and (step % self._interval == 0 or step == self._plan.total_steps)

    def evaluate(self, alive: Callable[[str], None]) -> dict[str, Any]:
        """Fields of the `evaluation` event (`on_shards.knn_on_shards`). Collective. `alive` is told after every batch
        what goes on. Raises as `knn_on_shards` does."""
        plan, config = self._plan, self._plan.recipe.evaluation
        assert plan.held_out is not None  # the plan opened it, since there is an interval
        assert isinstance(plan.index, ShardIndex)  # and refused a pipe
        with closing(open_storage(plan.recipe.data)) as storage:
            return knn_on_shards(
                live_encoder(self._engine, plan.recipe.model, self._device, plan.ds.precision),
                Split("training", plan.index, config.train_samples),
                Split("held-out", plan.held_out, config.samples),
                Extraction(config.batch, config.workers, [config.pool], storage, self._say, alive),
                ks=config.k,
                temperatures=config.temperature,
            )


def live_encoder(engine: FreezingEngine, config: ModelConfig, device: torch.device, precision: Precision) -> Encoder:
    """The encoder as it is now, in fp32, with the norm of the stage that reads its last block. Collective at ZeRO-3.

    Takes 4 bytes a parameter of it on the device of every rank, while it is filled twice that."""
    parts = (*ENCODER_PARTS, f"{last_norm(config)}.")
    names = {name for name, _ in engine.model.named_parameters() if name.startswith(parts)}
    weights = {name: weight.float() for name, weight in engine.whole_weights(names)}
    with torch.random.fork_rng(devices=[]):  # its initial weights are drawn, on the host; the run's numbers stay
        vit = build_vit(config, num_classes=0)
    load_into(vit, Pretrained(config, encoder_of_localmim(config, weights), None, "the run"))
    return Encoder(vit, device, precision)
