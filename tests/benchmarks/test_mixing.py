"""The orders that are compared are those that training would see."""

import numpy as np

from benchmarks.mixing import lanes_order, mixing_section, neighbour_distances, webdataset_order
from tests.data.test_order import sample_at
from trainer.data.order import LaneOrder

EDGES = np.array([0, 41, 42, 60, 97, 105, 150])


def test_the_lanes_are_those_of_training():
    order = LaneOrder(EDGES[1:] - EDGES[:-1], seed=0, global_batch=16, lanes=None, window=4)
    expected = [sample_at(order, 0, position) for position in range(order.steps_per_epoch * 16)]
    assert lanes_order(EDGES, 16, window=4).tolist() == expected


def test_webdatasets_ranks_and_workers_share_no_sample():
    edges = np.arange(0, 1601, 100)
    order = webdataset_order(edges, global_batch=40, ranks=2, workers=2)
    assert len(order) == len(set(order.tolist())) == 1600
    # Rank 0's first worker has every fourth shard of the shuffled list; its first batch comes from no other.
    first = {sample // 100 for sample in order[:20].tolist()}
    second = {sample // 100 for sample in order[20:40].tolist()}
    assert len(first) <= 4
    assert not first & second


def test_neighbours_are_counted_where_both_are_in_the_epoch():
    assert neighbour_distances(np.arange(10), 10).tolist() == [1] * 9
    assert neighbour_distances(np.array([3, 0, 1]), 5).tolist() == [1]


def test_a_permutation_takes_neighbours_further_apart_than_one_shuffled_stream():
    section = mixing_section(60_000, 64, 512, picture=None)
    medians = {row[0]: int(row[4].replace(",", "")) for row in section.rows}
    assert medians["full permutation"] > medians["webdataset shuffle(5000), 1 stream"]
