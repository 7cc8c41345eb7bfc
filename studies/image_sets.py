"""What the study's runs see: which images, and which trials are run on them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from studies import fashion_mnist, photograph_tiles
from studies.trials import BUDGETS, QUICK_BUDGETS, Trial, all_trials


@dataclass(frozen=True)
class ImageSet:
    """`make_shards`: into a folder, of each split at most so many images. `main_only`: the main contrast of the first
    budget, by the two measures that train no encoder, and nothing else."""

    name: str
    title: str
    make_shards: Callable[[Path, int | None], Path]
    main_only: bool = False

    def budgets(self, *, quick: bool) -> tuple[int, ...]:
        """In steps."""
        if quick:
            return QUICK_BUDGETS
        return BUDGETS[:1] if self.main_only else BUDGETS

    def trials(self, seeds: int, *, quick: bool) -> list[Trial]:
        return all_trials(self.budgets(quick=quick), seeds, others=not (quick or self.main_only), quick=quick)


IMAGE_SETS = (
    ImageSet("fashion_mnist", "Fashion-MNIST", fashion_mnist.make_shards),
    ImageSet("tiles", "Grey tiles of photographs", photograph_tiles.make_shards, main_only=True),
)
