"""What the study runs: a trial is one policy, at one length and one seed, as a recipe for launch/pretrain.py."""

from dataclasses import dataclass
from typing import Any

LATE = [round(0.7 + 0.025 * unit, 3) for unit in range(11)]
"""Shares of the run at which units 0 to 10 freeze, when the cosine has brought their rates down anyway."""

POLICIES: dict[str, dict[str, Any]] = {
    "none": {"how": "none"},
    "cubic .8 scaled": {"how": "cubic", "t0": 0.8, "scale_lr": True, "warmup": "uniform"},
    "cubic .8": {"how": "cubic", "t0": 0.8, "scale_lr": False},
    "cubic .8 scaled, warm": {"how": "cubic", "t0": 0.8, "scale_lr": True, "warmup": "per_unit"},
    "cubic .9": {"how": "cubic", "t0": 0.9, "scale_lr": False},
    "cubic .65": {"how": "cubic", "t0": 0.65, "scale_lr": False},
    "cubic .5": {"how": "cubic", "t0": 0.5, "scale_lr": False},
    "linear .5": {"how": "linear", "t0": 0.5, "scale_lr": False},
    "linear .8": {"how": "linear", "t0": 0.8, "scale_lr": False},
    "late": {"how": "steps", "steps": LATE, "scale_lr": False},
    "late scaled": {"how": "steps", "steps": LATE, "scale_lr": True, "warmup": "per_unit"},
}
"""Name in tables and pictures → section `freezing` of the recipe. What is not called scaled is unscaled."""

BUDGETS = (720, 1440)
QUICK_BUDGETS = (24,)
FROZEN_COST = (5, 6)
"""Cost of cubic 0.8 over that of no freezing, in matmul FLOPs, to 0.2 %: an unfrozen run of 5/6 of the steps is as
dear, and so is one that is stopped there, where a checkpoint is."""

GLOBAL_BATCH = 32
WARMUP_SHARE = 0.1  # as 10 of 100 epochs in the published runs
STOPS = 12  # checkpoints of a run, evenly spaced

MODEL: dict[str, Any] = {
    "image_size": 32,
    "patch_size": 8,
    "embed_dim": 64,
    "depth": 12,
    "num_heads": 4,
    "decoder_dim": 32,
    "decoder_heads": 2,
}
"""LocalMIM with its published stages and scales. Freezing saves about as much of its matmul FLOPs as of ViT-B's."""

TINY_MODEL = MODEL | {"embed_dim": 16, "num_heads": 2, "decoder_dim": 16}


@dataclass(frozen=True)
class Trial:
    policy: str
    steps: int
    seed: int
    quick: bool = False

    @property
    def name(self) -> str:
        """Of its folder."""
        words = self.policy.replace(",", "").replace(".", "0.").split()
        return "-".join([*words, f"{self.steps}steps", f"seed{self.seed}"])

    @property
    def every(self) -> int:
        """Steps between two checkpoints."""
        return max(1, self.steps // STOPS)

    @property
    def has_curve(self) -> bool:
        """Whether its checkpoints on the way are judged as well: an unfrozen run over a whole budget."""
        return self.policy == "none" and self.steps in (*BUDGETS, *QUICK_BUDGETS)

    def recipe(self, steps_per_epoch: int) -> dict[str, Any]:
        """Sections and keys, on data of so many steps an epoch."""
        epochs = self.steps / steps_per_epoch
        return {
            "model": TINY_MODEL if self.quick else MODEL,
            "freezing": POLICIES[self.policy],
            "optimizer": {
                "lr": 2e-3,
                "min_lr": 1e-6,
                "weight_decay": 0.05,
                "warmup_epochs": WARMUP_SHARE * epochs,
            },
            "data": {"workers": 0, "crop_scale": [0.6, 1.0]},
            "train": {"epochs": epochs, "global_batch": GLOBAL_BATCH, "seed": self.seed, "hang_timeout": 0},
            "checkpoint": {
                "every_steps": self.every,
                "keep_last": 1,
                "keep_every": self.every if self.has_curve else 0,
            },
            "tracking": {"log_every": 20, "pictures": "never", "tensorboard": False},
        }


MAIN_FROZEN = ("cubic .8", "cubic .8 scaled")


def shortened(steps: int) -> int:
    """Steps of the unfrozen run that costs as much as cubic 0.8 over `steps`."""
    return steps * FROZEN_COST[0] // FROZEN_COST[1]


def main_contrast(steps: int, seed: int, *, quick: bool = False) -> list[Trial]:
    lengths = [("none", steps), *((policy, steps) for policy in MAIN_FROZEN), ("none", shortened(steps))]
    return [Trial(policy, length, seed, quick) for policy, length in lengths]


def all_trials(seeds: int, *, quick: bool = False) -> list[Trial]:
    """In the order in which they are run: the main contrast of the first budget comes first. Quick: little else."""
    if quick:
        return [trial for seed in range(seeds) for trial in main_contrast(QUICK_BUDGETS[0], seed, quick=True)]
    first, *longer = BUDGETS
    trials = [trial for seed in range(seeds) for trial in main_contrast(first, seed)]
    trials += [Trial(policy, first, 0) for policy in POLICIES if policy not in ("none", *MAIN_FROZEN)]
    trials += [trial for budget in longer for seed in range(seeds) for trial in main_contrast(budget, seed)]
    return trials
