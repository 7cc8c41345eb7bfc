"""What the freezing benchmark adds up and compares. No figure of a real measurement is judged: a busy machine may print
any."""

from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.corpus import Corpus
from benchmarks.freezing import main
from benchmarks.freezing_cases import TINY, VIT_BASE, VIT_LARGE, interpolate, random_batch
from benchmarks.frozen_memory import saved_storages
from benchmarks.frozen_run import PausableRun
from benchmarks.published_freezing import PublishedFreezing, published_flops
from trainer.freezing.schedule import saving
from trainer.model.localmim import LocalMIM

FROZEN = 3
"""Units: the patch embedding and two of the tiny model's four blocks."""


def blocks_in_the_graph(model: LocalMIM) -> list[bool]:
    """For each encoder block whether the backward pass would walk through it."""
    found: list[bool] = []
    for block in model.blocks:
        block.register_forward_hook(lambda module, inputs, output: found.append(output.requires_grad))
    model(*random_batch(model.config, 2))
    return found


def test_the_published_freezing_walks_through_frozen_blocks_and_ours_does_not():
    ours, published = LocalMIM(TINY.model), PublishedFreezing(TINY.model)
    for model in (ours, published):
        model.freeze_prefix(FROZEN)
    assert blocks_in_the_graph(ours) == [False, False, True, True]
    assert blocks_in_the_graph(published) == [True] * 4
    assert [name for name, p in published.named_parameters() if p.requires_grad and published.unit_of(name) < 3] == []
    assert published.cls_token.requires_grad
    assert not ours.cls_token.requires_grad


def test_the_published_freezing_computes_the_same_loss_and_gradients():
    ours = LocalMIM(TINY.model)
    published = PublishedFreezing(TINY.model)
    published.load_state_dict(ours.state_dict())
    batch = random_batch(TINY.model, 2)
    for model in (ours, published):
        model.freeze_prefix(FROZEN)
        model(*batch)[0].backward()
    for (name, mine), theirs in zip(ours.named_parameters(), published.parameters(), strict=True):
        if mine.requires_grad:
            assert mine.grad is not None
            assert theirs.grad is not None
            assert torch.equal(mine.grad, theirs.grad), name


def test_frozen_blocks_keep_their_activations_as_published_only():
    saved = {}
    for kind in (LocalMIM, PublishedFreezing):
        model = kind(TINY.model)
        model.freeze_prefix(FROZEN)
        with saved_storages(model) as storages:
            loss, _ = model(*random_batch(TINY.model, 2))
        saved[kind] = sum(storages.values())
        del loss
    tokens, width = 2 * (1 + TINY.model.num_kept), TINY.model.width
    assert saved[PublishedFreezing] - saved[LocalMIM] > 2 * 4 * tokens * width * 8  # 2 blocks, fp32, 8 widths at least


@pytest.mark.parametrize("frozen_units", [0, 1, 2, 4])
def test_published_flops_equal_those_counted_on_a_real_step(frozen_units: int):
    model = PublishedFreezing(TINY.model)
    model.freeze_prefix(frozen_units)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counted:
        model(*random_batch(TINY.model, 1))[0].backward()
    assert counted.get_total_flops() == published_flops(TINY.model)[frozen_units]


def test_published_savings_by_flops():
    """9.5 % of a ViT-B's run and 8.8 % of a ViT-L's, against 15.6 and 16.4 % without the prefix in the graph."""
    for case, published, here in ((VIT_BASE, 0.095, 0.156), (VIT_LARGE, 0.088, 0.164)):
        assert saving(case.schedule, published_flops(case.model)) == pytest.approx(published, abs=0.0005)
        assert saving(case.schedule, case.flops) == pytest.approx(here, abs=0.0005)


def test_counts_between_the_measured_ones_are_linear_in_the_flops():
    assert interpolate({0: 2.0, 2: 1.0, 4: 0.5}, flops=[100, 90, 60, 50, 20]) == pytest.approx(
        [2.0, 1.75, 1.0, 0.875, 0.5]
    )


def test_a_run_that_ends_before_its_turn_does_is_told_with_what_it_printed(corpus: Corpus, tmp_path: Path):
    with (
        PausableRun(TINY, "sideways", corpus.shards, tmp_path / "run") as run,
        pytest.raises(RuntimeError, match=r"(?s)step 1 was not reached.*freezing\.how"),
    ):
        run.go_on_until(1)


@pytest.mark.exhaustive
def test_one_command_measures_every_part_and_writes_the_page(
    tiles: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    page = tmp_path / "page.md"
    assert main(["--quick", "--corpus", str(tiles), "--output", str(page)]) == 0
    text = page.read_text(encoding="utf-8")
    titles = ("A step of tiny", "Where the saving", "Saved over", "With the loader", "A whole run", "moves and holds")
    assert [title for title in titles if title not in text] == []
    assert [
        row for row in ("| tiny, fp32, here", "| tiny, fp32, as published", "| this run, all") if row not in text
    ] == []
    assert "nan" not in text
    printed = capsys.readouterr().out
    assert [line for line in text.splitlines() if line not in printed] == []
