"""A frozen prefix is really cut off: not in the autograd graph, not trained, its stages not computed."""

from collections.abc import Iterable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import Node, saved_tensors_hooks

from trainer.model import localmim
from trainer.model.config import ModelConfig
from trainer.model.localmim import LocalMIM

Batch = tuple[Tensor, Tensor]


def graph_nodes(loss: Tensor) -> Iterator[Node]:
    """Every node of the autograd graph that leads to ``loss``."""
    waiting, seen = [loss.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        waiting.extend(parent for parent, _ in node.next_functions)


def leaves(loss: Tensor) -> set[Tensor]:
    """The tensors into which a backward pass from ``loss`` would accumulate."""
    return {node.variable for node in graph_nodes(loss) if hasattr(node, "variable")}


def loss_and_saved_tensors(model: LocalMIM, batch: Batch) -> tuple[Tensor, list[Tensor]]:
    """The loss, and every tensor that its graph keeps for the backward pass."""
    saved: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        loss, _ = model(*batch)
    return loss, saved


def storages(tensors: Iterable[Tensor]) -> dict[int, int]:
    """Bytes of each storage behind the tensors, by address."""
    return {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}


def live_parameters(model: LocalMIM) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if model.unit_of(name) >= model.frozen_units}


def test_graph_ends_at_the_live_units(tiny: ModelConfig, batch: Batch) -> None:
    model = LocalMIM(tiny)
    saved_bytes, node_counts = [], []
    for units in range(model.num_units):
        model.freeze_prefix(units)
        loss, saved = loss_and_saved_tensors(model, batch)
        assert leaves(loss) == set(live_parameters(model).values())
        frozen = [p for name, p in model.named_parameters() if model.unit_of(name) < units]
        assert not storages(frozen).keys() & storages(saved).keys()
        saved_bytes.append(sum(storages(saved).values()))
        node_counts.append(sum(1 for _ in graph_nodes(loss)))
    assert saved_bytes == sorted(saved_bytes, reverse=True)
    assert len(set(saved_bytes)) == len(saved_bytes)
    # One block and one stage are left: well under half of the four.
    assert node_counts[-1] < node_counts[0] / 3


def test_prefix_runs_in_no_grad_mode(tiny: ModelConfig, batch: Batch) -> None:
    model = LocalMIM(tiny)
    model.freeze_prefix(3)
    modes: list[bool] = []
    for module in (model.patch_embed, *model.blocks):
        module.register_forward_pre_hook(lambda *_: modes.append(torch.is_grad_enabled()))
    model(*batch)
    assert modes == [False, False, False, True, True]


def test_only_live_parameters_get_gradients(tiny: ModelConfig, batch: Batch) -> None:
    model = LocalMIM(tiny)
    model.freeze_prefix(3)
    loss, _ = model(*batch)
    loss.backward()
    live = live_parameters(model)
    assert {name for name, p in model.named_parameters() if p.grad is not None} == live.keys()
    assert {name for name, p in model.named_parameters() if p.requires_grad} == live.keys()
    assert "cls_token" not in live


def test_stages_of_frozen_blocks_are_neither_decoded_nor_targeted(
    tiny: ModelConfig, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    windows: list[list[int]] = []
    original = localmim.hog_targets
    monkeypatch.setattr(localmim, "hog_targets", lambda p, w, b: windows.append(w) or original(p, w, b))
    decoded: list[int] = []
    model = LocalMIM(tiny)
    for index, stage in enumerate(model.stages):
        stage.register_forward_pre_hook(lambda _module, _inputs, index=index: decoded.append(index))
    _, losses = model(*batch)
    model.freeze_prefix(1)  # the patch embedding has no stage
    assert model.live_stages == [0, 1, 2, 3]
    model.freeze_prefix(3)
    assert model.live_stages == [2, 3]
    _, live_losses = model(*batch)
    assert decoded == [0, 1, 2, 3, 2, 3]
    assert windows == [[2, 4, 8, 16], [8, 16]]
    # The same stages on the same tokens; their cells are summed from other base cells, hence the last bit.
    torch.testing.assert_close(live_losses, losses[2:], rtol=1e-6, atol=0)


def test_dropped_stages_stay_in_the_state_dict(tiny: ModelConfig) -> None:
    model = LocalMIM(tiny)
    names = model.state_dict().keys()
    model.freeze_prefix(4)
    assert model.state_dict().keys() == names


@pytest.mark.parametrize("units", [1, 5, 6, -1])
def test_prefix_only_grows_and_never_takes_the_last_unit(tiny: ModelConfig, units: int) -> None:
    model = LocalMIM(tiny)
    model.freeze_prefix(2)
    with pytest.raises(ValueError, match=f"cannot freeze {units} units: 2 of 5 are frozen"):
        model.freeze_prefix(units)
    assert model.frozen_units == 2


def test_reconstruct_after_a_freeze_shows_the_live_stages(tiny: ModelConfig, batch: Batch) -> None:
    model = LocalMIM(tiny)
    model.freeze_prefix(3)
    shown = model.reconstruct(*batch)
    assert [stage.stage for stage in shown.stages] == [2, 3]
    assert not any(stage.prediction.requires_grad for stage in shown.stages)
