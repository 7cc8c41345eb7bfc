"""A small ILSVRC2012 in the layout of the official downloads: a tar of tars, a flat tar, and a devkit with meta.mat.

Every image is a real photograph with its class painted into a corner, so that a label can be held against the pixels,
without any of the tables that led to it."""

import io
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy.io import savemat

from tests.photographs import jpeg_bytes, photographs

# The wnid of what is painted as class 0, 1, 2 …; neither in the order of the wnids nor in that of the ILSVRC2012_IDs.
WNIDS = ("n09472597", "n02123045", "n02814860", "n07920052", "n11939491", "n04266014")
_ILSVRC2012_IDS = (3, 6, 1, 5, 2, 4)
# Inner nodes of WordNet's tree, which meta.mat lists as well: wnid and the ILSVRC2012_IDs of its children.
_INNER_NODES = (("n00001740", (8, 9)), ("n00004475", (3, 6, 2)), ("n00021939", (1, 4, 5)))
_PATCH = 24
_GREY_STEP = 40


@dataclass(frozen=True)
class SyntheticImagenet:
    """The three files. `odd` names those images, as conversion does, that are not plain colour JPEGs."""

    train: Path
    val: Path
    devkit: Path
    odd: dict[str, str]


def build(
    folder: Path, per_class: int = 5, num_val: int = 20, width: int = 200, height: int = 150
) -> SyntheticImagenet:
    """Writes the three archives, under their official names, into an existing folder."""
    train: dict[str, dict[str, bytes]] = {}
    odd = {}
    for painted, wnid in enumerate(WNIDS):
        images = {f"{wnid}_{7 * k + 1}.JPEG": painted_image(painted, k, width, height) for k in range(per_class)}
        train[wnid] = {name: jpeg_bytes(image) for name, image in images.items()}
        if painted < len(_ODD_KINDS):
            kind = _ODD_KINDS[painted]
            name = next(iter(images))
            train[wnid][name] = odd_bytes(images[name], kind)
            odd[f"{wnid}/{name}"] = kind
    val = {}
    ground_truth = []
    for number in range(1, num_val + 1):
        painted = number * number % len(WNIDS)
        image = painted_image(painted, 100 + number, width, height)
        name = f"ILSVRC2012_val_{number:08d}.JPEG"
        val[name] = odd_bytes(image, "cmyk") if number == 3 else jpeg_bytes(image)
        ground_truth.append(_ILSVRC2012_IDS[painted])
    odd["ILSVRC2012_val_00000003.JPEG"] = "cmyk"
    result = SyntheticImagenet(
        folder / "ILSVRC2012_img_train.tar",
        folder / "ILSVRC2012_img_val.tar",
        folder / "ILSVRC2012_devkit_t12.tar.gz",
        odd,
    )
    result.train.write_bytes(tar_bytes({f"{wnid}.tar": tar_bytes(images) for wnid, images in train.items()}))
    result.val.write_bytes(tar_bytes(val))
    write_devkit(result.devkit, ground_truth)
    return result


def painted_image(painted: int, variant: int, width: int, height: int) -> Image.Image:
    """A tile of a photograph with the class as a grey square in its upper left corner."""
    photograph = list(photographs().values())[painted]
    left, top = variant * 37 % (photograph.width - width), variant * 53 % (photograph.height - height)
    tile = photograph.crop((left, top, left + width, top + height))
    ImageDraw.Draw(tile).rectangle((0, 0, _PATCH - 1, _PATCH - 1), fill=(20 + _GREY_STEP * painted,) * 3)
    return tile


def painted_class(pixels: NDArray[np.uint8]) -> int:
    """The class that an image says it is of. `pixels` are uint8 [height, width, 3]."""
    return round((float(pixels[4 : _PATCH // 2, 4 : _PATCH // 2].mean()) - 20) / _GREY_STEP)


def odd_bytes(image: Image.Image, kind: str) -> bytes:
    """The image as one of the oddities that the real data set holds."""
    if kind == "png":
        stream = io.BytesIO()
        image.convert("RGBA").save(stream, "PNG")
        return stream.getvalue()
    if kind == "corrupt_exif":
        content = jpeg_bytes(image)
        return content[:2] + b"\xff\xe1\x00\x12Exif\x00\x00II*\x00\xff\xff\xff\x7f\x00\x00" + content[2:]
    return jpeg_bytes(image.convert({"cmyk": "CMYK", "grey": "L"}[kind]))


_ODD_KINDS = ("cmyk", "png", "grey", "corrupt_exif")


def tar_bytes(members: Mapping[str, bytes]) -> bytes:
    """An uncompressed tar, as GNU tar writes it."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.GNU_FORMAT) as tar:
        _add(tar, members)
    return stream.getvalue()


def write_devkit(
    path: Path, ground_truth: list[int], wnids: tuple[str, ...] = WNIDS, folder: str = "ILSVRC2012_devkit_t12"
) -> None:
    """A devkit of as many classes as there are wnids; their ILSVRC2012_IDs are 1, 2, 3 … but for the default ones."""
    ids = _ILSVRC2012_IDS if wnids is WNIDS else tuple(range(1, len(wnids) + 1))
    leaves = [_synset(i, wnid, ()) for i, wnid in zip(ids, wnids, strict=True)]
    inner = [_synset(len(wnids) + 1 + k, wnid, children) for k, (wnid, children) in enumerate(_INNER_NODES)]
    meta = io.BytesIO()
    rows = sorted(leaves + inner, key=lambda row: row[0])
    savemat(meta, {"synsets": np.array(rows, dtype=_SYNSET_FIELDS).reshape(-1, 1)})
    members = {
        f"{folder}/readme.txt": b"a development kit",
        f"{folder}/data/meta.mat": meta.getvalue(),
        f"{folder}/data/ILSVRC2012_validation_ground_truth.txt": "".join(f"{i}\n" for i in ground_truth).encode(),
    }
    with tarfile.open(path, "w:gz") as tar:
        for name in (folder, f"{folder}/data"):
            info = tarfile.TarInfo(name)
            info.type = tarfile.DIRTYPE
            tar.addfile(info)
        _add(tar, members)


_SYNSET_FIELDS = [
    (name, object)
    for name in (
        "ILSVRC2012_ID",
        "WNID",
        "words",
        "gloss",
        "num_children",
        "children",
        "wordnet_height",
        "num_train_images",
    )
]


def _synset(number: int, wnid: str, children: tuple[int, ...]) -> tuple[object, ...]:
    height = 2 if children else 0
    return (number, wnid, f"thing {number}", f"what {number} means", len(children), np.array(children), height, 5)


def _add(tar: tarfile.TarFile, members: Mapping[str, bytes]) -> None:
    for name, content in members.items():
        info = tarfile.TarInfo(name)
        info.size = len(content)
        info.mtime = 1_339_000_000
        tar.addfile(info, io.BytesIO(content))
