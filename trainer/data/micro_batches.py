"""How many images a rank takes in one forward pass: a number that may change between the steps of a run.

Knows no torch: a run is planned with it before anything heavy is imported.
"""

from dataclasses import dataclass

from trainer.errors import BadInput


@dataclass(frozen=True)
class MicroBatches:
    """Images per rank and forward pass, by step.

    `changes` are pairs of a first step and the micro-batch from there on, by rising steps; the first is of step 0."""

    changes: tuple[tuple[int, int], ...]

    @classmethod
    def always(cls, size: int) -> "MicroBatches":
        """The same at every step."""
        return cls(((0, size),))

    def at(self, step: int) -> int:
        """The micro-batch of a step (counted from 0 over the whole run)."""
        return next(size for first, size in reversed(self.changes) if first <= step)

    def from_step(self, step: int) -> list[int]:
        """The micro-batches of this step and of those after it, in the order in which they come."""
        return [self.at(step), *(size for first, size in self.changes if first > step)]

    def require_whole(self, global_batch: int, world_size: int) -> None:
        """Raises BadInput unless a rank's share of the global batch is a whole number of each of them."""
        for _, size in self.changes:
            if global_batch % (size * world_size):
                raise BadInput(
                    f"a global batch of {global_batch} is not a whole number of micro-batches of {size} on "
                    f"{world_size} ranks: change one of them"
                )
