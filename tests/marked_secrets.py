"""Commands that are given secrets, all with one mark in them, and the places in which the mark turns up."""

import subprocess
import sys
from pathlib import Path

from tests.distributed import REPOSITORY
from tests.launch.running import launcher_environment

MARK = b"0f1e2d3c"  # in every secret here, and nowhere else
SECRETS = {"AWS_SECRET_ACCESS_KEY": "aws-0f1e2d3c", "HF_TOKEN": "hf_0f1e2d3c", "WANDB_API_KEY": "wandb-0f1e2d3c"}
QUERY = "X-Signature=sign-0f1e2d3c"


def with_secrets(address: str) -> str:
    """The URL of `host:port/path` with a password and a signature."""
    return f"http://someone:pass-0f1e2d3c@{address}?{QUERY}"


def run_with_secrets(program: str, arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """A program of `launch`, with secrets in its environment."""
    command = [sys.executable, f"launch/{program}.py", *arguments]
    environment = launcher_environment() | SECRETS
    return subprocess.run(command, env=environment, cwd=REPOSITORY, capture_output=True, text=True, timeout=240)


def require_no_secret(done: subprocess.CompletedProcess[str], run: Path) -> None:
    """Neither in what the command printed nor in any file of the run directory."""
    assert done.returncode == 0, done.stderr
    files = [path for path in run.rglob("*") if path.is_file()]
    assert {"environment.json", "recipe.yaml", "metrics.jsonl", "manifest.json"} <= {path.name for path in files}
    assert any("tfevents" in path.name for path in files)
    said = {"stdout": done.stdout.encode(), "stderr": done.stderr.encode()}
    telling = said | {str(path): path.read_bytes() for path in files}
    assert not [place for place, content in telling.items() if MARK in content]
