"""Exact k-NN equals a search by brute force in float64, in pieces, on any number of ranks."""

import math
from functools import cache

import numpy as np
import pytest
import torch

from tests.distributed import RankPool
from trainer.evaluation import knn
from trainer.evaluation.knn import KnnAccuracy, knn_accuracies, weighted_votes

KS, TEMPERATURES, CLASSES = [1, 4, 23, 1000], [0.02, 0.07, 1.0], 7


def known_features(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Bank [150, 16] and queries [61, 16] with labels: around class centres, but so wide that many are mistaken."""
    random = np.random.default_rng(seed)
    centres = random.normal(size=(CLASSES, 16))
    labels = [torch.from_numpy(random.integers(0, CLASSES, n)) for n in (150, 61)]
    rows = [torch.from_numpy(centres[each] + 1.5 * random.normal(size=(len(each), 16))).float() for each in labels]
    return rows[0], labels[0], rows[1] * 3, labels[1]


@cache
def by_brute_force(k: int, temperature: float) -> KnnAccuracy:
    bank, bank_labels, queries, labels = (tensor.numpy().astype(np.float64) for tensor in known_features())
    first = five = 0
    for query, label in zip(queries, labels, strict=True):
        similar = [float(row @ query) / math.sqrt(float((row @ row) * (query @ query))) for row in bank]
        votes = dict.fromkeys(range(CLASSES), 0.0)
        for place in sorted(range(len(bank)), key=lambda i: -similar[i])[:k]:
            votes[int(bank_labels[place])] += math.exp(similar[place] / temperature)
        ranking = [each for each in sorted(votes, key=lambda each: -votes[each]) if votes[each] > 0]
        first += ranking[0] == label
        five += label in ranking[:5]
    return KnnAccuracy(k, temperature, first / len(queries), five / len(queries))


def search(queries_at_once: int = 16, bank_at_once: int = 37) -> list[KnnAccuracy]:
    """Runs on a rank, or in this process."""
    before = knn.QUERIES_AT_ONCE, knn.BANK_AT_ONCE
    knn.QUERIES_AT_ONCE, knn.BANK_AT_ONCE = queries_at_once, bank_at_once
    try:
        return knn_accuracies(*known_features(), ks=KS, temperatures=TEMPERATURES)
    finally:
        knn.QUERIES_AT_ONCE, knn.BANK_AT_ONCE = before


@pytest.mark.parametrize(("queries_at_once", "bank_at_once"), [(16, 37), (1, 3), (256, 65536)])
def test_every_k_and_temperature_equals_brute_force(queries_at_once: int, bank_at_once: int) -> None:
    found = search(queries_at_once, bank_at_once)
    expected = [by_brute_force(k, temperature) for k in KS for temperature in TEMPERATURES]
    assert found == expected
    assert len({each.top1 for each in found}) > 3, "the sweep makes a difference on these features"
    assert all(each.top1 < each.top5 < 1 for each in found if each.k == 4)


def test_ranks_share_the_queries_and_find_the_same(two_ranks: RankPool) -> None:
    for found in two_ranks.run(search):
        assert found == search()


def test_a_small_temperature_overflows_nothing() -> None:
    similarities = torch.tensor([[1.0, 0.999, -1.0]])
    votes = weighted_votes(similarities, torch.tensor([[0, 1, 2]]), 1e-4, 3)
    assert votes.isfinite().all()
    assert votes[0, 0] == 1
    assert votes[0, 1].item() == pytest.approx(math.exp(-10), rel=1e-2)


def test_a_class_without_a_vote_is_no_answer() -> None:
    rows = torch.eye(4)
    (found,) = knn_accuracies(
        rows, torch.tensor([2, 2, 2, 2]), rows, torch.tensor([2, 0, 1, 3]), ks=[3], temperatures=[0.07]
    )
    assert (found.top1, found.top5) == (0.25, 0.25)


def test_features_that_are_not_finite_give_no_figure() -> None:
    bank, bank_labels, queries, labels = known_features()
    queries[3, 2] = math.nan
    (found,) = knn_accuracies(bank, bank_labels, queries, labels, ks=[5], temperatures=[0.07])
    assert math.isnan(found.top1)
    assert math.isnan(found.top5)
