"""Everything about a fine-tuning that is known, and can be refused, before a process group or an engine exists."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.data.micro_batches import MicroBatches
from trainer.data.pipe import PipeSource
from trainer.data.shard_index import ShardIndex
from trainer.data.source import open_source, positions_of
from trainer.data.storage import Storage
from trainer.errors import BadInput
from trainer.finetuning.recipe import FinetuneRecipe
from trainer.finetuning.schedule import LayerDecaySchedule
from trainer.plan import AnyPlan, require_steps, resolve_for
from trainer.ranks import Ranks

if TYPE_CHECKING:  # a run is planned before torch is imported
    from trainer.finetuning.classifier import Classifier


@dataclass(frozen=True, kw_only=True)
class FinetunePlan(AnyPlan):
    recipe: FinetuneRecipe
    index: ShardIndex
    init: Path
    classes: int
    schedule: LayerDecaySchedule
    validation: ShardIndex | None

    def new_model(self) -> "Classifier":
        from trainer.finetuning.classifier import Classifier

        return Classifier(self.recipe.model, self.recipe.finetune, self.classes)

    def validates_after(self, step: int) -> bool:
        """Whether the accuracy is measured when so many steps are done."""
        if self.validation is None:
            return False
        every = max(1, round(self.recipe.validation.every_epochs * self.steps_per_epoch))
        return step == self.total_steps or step % every == 0


def plan_finetune(recipe: FinetuneRecipe, ds_config: Path, output: Path, ranks: Ranks) -> FinetunePlan:
    """Check recipe, ds_config, data and world size against each other. Raises `BadInput`; touches no device."""
    if not recipe.finetune.init:
        raise BadInput("no weights to start from: give --init RUN_OR_FILE, or finetune.init in the recipe")
    ds = resolve_for(recipe, ds_config, ranks.world_size)
    if recipe.augmentation.mixes and ds.micro_batch % 2:
        raise BadInput(
            f"augmentation: mixup and cutmix pair the images of a micro-batch, and {ds.micro_batch} is odd: set "
            "train.micro_batch to an even number, or augmentation.mixup=0 and augmentation.cutmix=0"
        )
    index = open_source(recipe.data, ranks.rank)
    if isinstance(index, PipeSource):
        raise BadInput("data.path is a pipe:, fine-tuning needs shards with an index, which names their classes")
    positions = positions_of(
        index, recipe.data, seed=recipe.train.seed, global_batch=recipe.train.global_batch, world_size=ranks.world_size
    )
    total_steps = recipe.total_steps(positions.steps_per_epoch)
    schedule = LayerDecaySchedule(
        depth=recipe.model.num_blocks,
        layer_decay=recipe.finetune.layer_decay,
        total_steps=total_steps,
        warmup_steps=round(recipe.optimizer.warmup_epochs * positions.steps_per_epoch),
        lr=recipe.learning_rate,
        min_lr=recipe.optimizer.min_lr,
    )
    require_steps("train.profile", recipe.train.profile, total_steps)
    return FinetunePlan(
        recipe=recipe,
        ds=ds,
        index=index,
        micro_batches=MicroBatches.always(ds.micro_batch),
        steps_per_epoch=positions.steps_per_epoch,
        total_steps=total_steps,
        output=output,
        ranks=ranks,
        init=Path(recipe.finetune.init),
        classes=count_classes(recipe.finetune.classes, index),
        schedule=schedule,
        validation=open_validation(recipe, index, ranks.rank),
    )


def count_classes(wanted: int | None, index: ShardIndex) -> int:
    """How many outputs the head has. Raises `BadInput` where neither recipe nor index say it, or one contradicts."""
    if index.classes is None and wanted is None:
        raise BadInput(
            f"{index.name}: names no classes, as an index of shards without labels: give shards with labels, or, if "
            "theirs are numbers only, finetune.classes"
        )
    if wanted is not None and index.classes is not None and wanted < len(index.classes):
        raise BadInput(
            f"finetune.classes is {wanted} but {index.name} names {len(index.classes)}: raise it, or leave it empty"
        )
    return wanted or len(index.classes or ())


def open_validation(recipe: FinetuneRecipe, training: ShardIndex, rank: int) -> ShardIndex | None:
    """The held-out shards, or None where the recipe wants no validation. Raises `BadInput`."""
    if not recipe.validation.every_epochs:
        return None
    path = recipe.validation.path or recipe.data.path
    assert path is not None  # the training's were opened
    storage = Storage(recipe.data.retries, recipe.data.timeout)
    try:
        index = ShardIndex.open(path, "val", storage=storage, check_remote_shards=rank == 0)
    except BadInput as error:
        raise BadInput(
            f"validation: {error} (held-out shards: --validation SHARDS; to do without: validation.every_epochs=0)"
        ) from None
    if index.content_hash == training.content_hash:
        raise BadInput(
            f"validation: {index.name} is what the run trains on; give held-out shards, or validation.every_epochs=0"
        )
    if index.classes is not None and training.classes is not None and index.classes != training.classes:
        raise BadInput(
            f"validation: {index.name} has other classes than {training.name}: its labels would mean others; give "
            "shards of the same classes"
        )
    return index
