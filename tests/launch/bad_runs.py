"""The table of wrong inputs, part two: shards, output, checkpoints, and what the data tools are given.

Rows are as in `bad_inputs`.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from tests.launch.bad_inputs import Place, Row, ds_config, spoiled, zero
from trainer.checkpoint.manifest import Manifest, read_manifest, write_manifest


def edit_json(path: Path, change: Callable[[dict], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def edit_manifest(change: Callable[[Manifest], Manifest]) -> Callable[[Place], None]:
    """What another program might have saved: a sound manifest of other content."""
    return lambda place: write_manifest(place.newest, change(read_manifest(place.newest)))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def make_file(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("in the way")


DATA = {
    "no such folder": spoiled("no shard index at .*shards: give .*train.json", lambda p: shutil.rmtree(p.shards)),
    "no index": spoiled("no shard index at .*train.json: give", lambda p: (p.shards / "train.json").unlink()),
    "index that is not JSON": spoiled(
        "train.json is not a shard index .*write it anew", lambda p: (p.shards / "train.json").write_text("{")
    ),
    "index of no shards": spoiled(
        "train.json lists no shards: write",
        lambda p: edit_json(p.shards / "train.json", lambda c: c["shardlist"].clear()),
    ),
    "index without sizes": spoiled(
        "train.json lacks 'filesize'.*write",
        lambda p: edit_json(p.shards / "train.json", lambda c: c["shardlist"][0].pop("filesize")),
    ),
    "no byte ranges": spoiled(
        "train.offsets.npy.*write the index anew", lambda p: (p.shards / "train.offsets.npy").unlink()
    ),
    "byte ranges cut short": spoiled(
        "train.offsets.npy.*write the index anew", lambda p: cut(p.shards / "train.offsets.npy")
    ),
    "byte ranges of other shards": spoiled(
        "train.offsets.npy.* holds .* wants int64 .*write the index anew",
        lambda p: np.save(p.shards / "train.offsets.npy", np.zeros((3, 2), np.int64)),
    ),
    "byte ranges as a pickle": spoiled(
        "train.offsets.npy.*write the index anew",
        lambda p: np.save(p.shards / "train.offsets.npy", np.array([{}], dtype=object), allow_pickle=True),
    ),
    "missing shard": spoiled(
        "train-00002.tar.* cannot be read: No such file", lambda p: (p.shards / "train-00002.tar").unlink()
    ),
    "truncated shard": spoiled("train-00003.tar has .*: copy it again", lambda p: cut(p.shards / "train-00003.tar")),
}
DEEPSPEEDS_OWN = {
    "misspelt key inside zero_optimization": ds_config(
        "zero_optimization.offload_optimiser: unknown key; mend or remove", zero(2, offload_optimiser={})
    ),
    "word for a bucket size": ds_config(
        "zero_optimization.reduce_bucket_size: .*integer.*given: 'big'.*; mend", zero(2, reduce_bucket_size="big")
    ),
    "unknown key inside bf16": ds_config("bf16.scale: unknown key; mend", {"bf16": {"enabled": True, "scale": 1}}),
    "type that no tensor has": ds_config(
        "communication_data_type.* Got: fp7.*: mend", {"seq_parallel_communication_data_type": "fp7"}
    ),
}
OUTPUT = {
    "output is a file": spoiled("--output .*run: .*(choose|give)", lambda p: make_file(p.run)),
    "output below a file": spoiled(
        "--output .*run.*(choose|give)", lambda p: make_file(p.run), "--output", "{run}/deeper"
    ),
    "output in a read-only file system": Row("--output /proc/run: .*(choose|give)", ("--output", "/proc/run")),
}
INITS = {
    "initial weights that are not there": Row("--init: nowhere.pth: no such file; give", ("--init", "nowhere.pth")),
    "initial weights that are none": spoiled(
        r"--init: .*run\.pth: not a checkpoint.*give another",
        lambda p: p.run.with_suffix(".pth").write_bytes(b"weights"),
        "--init",
        "{run}.pth",
    ),
}
RESUMES = {
    "no checkpoint at the path": Row("--resume nowhere: no checkpoint there.*give", ("--resume", "nowhere")),
    "never over a run": Row("--resume never: .*already holds step_.*choose another --output", ("--resume", "never")),
    "another optimizer": Row(
        "optimizer.weight_decay was 0.05 and is 0.3 now; set it back, or start anew", ("optimizer.weight_decay=0.3",)
    ),
    "another model": Row("model.mlp_ratio was 4.0 and is 2.0 now; set it back, or", ("model.mlp_ratio=2",)),
    "another freezing": Row("freezing.t0 was 0.8 and is 0.5 now; set it back, or", ("freezing.t0=0.5",)),
    "another batch": Row("train.global_batch was 8 and is 16 now; set it back, or", ("train.global_batch=16",)),
    "other shards": spoiled(
        "holds other shards than it was trained on.*(set|give|choose)",
        lambda p: edit_json(p.shards / "train.json", lambda c: c["shardlist"][0].update(sha256="0" * 64)),
    ),
    "newer format": spoiled(
        "manifest.json: format version 99.*use the newer", edit_manifest(lambda m: replace(m, format_version=99))
    ),
    "damaged checkpoint by its path": spoiled(
        "--resume: .*safetensors: sha256 differs", lambda p: flip(next(p.newest.glob("rank_*"))), "--resume", "{run}"
    ),
    "every checkpoint damaged": spoiled(
        "none of its . checkpoints is whole; mend one, or choose another --output",
        lambda p: [cut(file) for file in (p.run / "checkpoints").glob("*/rank_*")],
    ),
    "checkpoint made by a recipe with a key of the future": spoiled(
        "manifest.json: unknown key train.future",
        edit_manifest(lambda m: replace(m, recipe=m.recipe | {"train": {"future": 1}})),
    ),
    "model of other shapes under the same recipe": spoiled(
        "has shape .* there and .* in this recipe's model",
        edit_manifest(lambda m: replace(m, shapes=m.shapes | {"cls_token": m.shapes["cls_token"][::-1]})),
    ),
}
DATA_TOOLS = {
    "input that is not there": (
        "imagefolder --input {empty}/nowhere --output {out}",
        "--input .*nowhere.* not a folder",
    ),
    "input without images": ("imagefolder --input {empty} --output {out}", "--input .*empty.* holds no images"),
    "output that is a file": (
        "imagefolder --input {photographs} --output {file}",
        "cannot write to .*file.txt: File exists; mend",
    ),
    "more shards than images": (
        "imagefolder --input {photographs} --output {out} --shards 9",
        "9 shards are more than the 6 .*: ask for fewer",
    ),
    "no shards": ("imagefolder --input {photographs} --output {out} --shards 0", "--shards: .*positive"),
    "shards of two kinds": (
        "imagefolder --input {photographs} --output {out} --shards 2 --shard-size 2",
        "--shard-size: not allowed with",
    ),
    "nothing of ImageNet": ("imagenet --output {out}", "--train.*--val"),
    "validation images without the devkit": ("imagenet --val {file} --output {out}", "--devkit"),
    "archive that is not one": ("imagenet --train {file} --output {out}", "file.txt.*not a tar"),
    "index of an empty folder": ("index {empty}", "empty.*tar"),
    "index of what is no tar": ("index {file}", "file.txt"),
    "index of a shard cut short": ("index {shards}/train-00003.tar --output {out}", "train-00003.tar.*truncated"),
    "verify without an index": ("verify {empty}", "no shard index at .*empty.*: give"),
    "show without an index": ("show {empty}", "no shard index at .*empty.*: give"),
    "unknown command": ("imagenette", "invalid choice: 'imagenette' .*choose from"),
}
"""What is done → the arguments of `python -m data_tools`, and what its message says."""
