"""A lab that the tests of this folder share; where there can be none, they say why and are skipped."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.lab import Lab, why_not
from tests.launch.running import Run


@pytest.fixture(scope="session")
def lab_is_possible() -> None:
    if reason := why_not():
        pytest.skip(f"no lab of hosts here: {reason}")


@pytest.fixture(scope="module")
def lab(lab_is_possible: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Two hosts. Leave them as they were."""
    with Lab(2, tmp_path_factory.mktemp("cluster") / "lab") as lab:
        yield lab


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> Run:
    """Two ranks on this machine, without a lab, left alone: what the runs on two hosts have to equal."""
    with Run(tmp_path_factory.mktemp("reference") / "run", shards) as run:
        run.start("torchrun", "train.epochs=1")
        assert run.end() == 0, run.printed[-3000:]
        return run
