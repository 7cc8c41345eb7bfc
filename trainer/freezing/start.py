"""The controller of a run, with what its policy needs."""

import torch

from trainer.engine.engine import FreezingEngine
from trainer.engine.frozen import FrozenArchive
from trainer.freezing.controller import FreezeController
from trainer.freezing.plasticity import PlasticityPolicy
from trainer.freezing.probe import Probe, probe_images
from trainer.plan import RunPlan
from trainer.ranks import from_rank_zero


def make_controller(
    plan: RunPlan, engine: FreezingEngine, archive: FrozenArchive, device: torch.device, dtype: torch.dtype
) -> FreezeController:
    """`dtype`: that of training. Collective. Raises BadInput where a policy that measures finds no image to use."""
    recipe = plan.recipe
    if recipe.freezing.how != "plasticity":
        return FreezeController(plan.schedule, plan.micro_batches, engine, archive)
    count, size = recipe.freezing.probe_images, recipe.model.image_size
    images = from_rank_zero(lambda: probe_images(plan.index, count, size))  # all that can be refused, on all ranks
    probe = Probe(recipe.model, images, device, dtype)
    return FreezeController(PlasticityPolicy(plan.schedule), plan.micro_batches, engine, archive, probe)
