"""The recipe's ``checkpoint`` section."""

from pydantic import Field

from trainer.section import Section


class CheckpointConfig(Section):
    every_steps: int = Field(0, ge=0, description="save every so many optimizer steps; 0 = only `every_epochs` decides")
    every_epochs: float = Field(
        1.0, ge=0, description="save every so many epochs (rounded to steps); 0 = only at the end"
    )
    keep_last: int = Field(2, ge=1, description="how many of the newest checkpoints stay; older ones are deleted")

    def interval(self, steps_per_epoch: int) -> int:
        """Steps between two saves; 0 = no save before the end."""
        if self.every_steps:
            return self.every_steps
        return max(1, round(self.every_epochs * steps_per_epoch)) if self.every_epochs else 0
