"""A lab that the tests of this folder share; where there can be none, they say why and are skipped."""

import json
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.cluster.lab import Lab, why_not
from tests.cluster.launching import LENGTH
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
def ds_configs(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """A ds_config for each ZeRO stage."""
    folder = tmp_path_factory.mktemp("ds_configs")
    paths = {stage: folder / f"zero{stage}.json" for stage in (1, 2, 3)}
    for stage, path in paths.items():
        path.write_text(json.dumps({"zero_optimization": {"stage": stage}}))
    return paths


@pytest.fixture(scope="session")
def references(
    tmp_path_factory: pytest.TempPathFactory, shards: Path, ds_configs: dict[int, Path]
) -> Callable[[int], Run]:
    """The run of a ZeRO stage, left alone, two ranks on this machine and no lab: what two hosts have to equal."""

    @cache
    def reference(stage: int) -> Run:
        with Run(tmp_path_factory.mktemp("reference") / "run", shards) as run:
            run.start("torchrun", LENGTH, ds_config=ds_configs[stage])
            assert run.end() == 0, run.printed[-3000:]
            return run

    return reference
