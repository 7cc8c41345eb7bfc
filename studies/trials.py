"""What the study runs: a trial is one policy, at one length and one seed, as a recipe for launch/pretrain.py."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

LATE = [round(0.7 + 0.025 * unit, 3) for unit in range(11)]
"""Shares of the run at which units 0 to 10 freeze, when the cosine has brought their rates down anyway."""

FADING = {"stage_weights_end": [0.0, 0.0, 1.0, 1.0]}
"""The losses of the first two stages, which cubic .8 takes away at 0.62 and 0.69 of the run, fade in a straight
line."""

POLICIES: dict[str, dict[str, Any]] = {
    "none": {"how": "none"},
    "cubic .8 scaled": {"how": "cubic", "t0": 0.8, "scale_lr": True, "warmup": "uniform"},
    "cubic .8": {"how": "cubic", "t0": 0.8, "scale_lr": False},
    "late": {"how": "steps", "steps": LATE, "scale_lr": False},
    "late scaled": {"how": "steps", "steps": LATE, "scale_lr": True, "warmup": "per_unit"},
    "cubic .8 scaled, warm": {"how": "cubic", "t0": 0.8, "scale_lr": True, "warmup": "per_unit"},
    "cubic .9": {"how": "cubic", "t0": 0.9, "scale_lr": False},
    "cubic .65": {"how": "cubic", "t0": 0.65, "scale_lr": False},
    "cubic .5": {"how": "cubic", "t0": 0.5, "scale_lr": False},
    "linear .5": {"how": "linear", "t0": 0.5, "scale_lr": False},
    "linear .8": {"how": "linear", "t0": 0.8, "scale_lr": False},
    "plasticity": {"how": "plasticity", "probe_every": 36, "patience": 2, "cool_down": 36},
    "plasticity, eager": {"how": "plasticity", "probe_every": 18, "patience": 1, "cool_down": 18, "tolerance": 0.6},
    "none, stages fade": {"how": "none"},
}
"""Name in tables and pictures → section `freezing` of the recipe. What is not called scaled is unscaled."""

CONTRASTED = {"cubic .8": (5, 6), "cubic .8 scaled": (5, 6), "late": (43, 48), "late scaled": (43, 48)}
"""The policies that every seed runs, each with what it costs over no freezing, in matmul FLOPs, to 0.2 %: an unfrozen
run of so many of the steps is as dear."""

FINETUNED = "cubic .8"
"""The policy of the main contrast that is compared by fine-tuning as well, with its unfrozen rivals and with the first
budget alone: it takes longer than the runs themselves."""

WITH_LONGEST_BUDGET = ("late", "cubic .8")
"""Policies of the main contrast that have the last budget as well."""

WITH_EVERY_SEED = ("cubic .9", "plasticity", "none, stages fade")
"""Of the other policies those that every seed runs: to see why freezing loses, and when it does not."""

BUDGETS = (720, 1440, 2880)
QUICK_BUDGETS = (24,)

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
CROP_SCALE = [0.6, 1.0]


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
    def model(self) -> dict[str, Any]:
        """Section `model` of the recipe."""
        return (TINY_MODEL if self.quick else MODEL) | (FADING if self.policy.endswith("fade") else {})

    @property
    def is_planned(self) -> bool:
        """Whether it is known in advance when units freeze."""
        return bool(POLICIES[self.policy]["how"] != "plasticity")

    @property
    def every(self) -> int:
        """Steps between two checkpoints."""
        return max(1, self.steps // STOPS)

    @property
    def has_curve(self) -> bool:
        """Whether its checkpoints on the way are judged as well: an unfrozen run over a whole budget."""
        return self.policy == "none" and self.steps in (*BUDGETS, *QUICK_BUDGETS)

    @property
    def finetuned_at(self) -> set[int]:
        """The steps whose checkpoints are fine-tuned: of `FINETUNED` and of its rivals at equal cost the last, and of
        the unfrozen run that which had cost as much."""
        first = QUICK_BUDGETS[0] if self.quick else BUDGETS[0]
        rival = shortened(FINETUNED, first)
        return {
            (FINETUNED, first): {first},
            ("none", first): {rival, first},
            ("none", rival): {rival},
        }.get((self.policy, self.steps), set())

    def recipe(self, steps_per_epoch: int) -> dict[str, Any]:
        """Sections and keys, on data of so many steps an epoch."""
        epochs = self.steps / steps_per_epoch
        return {
            "model": self.model,
            "freezing": POLICIES[self.policy],
            "optimizer": {
                "lr": 2e-3,
                "min_lr": 1e-6,
                "weight_decay": 0.05,
                "warmup_epochs": WARMUP_SHARE * epochs,
            },
            "data": {"workers": 0, "crop_scale": CROP_SCALE},
            "train": {"epochs": epochs, "global_batch": GLOBAL_BATCH, "seed": self.seed, "hang_timeout": 0},
            "checkpoint": {
                "every_steps": self.every,
                "keep_last": 1,
                "keep_every": self.every if self.has_curve else 0,
            },
            "tracking": {"log_every": 20, "pictures": "never", "tensorboard": False},
        }


def shortened(policy: str, steps: int) -> int:
    """Steps of the unfrozen run that costs as much as that policy of `CONTRASTED` over `steps`."""
    part, whole = CONTRASTED[policy]
    return steps * part // whole


def main_contrast(steps: int, seed: int, *, quick: bool = False) -> list[Trial]:
    policies = WITH_LONGEST_BUDGET if steps == BUDGETS[-1] else tuple(CONTRASTED)
    lengths = [("none", steps), *((policy, steps) for policy in policies)]
    lengths += [("none", shortened(policy, steps)) for policy in policies]
    return [Trial(policy, length, seed, quick) for policy, length in dict.fromkeys(lengths)]


def all_trials(budgets: Sequence[int], seeds: int, *, others: bool, quick: bool = False) -> list[Trial]:
    """In the order in which they are run: the main contrast of the first budget comes first. `others`: the policies
    that are not in it as well, with the first budget, with one seed unless `WITH_EVERY_SEED` names them."""
    first, *longer = budgets
    trials = [trial for seed in range(seeds) for trial in main_contrast(first, seed, quick=quick)]
    if others:
        trials += [
            Trial(policy, first, seed, quick)
            for policy in POLICIES
            if policy not in ("none", *CONTRASTED)
            for seed in range(seeds if policy in WITH_EVERY_SEED else 1)
        ]
    return trials + [trial for budget in longer for seed in range(seeds) for trial in main_contrast(budget, seed)]
