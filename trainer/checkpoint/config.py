"""The recipe's ``checkpoint`` section."""

from typing import Literal

from pydantic import Field

from trainer.section import Section, steps_between


class CheckpointConfig(Section):
    every_steps: int = Field(0, ge=0, description="save every so many optimizer steps; 0 = only `every_epochs` decides")
    every_epochs: float = Field(
        1.0, ge=0, description="save every so many epochs (rounded to steps); 0 = only at the end"
    )
    keep_last: int = Field(
        2, ge=1, description="how many of the newest checkpoints stay; older ones are deleted, but see `keep_every`"
    )
    keep_every: int = Field(
        0, ge=0, description="checkpoints at multiples of so many optimizer steps are never deleted; 0 = none"
    )
    on_error: Literal["stop", "continue"] = Field(
        "stop",
        description="when a checkpoint cannot be written, a full disk for instance: try once more and end with exit "
        "code 1 on all ranks, or go on without it and try again at the next save",
    )

    def interval(self, steps_per_epoch: int) -> int:
        """Steps between two saves; 0 = no save before the end."""
        return steps_between(self.every_steps, self.every_epochs, steps_per_epoch)

    def superseded(self, steps: list[int]) -> list[int]:
        """Which of the checkpoints at these steps are not kept any longer."""
        older = sorted(steps, reverse=True)[self.keep_last :]
        return [step for step in older if not (self.keep_every and step % self.keep_every == 0)]
