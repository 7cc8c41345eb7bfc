"""The two measures of a checkpoint."""

import pytest
import torch

from studies.judge import accuracy, linear_probe
from trainer.evaluation.features import Features


def features(rows: torch.Tensor, labels: torch.Tensor) -> Features:
    return Features({"mean": rows}, labels, torch.arange(len(rows)))


@pytest.fixture
def separable():
    """Four classes at the corners of a square, of which the second pair differs from the first in length alone."""
    random = torch.Generator().manual_seed(0)
    labels = torch.arange(400) % 4
    centres = torch.tensor([[1.0, 0.0], [0.0, 1.0], [4.0, 0.0], [0.0, 4.0]])
    return centres[labels] + 0.1 * torch.randn(400, 2, generator=random), labels


def test_separable_classes_are_told_apart_by_the_probe_and_directions_by_the_neighbours(separable):
    rows, labels = separable
    found = accuracy(features(rows[:300], labels[:300]), features(rows[300:], labels[300:]))
    assert found.linear == 1.0
    assert 0.4 < found.knn < 0.9  # cosine does not see length
    directions = accuracy(features(rows[:300], labels[:300] % 2), features(rows[300:], labels[300:] % 2))
    assert directions.knn == 1.0


def test_shuffled_labels_are_worth_chance(separable):
    rows, labels = separable
    mixed = labels[torch.randperm(400, generator=torch.Generator().manual_seed(1))]
    found = accuracy(features(rows[:300], mixed[:300]), features(rows[300:], labels[300:]))
    assert found.linear < 0.45
    assert found.knn < 0.45


def test_the_probe_finds_the_same_every_time(separable):
    rows, labels = separable
    noisy = rows + 2 * torch.randn(400, 2, generator=torch.Generator().manual_seed(2))
    once, again = (linear_probe(noisy[:300], labels[:300], noisy[300:], labels[300:]) for _ in range(2))
    assert once == again < 1.0
