"""The tiny training that the tests of whole runs share: 18 steps an epoch of the tests' 150 photographs."""

from typing import Any

import yaml

SMALL: dict[str, dict[str, Any]] = {
    "model": {
        "image_size": 64,
        "patch_size": 16,
        "embed_dim": 32,
        "depth": 4,
        "num_heads": 2,
        "stages": [0, 1, 2, 3],
        "decoder_dim": 32,
        "decoder_heads": 2,
    },
    "freezing": {"how": "cubic", "t0": 0.8},
    "optimizer": {"lr": 1e-3, "warmup_epochs": 0.3, "clip_grad": 1.0},
    "data": {"workers": 1, "window": 4, "lanes": 4},
    "train": {"epochs": 3, "global_batch": 8},
    "checkpoint": {"every_steps": 5, "keep_last": 3},
    "tracking": {"log_every": 1, "pictures": "never", "tensorboard": False},
}


def small_recipe(**changes: dict[str, Any]) -> str:
    """The recipe as YAML. A change is a section, with the keys that are other than above, or than the defaults."""
    sections = {name: SMALL.get(name, {}) | changes.get(name, {}) for name in (*SMALL, *changes)}
    return yaml.safe_dump(sections, sort_keys=False)
