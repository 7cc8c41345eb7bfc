"""Real photographs for tests: tiles of those inside scikit-image and scikit-learn, and files as odd as ImageNet's."""

import io
from importlib.util import find_spec
from pathlib import Path

from PIL import Image

_SOURCES = {
    "skimage": ["data/astronaut.png", "data/chelsea.png", "data/coffee.png", "data/rocket.jpg"],
    "sklearn": ["datasets/images/china.jpg", "datasets/images/flower.jpg"],
}
_EXIF_ORIENTATION = 0x0112
_ROTATED_90 = 6


def photographs() -> dict[str, Image.Image]:
    """Six RGB photographs of 451 to 640 pixels' width, by name."""
    found = {}
    for package, names in _SOURCES.items():
        spec = find_spec(package)
        assert spec is not None
        assert spec.origin is not None, f"{package} is not installed: pip install -e .[test]"
        for name in names:
            path = Path(spec.origin).parent / name
            with Image.open(path) as image:
                found[path.stem] = image.convert("RGB")
    return found


def jpeg_bytes(image: Image.Image, **options: object) -> bytes:
    """The image as a JPEG of quality 90."""
    stream = io.BytesIO()
    image.save(stream, "JPEG", **{"quality": 90, **options})
    return stream.getvalue()


def write_class_folders(root: Path, per_class: int, width: int, height: int) -> Path:
    """`per_class` tiles of each photograph as root/NAME/NN.jpg, so that base names collide between the classes. The
    tiles get a little smaller from one to the next: no two have the same size."""
    for name, photograph in photographs().items():
        (root / name).mkdir(parents=True)
        for number in range(per_class):
            w, h = width - number, height - number // 2
            left = number * 37 % (photograph.width - w)
            top = number * 53 % (photograph.height - h)
            tile = photograph.crop((left, top, left + w, top + h))
            (root / name / f"{number:02d}.jpg").write_bytes(jpeg_bytes(tile))
    return root


def odd_files() -> dict[str, bytes]:
    """Image files that occur in ImageNet or in the wild, all of them readable, by file name."""
    tile = photographs()["chelsea"].crop((100, 40, 300, 190))
    png = io.BytesIO()
    tile.convert("RGBA").save(png, "PNG")
    rotated = Image.Exif()
    rotated[_EXIF_ORIENTATION] = _ROTATED_90
    plain = jpeg_bytes(tile)
    # An EXIF segment that promises a directory where there is none.
    broken_exif = b"\xff\xe1\x00\x12Exif\x00\x00II*\x00\xff\xff\xff\x7f\x00\x00"
    return {
        "grey.JPEG": jpeg_bytes(tile.convert("L")),
        "cmyk.JPEG": jpeg_bytes(tile.convert("CMYK")),
        "png_by_content.JPEG": png.getvalue(),
        "corrupt_exif.JPEG": plain[:2] + broken_exif + plain[2:],
        "rotated_by_exif.jpg": jpeg_bytes(tile, exif=rotated.tobytes()),
        "progressive.jpg": jpeg_bytes(tile, progressive=True),
        "trailing_bytes.jpg": plain + b"\x00" * 700,
        "with.dots.in.its.name.jpeg": plain,
    }
