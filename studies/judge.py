"""Held-out accuracy of checkpoints, by two measures that train no encoder."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.data.shard_index import ShardIndex
from trainer.evaluation.encoder import Encoder
from trainer.evaluation.features import Features, extract_features
from trainer.evaluation.knn import knn_accuracies
from trainer.pretrained import Pretrained, build_vit, load_into

NEIGHBOURS, TEMPERATURE = 20, 0.07  # arXiv 2104.14294's
BANK = 5_000
"""Training images, evenly spread over the shards, that neighbours are looked for among and the probe is trained on."""
HELD_OUT = 5_000
"""Test images, evenly spread as well."""
_BATCH = 256
_PROBE_DECAY = 1e-4
_PROBE_STEPS = 100


@dataclass(frozen=True)
class Accuracy:
    """Shares of the held-out images, between 0 and 1."""

    knn: float
    linear: float


class Judge:
    """Sees the same images each time."""

    def __init__(self, training: ShardIndex, held_out: ShardIndex):
        self._training, self._held_out = training, held_out

    def weights(self, pretrained: Pretrained) -> Accuracy:
        vit = build_vit(pretrained.config, num_classes=0)
        load_into(vit, pretrained)
        encoder = Encoder(vit)
        return accuracy(_features(encoder, self._training, BANK), _features(encoder, self._held_out, HELD_OUT))


def _features(encoder: Encoder, index: ShardIndex, most: int) -> Features:
    size = min(most, index.num_samples)
    chosen = np.arange(size) * index.num_samples // size
    return extract_features(encoder, index, batch=_BATCH, pools=["mean"], chosen=chosen, workers=0)


def accuracy(bank: Features, queries: Features) -> Accuracy:
    """k-NN and linear probe on mean-pooled features."""
    known, asked = bank.by_pool["mean"], queries.by_pool["mean"]
    (nearest,) = knn_accuracies(known, bank.labels, asked, queries.labels, ks=[NEIGHBOURS], temperatures=[TEMPERATURE])
    mean, deviation = known.mean(dim=0), known.std(dim=0).clamp_min(1e-6)
    linear = linear_probe((known - mean) / deviation, bank.labels, (asked - mean) / deviation, queries.labels)
    return Accuracy(knn=nearest.top1, linear=linear)


def linear_probe(features: Tensor, labels: Tensor, queries: Tensor, query_labels: Tensor) -> float:
    """Share of the queries that multinomial logistic regression on the features gets right; by L-BFGS, so that there is
    no learning rate to choose and nothing random."""
    classes = int(labels.max()) + 1
    weight = torch.zeros(classes, features.shape[1], requires_grad=True)
    bias = torch.zeros(classes, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=_PROBE_STEPS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(F.linear(features, weight, bias), labels) + _PROBE_DECAY * weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    with torch.no_grad():
        return (F.linear(queries, weight, bias).argmax(dim=1) == query_labels).double().mean().item()
