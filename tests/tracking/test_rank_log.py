"""What goes to the console and what to a rank's own file: in a process of its own, since logging is one per process."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.distributed import REPOSITORY

PROGRAM = """
import logging, sys, warnings
from pathlib import Path
from trainer.tracking.console import Console
from trainer.tracking.rank_log import complain, open_rank_log, start_rank_log

deepspeed = logging.getLogger("DeepSpeed")
deepspeed.propagate = False
deepspeed.addHandler(logging.StreamHandler(sys.stdout))
start_rank_log()
Console(1).say("before the file is known")
deepspeed.warning("chatter")
open_rank_log(Path(sys.argv[1]), rank=1, world_size=2, host="node-2")
deepspeed.error("broken")
warnings.warn("deprecated")
logging.getLogger("trainer.data").warning("a damaged sample")
Console(1).say("silent")
Console(0).say("spoken")
complain("a report")
raise RuntimeError("the end")
"""


def _run(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", PROGRAM, str(folder)], cwd=REPOSITORY, capture_output=True, text=True)


def test_the_console_gets_what_a_person_has_to_know_and_the_file_gets_all(tmp_path: Path) -> None:
    done = _run(tmp_path)
    assert done.stdout[len("[12:00:00] ") :] == "spoken\n"
    assert done.stderr.startswith("broken\na damaged sample\na report\nTraceback")
    text = (tmp_path / "rank_00001.log").read_text()
    told = ["=== rank 1 of 2 on node-2", "before the file is known", "chatter", "broken", "deprecated",
            "a damaged sample", "silent", "spoken", "a report", "RuntimeError: the end"]  # fmt: skip
    places = [text.index(line) for line in told]
    assert places == sorted(places)


def test_a_restart_adds_to_the_file(tmp_path: Path) -> None:
    for _ in range(2):
        _run(tmp_path)
    assert (tmp_path / "rank_00001.log").read_text().count("=== rank 1 of 2") == 2


@pytest.mark.parametrize("target", ["/dev/full", "/nowhere/at/all"])
def test_a_file_that_cannot_be_written_ends_nothing_and_says_nothing(tmp_path: Path, target: str) -> None:
    (tmp_path / "rank_00001.log").symlink_to(target)
    done = _run(tmp_path)
    assert "Logging error" not in done.stderr
    assert "OSError" not in done.stderr
    assert "FileNotFound" not in done.stderr
    assert done.stderr.rstrip().endswith("RuntimeError: the end")
