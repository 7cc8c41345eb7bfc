"""launch/pretrain.py with one fault built in: what no signal from outside can time exactly.

FAULT=nan:3-7        the loss of rank 1 (of the only rank, if there is one) is NaN in steps 3 to 7 (1 = the first)
FAULT=sleep:5        rank 1 sleeps for ever in the forward of step 5
FAULT=slow:1-9       rank 1 takes a quarter of a second longer in the forward of steps 1 to 9
FAULT=skip:5         rank 1 sleeps for ever in the backward of step 5, in which rank 0 waits for its gradients
FAULT=raise:5        rank 1 raises in step 5
FAULT=kill-freeze:1  rank 1 dies of SIGKILL in the middle of its first freeze; kill-freeze:all: both do
"""

import os
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from launch.command import run_command
from launch.pretrain import main


def install(fault: str, argument: str) -> None:
    import torch

    from trainer.engine.engine import FreezingEngine
    from trainer.engine.internals import rebuild

    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if rank != min(1, world_size - 1) and argument != "all":
        return

    def step_of(engine: FreezingEngine) -> int:
        return engine.global_steps + 1

    if fault == "kill-freeze":
        destroy = rebuild._destroy_wrapper

        def die(engine: object) -> None:
            destroy(engine)
            os.kill(os.getpid(), signal.SIGKILL)

        rebuild._destroy_wrapper = die
        return
    first, last = (int(number) for number in (argument.split("-") * 2)[:2])
    forward, backward = FreezingEngine.forward, FreezingEngine.backward

    def faulty_forward(self: FreezingEngine, *inputs: torch.Tensor) -> tuple:
        if first <= step_of(self) <= last and fault == "sleep":
            time.sleep(3600)
        if first <= step_of(self) <= last and fault == "slow":
            time.sleep(0.25)
        if first <= step_of(self) <= last and fault == "raise":
            raise RuntimeError("the fault of this test")
        loss, stages = forward(self, *inputs)
        if first <= step_of(self) <= last and fault == "nan":
            return loss * torch.nan, stages * torch.nan
        return loss, stages

    def faulty_backward(self: FreezingEngine, loss: torch.Tensor) -> None:
        if first <= step_of(self) <= last and fault == "skip":
            time.sleep(3600)
        backward(self, loss)

    FreezingEngine.forward, FreezingEngine.backward = faulty_forward, faulty_backward


if __name__ == "__main__":
    if "FAULT" in os.environ:
        install(*os.environ["FAULT"].split(":"))
    run_command(main)
