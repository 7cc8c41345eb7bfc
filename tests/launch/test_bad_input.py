"""Bad input ends with one line that names the mend and exit code 2, before an engine is built or a file written."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from types import ModuleType

import pytest

from data_tools.__main__ import main as data_tools
from launch import command
from launch.pretrain import main
from tests.distributed import REPOSITORY, RankPool
from tests.launch.bad_inputs import COMMAND_LINE, DS_CONFIGS, LAUNCHERS, RECIPE, RECIPES, Place, Row
from tests.launch.bad_runs import DATA, DATA_TOOLS, DEEPSPEEDS_OWN, INITS, OUTPUT, RESUMES
from tests.photographs import write_class_folders

BEFORE_THE_RANKS_MEET = [
    pytest.param(row, id=f"{table}: {name}")
    for table, rows in {
        "command line": COMMAND_LINE,
        "recipe": RECIPES,
        "ds_config": DS_CONFIGS,
        "launcher": LAUNCHERS,
        "data": DATA,
    }.items()
    for name, row in rows.items()
]
LAUNCHER_MADE = re.compile("RANK|WORLD_SIZE|LOCAL_|MASTER_|SLURM_")
NOBODY = 65534


@pytest.fixture
def place(tmp_path: Path, shards: Path) -> Place:
    return sound_place(tmp_path, shards)


def sound_place(folder: Path, shards: Path) -> Place:
    place = Place(folder / "small.yaml", folder / "config.json", folder / "shards", folder / "run")
    place.recipe.write_text(RECIPE)
    place.ds_config.write_text("{}")
    shutil.copytree(shards, place.shards)
    return place


def without_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    """No variables of a launcher, and nothing to train with: what is not refused fails the test."""
    for name in filter(LAUNCHER_MADE.match, list(os.environ)):
        monkeypatch.delenv(name)
    loop = ModuleType("trainer.pretraining")
    loop.pretrain = lambda *_: pytest.fail("nothing was refused")
    monkeypatch.setitem(sys.modules, "trainer.pretraining", loop)


def refusal(arguments: list[str], environment: dict[str, str]) -> tuple[int, str, bool]:
    """Run the command in this process: its exit code, its standard error, and whether it went as far as an engine."""
    engines = []
    deepspeed = sys.modules.get("deepspeed")
    errors = StringIO()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        patch.setattr(sys, "argv", ["pretrain.py", *arguments])
        patch.setattr(command, "PATIENCE_SECONDS", 0)
        if deepspeed is not None:
            patch.setattr(deepspeed, "initialize", lambda *_, **__: engines.append("built"))
        with redirect_stderr(errors), redirect_stdout(StringIO()), pytest.raises(SystemExit) as leaving:
            command.run_command(main)
    return leaving.value.code, errors.getvalue(), bool(engines)


def assert_refused(outcome: tuple[int, str, bool], says: str, prefix: str = "error: ") -> None:
    code, errors, built = outcome
    assert code == 2, errors
    assert not built
    told = [line for line in errors.splitlines() if line.startswith("error")]
    assert len(told) == 1, errors
    assert "Traceback" not in errors
    assert told[0].startswith(prefix)
    assert re.search(says, told[0]), told[0]


@pytest.mark.parametrize("row", BEFORE_THE_RANKS_MEET)
def test_what_is_wrong_on_its_face_is_refused_before_the_ranks_meet(row: Row, place: Place, monkeypatch) -> None:
    row.spoil(place)
    without_launcher(monkeypatch)
    outcome = refusal([*place.arguments, *row.arguments], row.environment)
    assert_refused(outcome, row.says, "error" if row.environment else "error: ")
    assert outcome[1].count("\n") == 1
    assert not place.run.exists()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> Path:
    """A short run on one rank, with two checkpoints."""
    sound = sound_place(tmp_path_factory.mktemp("trained"), shards)
    done = run_command_line([sys.executable], sound.arguments)
    assert done.returncode == 0, done.stderr
    return sound.run


def clean_environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not LAUNCHER_MADE.match(name)}
    return kept | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}


def run_command_line(launcher: list[str], arguments: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*launcher, "launch/pretrain.py", *arguments],
        env=clean_environment(), cwd=REPOSITORY, capture_output=True, text=True, timeout=240,
    )  # fmt: skip


def refusal_on_a_rank(arguments: list[str]) -> tuple[int, str, bool]:
    """`refusal` on a rank of the pool, whose process group is up already."""
    return refusal(arguments, {"MASTER_PORT": "29500"})


def assert_both_refuse(two_ranks: RankPool, row: Row, place: Place) -> None:
    arguments = [*place.arguments, *(word.format(run=place.run) for word in row.arguments)]
    first, second = two_ranks.run(refusal_on_a_rank, arguments)
    assert_refused(first, row.says)
    assert_refused(second, row.says, "error on rank 1: ")  # which the launcher ends while it leaves rank 0 to speak


@pytest.mark.parametrize("row", [pytest.param(row, id=name) for name, row in (DEEPSPEEDS_OWN | OUTPUT | INITS).items()])
def test_what_only_the_ranks_can_see_is_refused_before_an_engine_is_built(
    row: Row, place: Place, two_ranks: RankPool
) -> None:
    row.spoil(place)
    assert_both_refuse(two_ranks, row, place)
    assert not place.run.is_dir()


@pytest.mark.parametrize("row", [pytest.param(row, id=name) for name, row in RESUMES.items()])
def test_a_run_that_cannot_be_continued_is_refused_and_left_as_it_is(
    row: Row, place: Place, two_ranks: RankPool, trained: Path
) -> None:
    shutil.copytree(trained, place.run)
    row.spoil(place)
    before = contents(place.run / "checkpoints")
    assert_both_refuse(two_ranks, row, place)
    assert contents(place.run / "checkpoints") == before


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize(
    "denied", ["recipe", "ds_config", "shards", "train.json", "train.offsets.npy", "train-00002.tar"]
)
def test_what_may_not_be_read_is_named(denied: str, tmp_path: Path, shards: Path, monkeypatch) -> None:
    with tempfile.TemporaryDirectory() as folder:  # pytest's own folders are closed to others
        place = sound_place(Path(folder), shards)
        named = {"recipe": place.recipe, "ds_config": place.ds_config, "shards": place.shards}
        path = named.get(denied, place.shards / denied)
        Path(folder).chmod(0o755)
        place.shards.chmod(0o755)
        path.chmod(0)
        without_launcher(monkeypatch)
        with as_nobody():
            outcome = refusal(place.arguments, {})
        assert_refused(outcome, rf"{path.name}.*(Permission denied|permission)")


@contextmanager
def as_nobody() -> Iterator[None]:
    """Root may read everything: for a moment be someone who may not."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize(("line", "says"), [pytest.param(*row, id=name) for name, row in DATA_TOOLS.items()])
def test_the_data_tools_refuse_bad_input_too(line: str, says: str, place: Place, tmp_path: Path, capsys) -> None:
    write_class_folders(tmp_path / "photographs", per_class=1, width=40, height=30)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.txt").write_text("no tar")
    shard = place.shards / "train-00003.tar"
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    places = {name: tmp_path / name for name in ("photographs", "empty", "out", "shards")}
    try:
        code = data_tools(line.format(file=tmp_path / "file.txt", **places).split())
    except SystemExit as leaving:  # argparse's own way
        code = leaving.code
    errors = capsys.readouterr().err
    assert code == 2
    assert re.search(says, errors), errors
    assert "Traceback" not in errors
    assert not list(tmp_path.glob("out/*.tar"))


def test_the_command_itself_refuses_in_one_line(place: Place) -> None:
    done = run_command_line([sys.executable], [*place.arguments, "train.epoch=3"])
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"error: .*unknown key train.epoch; did you mean 'epochs'\?\n", done.stderr)


@pytest.mark.slow
def test_two_ranks_of_a_launcher_refuse_a_resume_once_and_together(place: Place, trained: Path) -> None:
    shutil.copytree(trained, place.run)
    launcher = [str(Path(sys.executable).parent / "deepspeed"), "--num_gpus", "2", "--master_port", "29731"]
    done = run_command_line(launcher, [*place.arguments, "model.mlp_ratio=2"])
    assert done.returncode == 2
    assert done.stderr.count("model.mlp_ratio was 4.0 and is 2.0 now") == 1
    assert "Traceback" not in done.stderr
