"""A training on two real ranks that the tests of interruptions start, wait for, hurt and read."""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import psutil
import torch

from tests.launch.small_recipe import small_recipe
from trainer.checkpoint.manifest import list_checkpoints
from trainer.checkpoint.reader import Checkpoint
from trainer.tracking.metrics import read_metrics

REPOSITORY = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
PROGRAM, FAULTY_PROGRAM = "launch/pretrain.py", "tests/launch/faulty_pretrain.py"


def launcher_words(launcher: str, ranks: int = 2) -> list[str]:
    """The beginning of a command line: deepspeed or torchrun, or python, which is one rank."""
    port = str(random.randrange(20000, 32000))
    return {
        "deepspeed": [str(BIN / "deepspeed"), "--num_gpus", str(ranks), "--master_port", port],
        "torchrun": [str(BIN / "torchrun"), "--nproc_per_node", str(ranks), "--master_port", port],
        "python": [sys.executable],
    }[launcher]


def launcher_environment() -> dict[str, str]:
    """This process's, without what a launcher makes, for CPU ranks of one thread."""
    made_by_launchers = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    environment = {name: value for name, value in os.environ.items() if name not in made_by_launchers}
    return environment | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PATH": f"{BIN}:{os.environ['PATH']}"}


class Run:
    """A run directory, and the processes that work on it. All of them are dead when the context ends."""

    def __init__(self, directory: Path, shards: Path, *, program: str = PROGRAM, recipe: str | None = None):
        """program, recipe (as YAML): other than those of the small pre-training."""
        self.directory, self._shards, self._program = directory, shards, program
        self._recipe = directory.with_name(directory.name + ".yaml")
        self._recipe.write_text(recipe or small_recipe())
        self.output = directory.with_name(directory.name + ".log")
        self._process: subprocess.Popen | None = None
        self._family: list[psutil.Process] = []

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(
        self,
        launcher: str,
        *overrides: str,
        ds_config: str | Path = "ds_configs/zero2_cpu.json",
        fault: str | None = None,
        ranks: int = 2,
    ) -> None:
        """launcher: deepspeed or torchrun, or python (one rank). fault: see faulty_pretrain."""
        with self.output.open("w") as output:
            self._process = subprocess.Popen(
                [*launcher_words(launcher, ranks), *self.program(*overrides, ds_config=ds_config, fault=fault)],
                env=launcher_environment() | ({"FAULT": fault} if fault else {}), cwd=REPOSITORY, stdout=output,
                stderr=subprocess.STDOUT)  # fmt: skip

    def program(self, *overrides: str, ds_config: str | Path, fault: str | None = None) -> list[str]:
        """The program and its arguments, as a launcher takes them."""
        arguments = ["--ds_config", ds_config, "--recipe", self._recipe, "--data", self._shards]
        program = FAULTY_PROGRAM if fault else self._program
        return [program, *map(str, arguments), "--output", str(self.directory), *overrides]

    def wait_for_step(self, step: int, event: str = "step") -> None:
        """Wait until that step, or a later one, is in the metrics: event = step, checkpoint, freeze, ..."""
        deadline = time.monotonic() + 600
        while not self.reached(step, event):
            assert self._launcher.poll() is None, f"ended before it could be interrupted\n{self.printed[-3000:]}"
            assert time.monotonic() < deadline, f"step {step} was not reached in time\n{self.printed[-3000:]}"
            time.sleep(0.02)
        self._family = [psutil.Process(self._launcher.pid), *self._children()]

    def reached(self, step: int, event: str = "step") -> bool:
        return any(e["event"] == event and e["step"] >= step for e in self.events())

    def rank(self, number: int) -> psutil.Process:
        """The training process of a rank: the outermost with that RANK, its data workers being below it."""
        return next(p for p in self._children() if p.environ().get("RANK") == str(number))

    @property
    def launcher(self) -> psutil.Process:
        return psutil.Process(self._launcher.pid)

    def process(self, name: str) -> psutil.Process:
        """launcher (the command), rank 0, rank 1, or deepspeed.launcher.launch: the command's child on each machine,
        which starts the ranks. A signal it sends on to each rank's whole tree, data workers too, one rank after the
        other, and kills what is left of a tree after 30 seconds."""
        if name == "launcher":
            return self.launcher
        if name.startswith("rank "):
            return self.rank(int(name.removeprefix("rank ")))
        return next(p for p in self._children() if name in p.cmdline())

    def end(self, timeout: float = 600) -> int:
        """Wait until the launcher and everything below it is gone, and return the launcher's exit code."""
        code = self._launcher.wait(timeout)
        _, alive = psutil.wait_procs(self._family, timeout=timeout)
        assert not alive, f"left behind: {alive}"
        return code

    def kill(self) -> None:
        """kill -9 of everything."""
        if self._process is None:
            return
        family = self._children()
        for member in [*family, *self._family]:
            if member.is_running():
                member.kill()
        self._launcher.kill()
        self._launcher.wait()
        psutil.wait_procs(family, timeout=30)

    @property
    def printed(self) -> str:
        return self.output.read_text(errors="replace")

    def events(self) -> list[dict]:
        return read_metrics(self.directory)

    def losses(self) -> dict[int, list]:
        """Losses by stage of every step; what was done again after a resume counts once, as it was last."""
        return {e["step"]: e["loss_stages"] for e in self.events() if e["event"] == "step"}

    def state(self) -> dict[str, torch.Tensor]:
        """Every fp32 weight and moment in the newest checkpoint."""
        checkpoint = Checkpoint(list_checkpoints(self.directory / "checkpoints")[0])
        return {
            f"{kind} {name}": checkpoint.read(kind, name, 0, torch.Size(shape).numel())
            for name, shape in checkpoint.manifest.shapes.items()
            for kind in ("master", "exp_avg", "exp_avg_sq")
            if (kind, name) in checkpoint._parts
        }

    def report(self) -> dict:
        """The report of a run that ended after too many bad steps."""
        (path,) = (self.directory / "inspection").glob("*.json")
        return json.loads(path.read_text())

    @property
    def _launcher(self) -> subprocess.Popen:
        assert self._process is not None, "not started"
        return self._process

    def _children(self) -> list[psutil.Process]:
        try:
            return psutil.Process(self._launcher.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []


def assert_same_run(run: Run, reference: Run) -> None:
    """Bit for bit: the losses of every step, every weight and every moment."""
    assert run.losses() == reference.losses()
    ours, theirs = run.state(), reference.state()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
