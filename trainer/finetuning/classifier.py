"""The model that is fine-tuned: timm's VisionTransformer, with the units that the engine asks for."""

from typing import Literal

from timm.models.vision_transformer import VisionTransformer
from torch import nn

from trainer.errors import BadInput
from trainer.finetuning.recipe import FinetuneConfig
from trainer.model.config import EncoderConfig
from trainer.pretrained import Pretrained
from trainer.pretrained.vit import load_into, vit_options

HEAD_STD = 2e-5
"""Standard deviation of the head's initial weights: so small that training begins with no opinion, as MAE's does."""

_POOLS: dict[str, Literal["avg", "token"]] = {"mean": "avg", "token": "token"}


class Classifier(VisionTransformer):
    """``forward``: normalised images [B, 3, S, S] → logits [B, classes].

    Its parameters have timm's names, so its state dict loads into ``timm.create_model`` as it is. Units: 0 = the
    embeddings, i = block i-1, depth + 1 = the norm and the head. They are there for their learning rates: none freezes.
    """

    def __init__(self, config: EncoderConfig, finetune: FinetuneConfig, classes: int):
        super().__init__(
            **vit_options(config),
            num_classes=classes,
            global_pool=_POOLS[finetune.pooling],
            drop_path_rate=finetune.drop_path,
        )
        self.config = config
        self.num_units = config.num_blocks + 2
        self.frozen_units = 0
        assert isinstance(self.head, nn.Linear)
        nn.init.trunc_normal_(self.head.weight, std=HEAD_STD)

    def unit_of(self, parameter_name: str) -> int:
        """The unit of a parameter, by its name."""
        part, *rest = parameter_name.split(".")
        if part == "blocks":
            return int(rest[0]) + 1
        return self.num_units - 1 if part in ("norm", "fc_norm", "head") else 0

    def freeze_prefix(self, units: int) -> None:
        """Raises ValueError for any unit: nothing freezes here."""
        if units:
            raise ValueError(f"{units} units of it are frozen, and fine-tuning freezes none")

    def load_encoder(self, pretrained: Pretrained) -> None:
        """Take pre-trained weights, for all but the head and its norm. Raises `BadInput` as `require_fits` does."""
        self.require_fits(pretrained)
        load_into(self, pretrained)

    def require_fits(self, pretrained: Pretrained) -> None:
        """Raises `BadInput` for weights of another architecture, also where their shapes would not tell."""
        for key, meaning in _ARCHITECTURE.items():
            theirs, ours = getattr(pretrained.config, key), getattr(self.config, key)
            if theirs != ours:
                raise BadInput(
                    f"--init {pretrained.source}: its {meaning} is {theirs}, that of the recipe's model is {ours}: "
                    "change the section model, or give other weights"
                )


_ARCHITECTURE = {
    "width": "width",
    "num_blocks": "number of blocks",
    "heads": "number of attention heads",
    "image_size": "image size",
    "patch_size": "patch size",
    "mlp_ratio": "MLP ratio",
    "norm_eps": "LayerNorm epsilon",
}
