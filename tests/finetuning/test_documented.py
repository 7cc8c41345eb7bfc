"""The commands of docs/finetuning.md, through the deepspeed launcher on two ranks."""

import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.checkpoint.tensors import write_by_hand
from tests.distributed import REPOSITORY
from trainer.model.localmim import LocalMIM
from trainer.recipe import load_recipe
from trainer.tracking.metrics import read_metrics

BIN = Path(sys.executable).parent
SHORT = "train.epochs=1 optimizer.warmup_epochs=0.3 tracking.log_every=1"


def documented(language: str) -> str:
    (block,) = re.findall(rf"```{language}\n(.*?)```", (REPOSITORY / "docs/finetuning.md").read_text(), re.DOTALL)
    return block


@pytest.mark.slow
def test_the_documented_commands_run(split: Path, tmp_path: Path) -> None:
    model = load_recipe("demo", [], REPOSITORY / "launch/recipes").model
    torch.manual_seed(0)
    weights = {name: parameter.detach() for name, parameter in LocalMIM(model).named_parameters()}
    start = tmp_path / "pretrained"
    write_by_hand(start / "checkpoints", 5, weights, recipe={"model": model.model_dump(mode="json")})
    train, export = documented("bash").splitlines()
    train = train.replace("PRETRAINED_RUN", str(start)).replace("SHARDS", str(split))
    train = train.replace("--output RUN", f"--output {tmp_path / 'run'}")
    export = export.replace("RUN", str(tmp_path / "run")).replace("classifier", str(tmp_path / "classifier"))
    train = train.replace("deepspeed", f"deepspeed --master_port {random.randrange(20000, 32000)}", 1)
    made_by_launchers = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    environment = {name: value for name, value in os.environ.items() if name not in made_by_launchers} | {
        "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PATH": f"{BIN}:{os.environ['PATH']}",
        "PYTHONPATH": str(REPOSITORY)}  # fmt: skip
    for line in (f"{train} {SHORT}", export):
        done = subprocess.run(
            line.split(), cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=400
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    events = read_metrics(tmp_path / "run")
    assert {event["event"] for event in events} == {"start", "step", "evaluation", "checkpoint", "end"}
    (evaluation,) = (event for event in events if event["event"] == "evaluation")
    assert evaluation["images"] == 53
    assert {path.name for path in (tmp_path / "run").iterdir()} >= {"recipe.yaml", "ds_config.json", "tensorboard"}
    program = documented("python").replace("classifier.safetensors", str(tmp_path / "classifier.safetensors"))
    exec(compile(program, "docs/finetuning.md", "exec"), {})
