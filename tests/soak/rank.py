"""A rank of the soak test: the real command, and a record of the samples that every step was fed.

    RANK=… WORLD_SIZE=… SOAK_KEYS=KEYS python tests/soak/rank.py --ds_config … (as launch/pretrain.py)

Writes one JSON line a micro-batch to the file KEYS_RANK.jsonl: [step, [keys]].
"""

import json
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, TextIO

from launch import pretrain
from launch.command import run_command

if TYPE_CHECKING:  # the data workers import this file too, and need not wait for it
    from trainer.data.batches import MicroBatch
    from trainer.loop import Training


def main() -> int:
    with open(f"{os.environ['SOAK_KEYS']}_{os.environ['RANK']}.jsonl", "w", buffering=1) as record:
        record_keys(record)
        return pretrain.main()


def record_keys(record: TextIO) -> None:
    """Have every training step write down what it draws from the loader."""
    from trainer.loop import Training

    plain_step = Training._train_step

    def recorded_step(training: "Training", micro_batches: "Iterator[MicroBatch]") -> None:
        step = training.step

        def told(batch: "MicroBatch") -> "MicroBatch":
            record.write(json.dumps([step, batch.keys]) + "\n")
            return batch

        plain_step(training, map(told, micro_batches))

    Training._train_step = recorded_step


if __name__ == "__main__":
    run_command(main)
