"""A small pre-training whose ranks are started by hand, each with the --output that it sees."""

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
RECIPE = """
model: {image_size: 64, patch_size: 16, embed_dim: 32, depth: 4, num_heads: 2, stages: [0, 1, 2, 3], decoder_dim: 32,
        decoder_heads: 2}
optimizer: {lr: 1e-3, warmup_epochs: 0.3}
data: {workers: 1, window: 4, lanes: 4}
train: {epochs: 3, global_batch: 8}
checkpoint: {every_steps: 4, keep_last: 50}
tracking: {log_every: 1, pictures: never, tensorboard: false}
"""
LAST_STEP = 54


def start(outputs: Sequence[Path], shards: Path, *overrides: str) -> list[subprocess.Popen]:
    """A rank for each of `outputs`. The recipe is written beside the folder above the first one."""
    recipe = outputs[0].parent.parent / "recipe.yaml"
    recipe.write_text(RECIPE)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    ranks = []
    for rank, output in enumerate(outputs):
        world_size = len(outputs)
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": world_size}
        ranks.append(
            subprocess.Popen(
                [sys.executable, "launch/pretrain.py", "--ds_config", "ds_configs/zero2_cpu.json", "--recipe", recipe,
                 "--data", shards, "--output", output, *overrides],
                env=os.environ | {name: str(value) for name, value in place.items()}
                | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"},
                cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            )
        )  # fmt: skip
    return ranks


def end(ranks: Sequence[subprocess.Popen]) -> list[tuple[int, str]]:
    """Exit code and output of every rank."""
    outputs = [process.communicate(timeout=200)[0] for process in ranks]
    return [(process.returncode, output) for process, output in zip(ranks, outputs, strict=True)]


def train(outputs: Sequence[Path], shards: Path, *overrides: str) -> list[tuple[int, str]]:
    return end(start(outputs, shards, *overrides))
