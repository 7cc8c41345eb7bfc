"""k-nearest-neighbour classification on frozen features, exact.

A query's class is voted on by its k nearest neighbours in the bank by cosine similarity s, each with weight exp(s / T)
(arXiv 1805.01978 section 3.4). Every query is compared with the whole bank, in pieces, so that memory stays bounded.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.evaluation.collectives import rank_and_world_size, sum_over_ranks

QUERIES_AT_ONCE = 256
BANK_AT_ONCE = 65536


@dataclass(frozen=True)
class KnnAccuracy:
    """Shares of the queries whose class got the most votes, and whose class is among the five with the most.

    NaN where features were not finite. A class without a vote is no answer."""

    k: int
    temperature: float
    top1: float
    top5: float


def knn_accuracies(
    bank: Tensor,
    bank_labels: Tensor,
    queries: Tensor,
    query_labels: Tensor,
    *,
    ks: Sequence[int],
    temperatures: Sequence[float],
    progress: Callable[[int], None] = lambda done: None,
) -> list[KnnAccuracy]:
    """Accuracy for every k and temperature, from one search for the largest k. Collective.

    Every rank holds all of bank fp32 [N, D] and queries fp32 [Q, D] with their labels int64 [N], [Q], and searches for a
    share of the queries. These are dealt out in pieces whose borders do not depend on the number of ranks, so neither
    does the result. A k above N means all N. Takes about 6 · 256 · 65536 bytes beside the features.

    progress: told how many queries are done, as far as this rank knows."""
    if not (bank.isfinite().all() and queries.isfinite().all()):
        return [KnnAccuracy(k, t, float("nan"), float("nan")) for k in ks for t in temperatures]
    rank, world_size = rank_and_world_size()
    num_classes = int(torch.maximum(bank_labels.max(), query_labels.max())) + 1
    correct = torch.zeros(len(ks), len(temperatures), 2, dtype=torch.int64, device=bank.device)
    bank = F.normalize(bank, dim=1)
    pieces = range(0, len(queries), QUERIES_AT_ONCE)
    for number, first in enumerate(pieces):
        if number % world_size != rank:
            continue
        piece = slice(first, first + QUERIES_AT_ONCE)
        similarities, neighbours = nearest(bank, F.normalize(queries[piece], dim=1), max(ks))
        labels = bank_labels[neighbours]
        for i, k in enumerate(ks):
            for j, temperature in enumerate(temperatures):
                votes = weighted_votes(similarities[:, :k], labels[:, :k], temperature, num_classes)
                correct[i, j] += count_hits(votes, query_labels[piece])
        progress(min((number + 1) * QUERIES_AT_ONCE, len(queries)))
    shares = (sum_over_ranks(correct).double() / len(queries)).tolist()
    return [
        KnnAccuracy(k, temperature, *shares[i][j])
        for i, k in enumerate(ks)
        for j, temperature in enumerate(temperatures)
    ]


def nearest(bank: Tensor, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Cosine similarities fp32 [Q, k], falling, and places in the bank int64 [Q, k] of the k nearest.

    bank [N, D] and queries [Q, D] have rows of length 1. Which of equally near neighbours comes in is left to
    torch.topk, the same each time."""
    best = queries.new_empty(len(queries), 0)
    places = torch.empty(len(queries), 0, dtype=torch.int64, device=queries.device)
    for first in range(0, len(bank), BANK_AT_ONCE):
        piece = bank[first : first + BANK_AT_ONCE]
        values, found = (queries @ piece.T).topk(min(k, len(piece)), dim=1)
        best, places = torch.cat([best, values], dim=1), torch.cat([places, found + first], dim=1)
        best, kept = best.topk(min(k, best.shape[1]), dim=1)
        places = places.gather(1, kept)
    return best, places


def weighted_votes(similarities: Tensor, labels: Tensor, temperature: float, num_classes: int) -> Tensor:
    """Votes float64 [Q, classes] of neighbours [Q, k], each row up to a factor: a small temperature overflows nothing,
    for the nearest neighbour's weight is made 1."""
    weights = ((similarities - similarities[:, :1]).double() / temperature).exp()
    return weights.new_zeros(len(labels), num_classes).scatter_add_(1, labels, weights)


def count_hits(scores: Tensor, labels: Tensor) -> Tensor:
    """int64 [2]: how many rows of scores [Q, classes] have their label first, and among the first five, with a score
    above 0."""
    values, classes = scores.topk(min(5, scores.shape[1]), dim=1)
    hits = (classes == labels[:, None]) & (values > 0)
    return torch.stack([hits[:, 0].sum(), hits.sum()])
