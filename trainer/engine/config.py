"""Recipe section `optimizer`: AdamW and its learning rate. The ds_config may not repeat any of it."""

from pydantic import Field, field_validator

from trainer.section import Section

REFERENCE_BATCH = 256
"""Global batch that `blr` is given for: peak learning rate = blr × global batch / 256 (Goyal et al., 1706.02677)."""


class OptimizerConfig(Section):
    """AdamW (1711.05101) with the defaults of LocalMIM's ViT-B pre-training."""

    blr: float = Field(2e-4, gt=0, description="base learning rate, per 256 images of global batch")
    lr: float | None = Field(None, gt=0, description="peak learning rate itself; overrides blr")
    min_lr: float = Field(1e-6, ge=0, description="learning rate at which a schedule ends")
    betas: tuple[float, float] = Field((0.9, 0.95), description="decay of the first and second moment")
    eps: float = Field(1e-8, gt=0, description="added to the root of the second moment")
    weight_decay: float = Field(0.05, ge=0, description="decoupled weight decay; biases and 1-D parameters have none")
    warmup_epochs: float = Field(40, ge=0, description="epochs of linear warm-up from 0 to the peak learning rate")
    clip_grad: float = Field(0.0, ge=0, description="largest global L2 norm of the gradient; 0 = no clipping")

    @field_validator("betas")
    @classmethod
    def _betas_below_one(cls, betas: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas must be at least 0 and below 1, got {list(betas)}")
        return betas

    def peak_lr(self, global_batch: int) -> float:
        """Learning rate after the warm-up, for a global batch in images."""
        return self.lr if self.lr is not None else self.blr * global_batch / REFERENCE_BATCH
