"""The folder for the Hugging Face Hub: timm reads it, the card says what is known, nothing else is ever deleted."""

import os
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml

from tests.pretrained.models import MODEL, mae_names, unmasked_features, write_finetuned_run
from trainer.errors import BadInput
from trainer.finetuning.recipe import FinetuneRecipe
from trainer.model.localmim import LocalMIM
from trainer.pretrained import build_vit, huggingface, load_pretrained
from trainer.pretrained.export import write_timm
from trainer.pretrained.huggingface import write_huggingface
from trainer.recipe import parse_kind


@pytest.fixture
def folder(run: tuple[Path, LocalMIM], tmp_path: Path) -> Path:
    size = write_huggingface(load_pretrained(run[0]), tmp_path / "my_vit")
    assert size == sum(path.stat().st_size for path in (tmp_path / "my_vit").iterdir())
    return tmp_path / "my_vit"


def assert_ours(model: timm.models.VisionTransformer, own: LocalMIM) -> None:
    pixels = torch.randn(2, 3, MODEL.image_size, MODEL.image_size)
    expected = unmasked_features(own, pixels)
    torch.testing.assert_close(model.eval().forward_features(pixels), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(model(pixels), expected[:, 0], rtol=0, atol=1e-5)


def test_timm_reads_it_from_the_disk(folder: Path, run: tuple[Path, LocalMIM]) -> None:
    model = timm.create_model(f"local-dir:{folder}", pretrained=True)
    assert_ours(model, run[1])
    data = timm.data.resolve_model_data_config(model)
    assert (data["input_size"], tuple(data["mean"])) == ((3, 64, 64), (0.485, 0.456, 0.406))


def test_timm_reads_it_as_from_the_hub(
    folder: Path, run: tuple[Path, LocalMIM], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a network: only the download is replaced, by the file that was uploaded."""
    monkeypatch.setattr("timm.models._hub.hf_hub_download", lambda repo_id, filename, **_: str(folder / filename))
    assert_ours(timm.create_model("hf-hub:somebody/my_vit", pretrained=True), run[1])


def test_timm_adds_a_head(folder: Path) -> None:
    assert timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=7).head.out_features == 7


def card_of(source: Path, output: Path) -> tuple[str, list[str]]:
    """Text and tags."""
    write_huggingface(load_pretrained(source, like=MODEL), output)
    card = (output / "README.md").read_text()
    header = yaml.safe_load(card.split("---")[1])
    assert header["library_name"] == "timm"
    return card, header["tags"]


def recipe_on(card: str) -> dict[str, Any]:
    return yaml.safe_load(card.split("```yaml")[1].split("```")[0])


def test_the_card_says_how_it_was_trained_and_not_where(run: tuple[Path, LocalMIM], tmp_path: Path) -> None:
    card, tags = card_of(run[0], tmp_path / "folder")
    assert tags == ["timm", "self-supervised", "masked-image-modeling"]
    assert "The training below read no labels" in card
    for row in ("| steps | 10 |", "| images | 150 |", "| passes over the images | 2.0 |", "2 of 5 units"):
        assert row in card
    assert "which `launch/pretrain.py` takes" in card
    assert recipe_on(card)["model"] == MODEL.model_dump(mode="json")
    assert not [path.name for path in (tmp_path / "folder").iterdir() if b"somebody" in path.read_bytes()]


@pytest.mark.parametrize("source", ["run", "timm"])
def test_the_card_of_a_fine_tuned_run_owns_up_to_labels(source: str, tmp_path: Path) -> None:
    write_finetuned_run(tmp_path / "run", classes=7)
    if source == "timm":
        write_timm(load_pretrained(tmp_path / "run"), tmp_path / "timm.safetensors")
    card, tags = card_of(tmp_path / {"run": "run", "timm": "timm.safetensors"}[source], tmp_path / "folder")
    assert tags == ["timm"]
    assert "fine-tuned on labelled images" in card
    assert "It has seen the labels" in card
    assert "no labels" not in card
    assert "LocalMIM" not in card
    assert "| classes | 7 |" in card
    assert "which `launch/finetune.py` takes" in card
    assert "pretrain.py" not in card
    assert parse_kind(FinetuneRecipe, recipe_on(card), "the card").model.width == 32
    assert not [path.name for path in (tmp_path / "folder").iterdir() if b"somebody" in path.read_bytes()]


def test_the_code_on_the_card_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    names: dict = {}
    exec((folder / "README.md").read_text().split("```python")[1].split("```")[0], names)
    assert names["features"].shape == (1, 32)
    assert names["patches"].shape == (1, 17, 32)


@pytest.mark.parametrize("source", ["mae", "timm's classifier"])
def test_the_card_of_a_foreign_checkpoint_invents_nothing(
    source: str, run: tuple[Path, LocalMIM], tmp_path: Path
) -> None:
    weights = mae_names(run[1]) if source == "mae" else build_vit(MODEL, num_classes=10).state_dict()
    torch.save(weights, tmp_path / "foreign.pth")
    card, tags = card_of(tmp_path / "foreign.pth", tmp_path / "folder")
    assert tags == ["timm"]
    assert "Not recorded" in card
    assert "Whether it has seen labels is not recorded" in card
    for word in ("LocalMIM", "None", "no labels", "without labels", "tuned"):
        assert word not in card


def test_an_earlier_folder_is_replaced_and_nothing_is_left_beside_it(folder: Path, run: tuple[Path, LocalMIM]) -> None:
    (folder / "README.md").write_text("old")
    (folder.parent / ".my_vit.tmp").mkdir()  # as a killed export leaves it
    write_huggingface(load_pretrained(run[0]), folder)
    assert "# my_vit" in (folder / "README.md").read_text()
    assert [path.name for path in folder.parent.iterdir()] == ["my_vit"]


@pytest.mark.parametrize("what", ["another file", "a file in its place", "a link"])
def test_what_an_export_did_not_write_it_does_not_delete(what: str, folder: Path, run: tuple[Path, LocalMIM]) -> None:
    output = folder
    if what == "another file":
        (folder / "thesis.tex").write_text("precious")
    elif what == "a file in its place":
        output = folder.with_name("thesis.tex")
        output.write_text("precious")
    else:
        output = folder.with_name("link")
        output.symlink_to(folder)
    before = sorted(path.name for path in folder.parent.rglob("*"))
    with pytest.raises(BadInput, match="holds other things"):
        write_huggingface(load_pretrained(run[0]), output)
    assert sorted(path.name for path in folder.parent.rglob("*")) == before


def test_a_full_disk_leaves_what_was_there(
    folder: Path, run: tuple[Path, LocalMIM], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def full(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("trainer.checkpoint.state_file._header", full)
    for output in (folder, folder.with_name("new")):
        with pytest.raises(BadInput, match=r"cannot be written \(No space left"):
            write_huggingface(load_pretrained(run[0]), output)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir()] == ["my_vit"]


def test_a_kill_between_the_files_leaves_no_folder(
    run: tuple[Path, LocalMIM], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def kill(*_: object) -> None:
        assert not (tmp_path / "my_vit").exists()
        raise Killed

    monkeypatch.setattr(huggingface, "write_encoder", kill)
    with pytest.raises(Killed):
        write_huggingface(load_pretrained(run[0]), tmp_path / "my_vit")
    assert list(tmp_path.iterdir()) == []
