"""Sizes of ZeRO's parts, against counting element by element."""

import pytest

from trainer.planning.partitions import most_elements_touched, part_elements


@pytest.mark.parametrize("world_size", [1, 2, 3, 7, 64])
def test_a_rank_touches_every_parameter_that_overlaps_its_part(world_size: int) -> None:
    groups = [[5, 1, 40, 3], [2], [17, 17, 1]]
    touched = [0] * world_size
    for sizes in groups:
        owner = [index for index, size in enumerate(sizes) for _ in range(size)]
        part = part_elements(sizes, 1, world_size)
        for rank in range(world_size):
            touched[rank] += sum(sizes[index] for index in set(owner[rank * part : (rank + 1) * part]))
    assert most_elements_touched(groups, world_size) == max(touched)


def test_parts_are_padded_by_group_or_by_parameter() -> None:
    sizes = [5, 4]
    assert [part_elements(sizes, stage, 4) for stage in range(4)] == [9, 4, 4, 3]
