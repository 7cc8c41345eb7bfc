"""`{split}.report.json`: which conversion a directory's shards belong to, and what was found about its images.

    {"fingerprint": …, "images": 1281167, "short_side": null, "resized": 0,
     "transcoded": {name: what it was}, "bad": {name: reason}, "unreadable": {name: reason}}

It is written once all images were looked at, before the first shard, and spares a run that continues that look, but for
files that the operating system did not let us read: that may pass."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from data_tools.image_check import CheckOptions, Findings
from data_tools.samples import SourceSplit
from trainer.errors import BadInput
from trainer.files import write_text

# Raised when the same images would give other shards than before.
_LAYOUT_VERSION = 2


@dataclass(frozen=True)
class Report:
    """The report of one split in a directory."""

    file: Path
    num_images: int
    check: CheckOptions
    fingerprint: str

    @classmethod
    def of(cls, output: Path, split: SourceSplit, check: CheckOptions, layout: tuple[int | None, ...]) -> "Report":
        """`layout` is what decides, besides the images, how they are dealt out to shards."""
        digest = hashlib.sha256(repr((_LAYOUT_VERSION, split.name, split.num_shards, check, layout)).encode())
        for image in split.images:
            # Files count as unchanged while their size and time are, so that a run with a terabyte of images resumes
            # without reading them.
            facts = (image.name, image.offset, image.num_bytes, image.modified_ns, image.label, image.class_name)
            digest.update(repr(facts).encode("utf-8", "backslashreplace"))
        return cls(output / f"{split.name}.report.json", len(split.images), check, digest.hexdigest())

    def recall(self) -> Findings | None:
        """What an earlier run of the same conversion found; None if there was none.

        Raises BadInput if the split's shards in this directory belong to another conversion."""
        try:
            report = json.loads(self.file.read_text(encoding="utf-8"))
            if report["fingerprint"] == self.fingerprint:
                return Findings(report["bad"], report["transcoded"], report["resized"], report["unreadable"])
        except (FileNotFoundError, ValueError, TypeError, KeyError):
            pass  # no report, or none that this version wrote: what the shards are is then unknown
        split = self.file.name.removesuffix(".report.json")
        if any(self.file.parent.glob(f"{split}-*.tar")):
            raise BadInput(
                f"{self.file.parent} holds shards of other images or options: choose another --output, "
                f"or delete its {split} shards"
            )
        return None

    def store(self, findings: Findings) -> None:
        facts = {"fingerprint": self.fingerprint, "images": self.num_images, "short_side": self.check.short_side}
        write_text(self.file, json.dumps(facts | asdict(findings), indent=1) + "\n")
