"""The recordings of the published code, and how to read one."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from trainer.model.config import ModelConfig
from trainer.model.localmim import LocalMIM
from trainer.pretrained.recognise import recognise

GOLDEN_DIR = Path(os.environ.get("GOLDEN_DIR", Path(__file__).parents[1] / "golden"))


@dataclass(frozen=True)
class GoldenCase:
    """One recording of the published code: its configuration, inputs, weights and everything that it computed."""

    config: ModelConfig
    tensors: dict[str, Tensor]

    def state_dict(self) -> dict[str, Tensor]:
        """The weights under their published names."""
        return {name.removeprefix("weight."): t for name, t in self.tensors.items() if name.startswith("weight.")}

    def gradients(self) -> dict[str, Tensor]:
        """The gradients of the summed loss under their published names."""
        return {name.removeprefix("grad."): t for name, t in self.tensors.items() if name.startswith("grad.")}

    def by_stage(self, key: str) -> list[Tensor]:
        """A recorded quantity of every stage, in order."""
        return [self.tensors[f"{key}.{stage}"] for stage in range(len(self.config.stage_blocks))]

    def model(self) -> LocalMIM:
        """The model with the recorded weights, imported as those of any other checkpoint are."""
        model = LocalMIM(self.config)
        weights = recognise(self.state_dict(), {}, "the recording", like=self.config).full
        assert weights is not None
        model.load_state_dict(weights)
        return model


def read_golden(path: Path) -> GoldenCase:
    """The published option names are translated to the recipe's."""
    with np.load(path) as recorded:
        published = json.loads(str(recorded["config"]))
        tensors = {name: torch.from_numpy(recorded[name]) for name in recorded.files if name != "config"}
    decoder_mlp = tensors["weight.decoder.0.blocks.0.mlp.fc1.weight"]
    config = ModelConfig(
        image_size=published["img_size"],
        patch_size=published["patch_size"],
        embed_dim=published["embed_dim"],
        depth=published["depth"],
        num_heads=published["num_heads"],
        mlp_ratio=published["mlp_ratio"],
        norm_eps=published["norm_eps"],
        mask_ratio=published["mask_ratio"],
        stages=published["stages"],
        scales=published["scales"],
        hog_bins=published["hog_nbins"],
        decoder_dim=published["decoder_embed_dim"],
        decoder_depth=published["decoder_depth"],
        decoder_heads=published["decoder_num_heads"],
        decoder_mlp_ratio=decoder_mlp.shape[0] / decoder_mlp.shape[1],
    )
    return GoldenCase(config, tensors)
