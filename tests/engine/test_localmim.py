"""LocalMIM on the engine: uint8 in, stages dropped with their units, any ZeRO stage and precision."""

import pytest

from tests.distributed import RankPool
from tests.engine.cases import Setting
from tests.engine.localmim_case import train_localmim


@pytest.mark.parametrize(
    "setting",
    [Setting(0, "bf16"), Setting(1, "bf16"), Setting(2, "fp32"), Setting(2, "fp16"), Setting(3, "bf16")],
    ids=str,
)
def test_localmim_trains_through_every_freeze(two_ranks: RankPool, setting: Setting) -> None:
    for found in two_ranks.run(train_localmim, setting, 9):
        assert found["finite"]
        assert found["stage_counts"] == [4, 4, 4, 3, 3, 2, 2, 1, 1]  # unit 0 carries no stage
        assert found["shown_stages"] == 1
        assert found["moved"] == []
        if setting.precision != "fp16":  # whose first updates may all be skipped, before moments exist
            assert found["bytes"] == found["expected_bytes"]
