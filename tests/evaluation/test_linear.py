"""The linear probe separates what can be separated and nothing else; its parts are what the papers say."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.distributed import RankPool
from tests.evaluation.small_encoder import small_encoder
from trainer.data.shard_index import ShardIndex
from trainer.errors import BadInput
from trainer.evaluation.features import Features, extract_features
from trainer.evaluation.linear import num_steps, probe_augmented, probe_cached
from trainer.evaluation.probe import BatchNorm, Probe, ProbeAccuracy, ProbeSettings

CLASSES, WIDTH = 6, 12
SETTINGS = ProbeSettings(epochs=30, warmup_epochs=1, global_batch=32, rates=(0.03, 30.0, 100.0), pools=("mean",))


def clusters(samples: int, seed: int, *, labelled: bool) -> Features:
    """Points around one centre a class, far enough apart; or the same with labels drawn at random."""
    centres = 4 * torch.randn(CLASSES, WIDTH, generator=torch.Generator().manual_seed(99))
    random = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (samples,), generator=random)
    rows = centres[labels] + 0.5 * torch.randn(samples, WIDTH, generator=random)
    if not labelled:
        labels = torch.randint(CLASSES, (samples,), generator=random)
    return Features({"mean": rows}, labels, torch.arange(samples))


def separable() -> list[ProbeAccuracy]:
    """Runs on a rank, or in this process."""
    return probe_cached(clusters(320, 0, labelled=True), clusters(200, 1, labelled=True), SETTINGS)


def best(found: list[ProbeAccuracy]) -> dict[str, float]:
    return {norm: max(each.top1 for each in found if each.norm == norm) for norm in ("batch", "none")}


def test_a_separable_set_is_separated_with_and_without_batchnorm() -> None:
    found = separable()
    assert [(each.norm, each.rate) for each in found] == [(n, r) for n in ("batch", "none") for r in SETTINGS.rates]
    assert best(found) == {"batch": 1.0, "none": 1.0}
    assert min(each.top1 for each in found) < 0.9, "the smallest rate has no time to learn"


def test_random_labels_give_chance() -> None:
    found = probe_cached(clusters(320, 0, labelled=False), clusters(1000, 1, labelled=False), SETTINGS)
    for each in found:
        assert abs(each.top1 - 1 / CLASSES) < 0.05
        assert abs(each.top5 - 5 / CLASSES) < 0.05


def test_ranks_train_the_same_probe_as_one_process(two_ranks: RankPool) -> None:
    alone = separable()
    for found in two_ranks.run(separable):
        for here, there in zip(found, alone, strict=True):
            assert replace(here, top1=0, top5=0) == replace(there, top1=0, top5=0)
            assert here.top1 == pytest.approx(there.top1, abs=2 / 200)  # rounding may move a point at a border


def weights(settings: ProbeSettings) -> dict[tuple, torch.Tensor]:
    data = clusters(96, 0, labelled=True)
    probe = Probe(WIDTH, CLASSES, settings, total_steps=6, warmup_steps=1)
    for step in range(3):
        rows = slice(32 * step, 32 * step + 32)
        probe.train_step({"mean": data.by_pool["mean"][rows]}, data.labels[rows])
    return {
        (norm, rate): torch.cat([head.weight, head.bias[:, None]], dim=1).detach()
        for (_, norm), heads in probe._heads.items()
        for rate, head in zip(settings.rates, heads, strict=True)
    }


def test_classifiers_trained_at_once_are_those_trained_one_by_one() -> None:
    together = weights(SETTINGS)
    for norm, rate in together:
        alone = weights(replace(SETTINGS, norms=(norm,), rates=(rate,)))
        torch.testing.assert_close(together[norm, rate], alone[norm, rate], rtol=1e-5, atol=1e-7)


def test_a_step_is_lars_as_published() -> None:
    """arXiv 1708.03888, algorithm 1, without weight decay; biases are not adapted."""
    settings = replace(SETTINGS, norms=("none",), rates=(2.0,))
    data = clusters(96, 0, labelled=True)
    random = torch.Generator().manual_seed(settings.seed)
    weight = torch.empty(CLASSES, WIDTH).normal_(std=0.01, generator=random).double()
    bias = torch.zeros(CLASSES, dtype=torch.float64)
    momentum = [torch.zeros_like(weight), torch.zeros_like(bias)]
    for step in range(3):
        rows = data.by_pool["mean"][32 * step : 32 * step + 32].double()
        labels = data.labels[32 * step : 32 * step + 32]
        error = (rows @ weight.T + bias).softmax(1) - torch.nn.functional.one_hot(labels, CLASSES)
        gradients = [error.T @ rows / 32, error.mean(0)]
        ratio = 0.001 * weight.norm() / gradients[0].norm()
        warm = 0.5 * (1 + math.cos(math.pi * (step - 1) / 5)) if step else 0.0
        momentum = [0.9 * m + g for m, g in zip(momentum, (ratio * gradients[0], gradients[1]), strict=True)]
        rate = 2.0 * 32 / 256 * warm
        weight, bias = weight - rate * momentum[0], bias - rate * momentum[1]
    expected = torch.cat([weight, bias[:, None]], dim=1).float()
    torch.testing.assert_close(weights(settings)["none", 2.0], expected, rtol=1e-4, atol=1e-6)


def normalised_in_batches() -> list[np.ndarray]:
    """This rank's part of three normalised batches, and the statistics. Runs on a rank, or in this process."""
    from trainer.evaluation.collectives import rank_and_world_size

    rank, world_size = rank_and_world_size()
    norm = BatchNorm(WIDTH)
    rows = clusters(96, 3, labelled=True).by_pool["mean"]
    batches = [norm.train(batch[rank::world_size]) for batch in rows.split(32)]
    return [tensor.numpy() for tensor in (*batches, norm.mean, norm.variance, norm.apply(rows))]


def test_batchnorm_is_torchs_over_all_ranks(two_ranks: RankPool) -> None:
    theirs = torch.nn.BatchNorm1d(WIDTH, affine=False, eps=1e-6)
    rows = clusters(96, 3, labelled=True).by_pool["mean"]
    batches = [theirs(batch) for batch in rows.split(32)]
    after = [theirs.running_mean, theirs.running_var, theirs.eval()(rows)]
    for expected, ours in zip([*batches, *after], normalised_in_batches(), strict=True):
        torch.testing.assert_close(torch.from_numpy(ours), expected)
    for rank, parts in enumerate(two_ranks.run(normalised_in_batches)):
        for expected, ours in zip([*(batch[rank::2] for batch in batches), *after], parts, strict=True):
            torch.testing.assert_close(torch.from_numpy(ours), expected)


def test_the_rate_warms_up_and_falls_to_zero_along_a_cosine() -> None:
    probe = Probe(WIDTH, CLASSES, replace(SETTINGS, global_batch=512), total_steps=10, warmup_steps=2)
    assert [probe.learning_rate(step) for step in (0, 1, 2, 6, 10)] == pytest.approx([0, 1, 2, 1, 0])


AUGMENTED = ProbeSettings(epochs=16, warmup_epochs=1, global_batch=20, rates=(30.0, 300.0), seed=1)


def augmented(shards: Path) -> list[ProbeAccuracy]:
    """Runs on a rank, or in this process."""
    torch.set_num_threads(1)
    encoder = small_encoder()
    held_out = extract_features(encoder, ShardIndex.open(shards, "val"), batch=8)
    train = ShardIndex.open(shards, "train")
    return probe_augmented(encoder, train, held_out, AUGMENTED, num_classes=5, batch=7, workers=0)


def test_augmented_views_of_painted_classes_are_told_apart(painted: Path, two_ranks: RankPool) -> None:
    for found in two_ranks.run(augmented, painted):
        assert len(found) == 2 * 2 * 2  # pools, norms, rates
        assert best(found)["batch"] > 0.95
        assert best(found)["none"] > 0.95


def augmented_weights(shards: Path) -> dict[tuple, np.ndarray]:
    """Every classifier after six steps on photographs, the last of which begins an epoch, and BatchNorm's statistics.
    Runs on a rank, or in this process."""
    kept: list[Probe] = []
    settings = replace(AUGMENTED, global_batch=30, epochs=1.2, warmup_epochs=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Probe, "accuracies", lambda probe, *_: kept.append(probe))
        train, none = ShardIndex.open(shards, "train"), Features({}, torch.empty(0), torch.empty(0))
        probe_augmented(small_encoder(), train, none, settings, num_classes=6, batch=8, workers=0)
    (probe,) = kept
    heads = {
        (*inputs, rate): torch.cat([head.weight, head.bias[:, None]], dim=1).detach().numpy()
        for inputs, by_rate in probe._heads.items()
        for rate, head in zip(settings.rates, by_rate, strict=True)
    }
    return heads | {(pool,): torch.stack([norm.mean, norm.variance]).numpy() for pool, norm in probe._norms.items()}


def test_augmented_views_train_the_same_classifiers_on_two_ranks(shards: Path, two_ranks: RankPool) -> None:
    alone = augmented_weights(shards)
    assert len(alone) == 2 * 2 * 2 + 2  # pools, norms, rates; and the pools' statistics
    for found in two_ranks.run(augmented_weights, shards):
        assert found.keys() == alone.keys()
        for key, values in alone.items():
            np.testing.assert_allclose(found[key], values, rtol=0, atol=1e-5 * np.abs(values).max(), err_msg=str(key))


def test_what_does_not_go_together_is_refused(painted: Path) -> None:
    data = clusters(31, 0, labelled=True)
    with pytest.raises(BadInput, match="global batch of 32 is more than the 31 training samples"):
        probe_cached(data, data, SETTINGS)
    encoder = small_encoder()
    held_out = extract_features(encoder, ShardIndex.open(painted, "val"), batch=35)
    train = ShardIndex.open(painted, "train")
    with pytest.raises(BadInput, match="where there are 3"):
        probe_augmented(encoder, train, held_out, AUGMENTED, num_classes=3, batch=20, workers=0)


def test_an_incomplete_batch_at_the_end_of_an_epoch_is_left_out() -> None:
    assert num_steps(100, replace(SETTINGS, epochs=2.5)) == round(2.5 * 3)
