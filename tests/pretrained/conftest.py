"""Recordings of the published code, and a run of this program."""

from pathlib import Path

import pytest

from tests.model.golden import GOLDEN_DIR, GoldenCase, read_golden
from tests.pretrained.models import MODEL, write_run
from trainer.model.localmim import LocalMIM


@pytest.fixture(scope="session", params=sorted(GOLDEN_DIR.glob("localmim_*.npz")), ids=lambda path: path.stem)
def golden(request: pytest.FixtureRequest) -> GoldenCase:
    return read_golden(request.param)


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, LocalMIM]:
    """A run directory with a checkpoint at step 10, and the model in it. Read-only."""
    directory = tmp_path_factory.mktemp("pretrained") / "run"
    return directory, write_run(directory, MODEL)
