"""A lab that the tests of this folder share; where there can be none, they say why and are skipped."""

from collections.abc import Iterator

import pytest

from tests.cluster.lab import Lab, why_not


@pytest.fixture(scope="session")
def lab_is_possible() -> None:
    if reason := why_not():
        pytest.skip(f"no lab of hosts here: {reason}")


@pytest.fixture(scope="module")
def lab(lab_is_possible: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Two hosts. Leave them as they were."""
    with Lab(2, tmp_path_factory.mktemp("cluster") / "lab") as lab:
        yield lab
