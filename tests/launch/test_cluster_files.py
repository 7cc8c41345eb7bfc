"""The commands of docs/cluster.md and the files of launch/cluster, as far as they can be checked without a cluster.

tests/cluster runs the launchers themselves."""

import re
import shlex
import subprocess

import pytest

from launch.pretrain import RECIPES, parse_arguments
from tests.distributed import REPOSITORY

CLUSTER = REPOSITORY / "launch" / "cluster"
PROGRAM = "launch/pretrain.py"


def documented_commands() -> list[list[str]]:
    """Those of the code blocks, a line each, without comments."""
    text = (REPOSITORY / "docs" / "cluster.md").read_text().replace("\\\n", " ")
    blocks = re.findall(r"```\n(.*?)```", text, flags=re.DOTALL)
    return [shlex.split(line, comments=True) for block in blocks for line in block.splitlines()]


COMMANDS = documented_commands()


def starting_with(word: str) -> list:
    return [pytest.param(command, id=" ".join(command)[:60]) for command in COMMANDS if command[:1] == [word]]


def assert_pretrains(arguments: list[str]) -> None:
    parsed = parse_arguments(arguments)
    assert (REPOSITORY / parsed.ds_config).is_file()
    assert (RECIPES / f"{parsed.recipe}.yaml").is_file()


def after(word: str, command: list[str]) -> list[str]:
    return command[command.index(word) + 1 :]


def test_every_documented_way_to_start_is_among_them() -> None:
    assert {command[0] for command in COMMANDS} == {"python", "deepspeed", "torchrun", "sbatch", "docker", "export"}


@pytest.mark.parametrize("command", starting_with("torchrun"))
def test_torchrun_takes_its_flags_and_the_program_the_rest(command: list[str]) -> None:
    from torch.distributed.run import get_args_parser

    launched = get_args_parser().parse_args(command[1:])
    assert launched.training_script == PROGRAM
    assert_pretrains(launched.training_script_args)


@pytest.mark.parametrize("command", starting_with("deepspeed"))
def test_deepspeed_takes_its_flags_and_the_program_the_rest(command: list[str]) -> None:
    from deepspeed.launcher.runner import fetch_hostfile, parse_args

    launched = parse_args(command[1:])
    assert launched.user_script == PROGRAM
    assert_pretrains(launched.user_args)
    if "--hostfile" in command:
        assert dict(fetch_hostfile(str(REPOSITORY / launched.hostfile))) == {"node-01": 8, "node-02": 8}


@pytest.mark.parametrize("command", starting_with("sbatch"))
def test_the_batch_file_is_one_and_the_program_takes_what_follows_it(command: list[str]) -> None:
    script = "launch/cluster/pretrain.sbatch"
    assert_pretrains(after(script, command))
    text = (REPOSITORY / script).read_text()
    subprocess.run(["bash", "-n", script], cwd=REPOSITORY, check=True)
    first_command = text.index("\ncd ")
    assert all(place.start() < first_command for place in re.finditer("^#SBATCH", text, flags=re.MULTILINE))


def test_the_single_process_command_is_one_too() -> None:
    (command,) = (command for command in COMMANDS if command[:2] == ["python", PROGRAM])
    assert_pretrains(after(PROGRAM, command))


def test_the_example_environment_is_what_deepspeed_can_read() -> None:
    for line in (CLUSTER / "deepspeed_env.example").read_text().splitlines():  # it splits every line at "="
        assert re.fullmatch(r"[A-Z_]+=\S+", line)


def test_the_image_copies_what_is_there() -> None:
    lines = (CLUSTER / "Dockerfile").read_text().splitlines()
    copied = [word for line in lines if line.startswith("COPY ") for word in line.split()[1:-1]]
    assert copied
    assert all((REPOSITORY / name).exists() for name in copied)
