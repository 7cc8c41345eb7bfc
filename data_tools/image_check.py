"""All images of a split are looked at before the first shard is written, so that none is found bad halfway."""

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field

from data_tools.images import ImageHeader, read_header
from data_tools.progress import ImageProgress
from data_tools.samples import SourceImage
from trainer.data.decode import UndecodableImage, decode_rgb

_CHUNK = 64
# Holds the header of most photographs; for the others the file is read whole.
_HEAD_BYTES = 16 * 1024
_MAX_IMAGE_BYTES = 256 * 2**20
_END_OF_IMAGE = b"\xff\xd9"


@dataclass
class Findings:
    """Images by name: those that cannot be used, with the reason, and those that will be transcoded, with what they
    are. `resized` counts those that will be made smaller. `unreadable` are those that the operating system did not let
    us read: what is in them is not known."""

    bad: dict[str, str] = field(default_factory=dict)
    transcoded: dict[str, str] = field(default_factory=dict)
    resized: int = 0
    unreadable: dict[str, str] = field(default_factory=dict)

    def add(self, more: "Findings") -> None:
        self.bad |= more.bad
        self.transcoded |= more.transcoded
        self.resized += more.resized
        self.unreadable |= more.unreadable

    def ordered(self) -> "Findings":
        """The same whatever the order in which the images were looked at."""
        bad, transcoded, unreadable = (dict(sorted(d.items())) for d in (self.bad, self.transcoded, self.unreadable))
        return Findings(bad, transcoded, self.resized, unreadable)


@dataclass(frozen=True)
class CheckOptions:
    """Whether every image is decoded, and the shorter side to which images will be resized (None: they will not)."""

    decode: bool
    short_side: int | None


def check_images(
    pool: ProcessPoolExecutor, images: Sequence[SourceImage], options: CheckOptions, desc: str
) -> Findings:
    """Reads every image's header, and decodes those that will not be stored as they are or have no proper end: the
    writing of shards meets no image that it cannot use."""
    chunks = [images[first : first + _CHUNK] for first in range(0, len(images), _CHUNK)]
    findings = Findings()
    with ImageProgress(len(images), desc) as progress:
        futures = {pool.submit(_check_chunk, chunk, options): chunk for chunk in chunks}
        for future in as_completed(futures):
            findings.add(future.result())
            chunk = futures.pop(future)
            progress.add(len(chunk), sum(image.num_bytes for image in chunk))
    return findings.ordered()


def _check_chunk(images: Sequence[SourceImage], options: CheckOptions) -> Findings:
    findings = Findings()
    for image in images:
        try:
            header = _check_image(image, options)
        except OSError as error:
            findings.unreadable[image.name] = str(error.strerror)
        except UndecodableImage as error:
            findings.bad[image.name] = str(error)
        else:
            findings.resized += header.is_longer_than(options.short_side)
            if not header.stored_as_is:
                findings.transcoded[image.name] = header.description
    return findings


def _check_image(image: SourceImage, options: CheckOptions) -> ImageHeader:
    """Raises OSError, and UndecodableImage if training could not use the image."""
    if image.num_bytes == 0:
        raise UndecodableImage("is empty")
    if image.num_bytes > _MAX_IMAGE_BYTES:
        raise UndecodableImage(f"{image.num_bytes} bytes are more than an image can have ({_MAX_IMAGE_BYTES})")
    header = _header(image)
    if (
        options.decode
        or not header.stored_as_is
        or header.is_longer_than(options.short_side)
        or image.read(image.num_bytes - 2) != _END_OF_IMAGE
    ):
        decode_rgb(image.read())
    return header


def _header(image: SourceImage) -> ImageHeader:
    try:
        return read_header(image.read(count=_HEAD_BYTES))
    except UndecodableImage:
        if image.num_bytes <= _HEAD_BYTES:
            raise
    return read_header(image.read())
