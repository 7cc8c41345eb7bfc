"""The real model on the engine: runs on the ranks."""

import math
from typing import Any

import torch
import torch.distributed as dist

from tests.engine.cases import Setting, engine_for, gathered, group_sizes, weights
from tests.engine.memory import expected_optimizer_bytes
from trainer.model.config import ModelConfig
from trainer.model.localmim import LocalMIM
from trainer.model.masking import mask_noise

CONFIG = ModelConfig(
    size="tiny", image_size=32, patch_size=8, embed_dim=24, depth=4, num_heads=2,
    stages=[0, 1, 2, 3], scales=[2.0, 2.0, 1.0, 0.5], decoder_dim=16, decoder_heads=2,
)  # fmt: skip


def batch(step: int, piece: int) -> tuple[torch.Tensor, torch.Tensor]:
    """uint8 images [4, 3, 32, 32] and the noise that masks them."""
    generator = torch.Generator().manual_seed(1000 * step + piece)
    images = torch.randint(0, 256, (4, 3, CONFIG.image_size, CONFIG.image_size), generator=generator).to(torch.uint8)
    keys = torch.arange(4) + 100 * step + 10 * piece
    return images, mask_noise(keys, (CONFIG.image_size // CONFIG.patch_size) ** 2)


def train_localmim(setting: Setting, steps: int) -> dict[str, Any]:
    """Freeze a unit before every other step; what the engine said, and whether frozen weights stayed as they were."""
    torch.manual_seed(0)
    model = LocalMIM(CONFIG)
    found: dict[str, Any] = {"finite": True, "stage_counts": [], "bytes": [], "expected_bytes": [], "moved": []}
    frozen: dict[str, torch.Tensor] = {}
    with engine_for(model, setting) as engine:
        for step in range(steps):
            if step % 2 and model.frozen_units < model.num_units - 1:
                report = engine.freeze(model.frozen_units + 1)
                now = weights(engine)
                frozen |= {name: w for name, w in now.items() if model.unit_of(name) in report.units}
                found["bytes"].append(engine.optimizer_bytes())
                found["expected_bytes"].append(
                    expected_optimizer_bytes(
                        group_sizes(engine), zero_stage=setting.stage, world_size=dist.get_world_size()
                    )
                )
            engine.set_learning_rates([1e-3] * model.num_units)
            loss, stage_losses = engine.forward(*batch(step, dist.get_rank()))
            engine.backward(loss)
            engine.step()
            found["stage_counts"].append(len(stage_losses))
            found["finite"] &= math.isfinite(loss.item())
        with gathered(engine):
            shown = model.reconstruct(*batch(0, 0))
        found["shown_stages"] = len(shown.stages)
        final = weights(engine)
    found["moved"] = [name for name, weight in frozen.items() if not torch.equal(weight, final[name])]
    return found
