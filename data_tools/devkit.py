"""The labels of ILSVRC2012's validation set, from ILSVRC2012_devkit_t12.tar.gz.

Line k of its ground truth labels the k-th validation image with an ILSVRC2012_ID, which is *not* the label that
everybody trains with: that is the rank of the class's wnid among all wnids. The table `synsets` in meta.mat leads from
the one to the other. It also lists the inner nodes of WordNet's tree, which have children and are no classes."""

import io
import re
import tarfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.errors import BadInput

_NAME = "ILSVRC2012_devkit_t12.tar.gz"
_META = "data/meta.mat"
_GROUND_TRUTH = "data/ILSVRC2012_validation_ground_truth.txt"
# The devkit is 2.5 MB; an archive that would fill the memory is none.
_MAX_MEMBER_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Devkit:
    """`wnids` are sorted: a class's label is its place among them. `validation_labels` holds the label of image
    k + 1 at place k."""

    path: Path
    wnids: tuple[str, ...]
    validation_labels: tuple[int, ...]

    def validation_class(self, number: int) -> tuple[int, str]:
        """Label and wnid of ILSVRC2012_val_{number:08d}.JPEG."""
        label = self.validation_labels[number - 1]
        return label, self.wnids[label]

    def check_numbers(self, numbers: Collection[int], what: str) -> None:
        """Raises BadInput unless these are the numbers of all validation images, each once."""
        expected = len(self.validation_labels)
        if len(numbers) != expected or set(numbers) != set(range(1, expected + 1)):
            missing = sorted(set(range(1, expected + 1)) - set(numbers))
            first = f", the first one missing is number {missing[0]}" if missing else ""
            raise BadInput(
                f"{what} holds {len(numbers)} validation images where the ground truth in {self.path} has "
                f"{expected}{first}: one of the two is incomplete or of another data set; download it again"
            )


def read_devkit(path: Path) -> Devkit:
    """Raises BadInput if this is not the devkit of ILSVRC2012's tasks 1 and 2."""
    files = _read_members(path)
    wnid_of_id = _leaf_wnids(files[_META], path)
    wnids = sorted(wnid_of_id.values())
    label_of_wnid = {wnid: label for label, wnid in enumerate(wnids)}
    labels = []
    for number, line in enumerate(files[_GROUND_TRUTH].decode("ascii", "replace").split(), start=1):
        wnid = wnid_of_id.get(int(line)) if line.isascii() and line.isdigit() else None
        if wnid is None:
            raise BadInput(
                f"line {number} of {_GROUND_TRUTH} in {path} is '{line[:20]}', which is the ILSVRC2012_ID of no class "
                f"in meta.mat: it is not the official {_NAME}"
            )
        labels.append(label_of_wnid[wnid])
    return Devkit(path, tuple(wnids), tuple(labels))


def _read_members(path: Path) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    names = []
    try:
        with tarfile.open(path, "r:*") as archive:
            for member in archive:
                names.append(member.name)
                inside = member.name.removeprefix("./").partition("/")[2]
                if inside in (_META, _GROUND_TRUTH) and member.isreg() and member.size <= _MAX_MEMBER_BYTES:
                    file = archive.extractfile(member)
                    assert file is not None
                    found[inside] = file.read()
    except OSError as error:
        reason = error.strerror or f"not a whole .tar.gz ({error})"
        raise BadInput(f"--devkit {path} cannot be read: {reason}; give {_NAME}") from error
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise BadInput(f"--devkit {path} is not a whole .tar.gz ({error}): download {_NAME} again") from error
    if any(name.removeprefix("./").startswith("ILSVRC2012_devkit_t3") for name in names):
        raise BadInput(f"--devkit {path} is the devkit of task 3 (dogs): give {_NAME}")
    for wanted in (_META, _GROUND_TRUTH):
        if wanted not in found:
            raise BadInput(f"--devkit {path} holds no {wanted}: it is not {_NAME}")
    return found


def _leaf_wnids(meta: bytes, path: Path) -> dict[int, str]:
    """The wnid of each class by its ILSVRC2012_ID."""
    rows = _synsets(meta, path)
    leaves = [row for row in rows if row["num_children"] == 0]
    wnids = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in leaves}
    if len(set(wnids.values())) < len(leaves) or not all(re.fullmatch(r"n\d{8}", wnid) for wnid in wnids.values()):
        raise BadInput(f"the table of classes in meta.mat of {path} is not ILSVRC2012's: download {_NAME} again")
    return wnids


def _synsets(meta: bytes, path: Path) -> list[dict[str, Any]]:
    from scipy.io import loadmat  # takes a quarter of a second, for this one file

    try:
        table = loadmat(io.BytesIO(meta), squeeze_me=True, variable_names=["synsets"])["synsets"]
        return [{name: row[name] for name in ("ILSVRC2012_ID", "WNID", "num_children")} for row in table]
    except Exception as error:  # a damaged file makes loadmat raise nearly anything
        raise BadInput(
            f"meta.mat in --devkit {path} holds no readable table of synsets ({type(error).__name__}): "
            f"download {_NAME} again"
        ) from error
