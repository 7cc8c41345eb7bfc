"""The progress bar of every command that goes through images: images and megabytes per second, and the time left."""

from typing import Any

from tqdm import tqdm

_FORMAT = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}, {megabyte_rate}]"


class ImageProgress(tqdm):
    """A bar over `total` images, on stderr."""

    def __init__(self, total: int, desc: str) -> None:
        self._num_bytes = 0
        super().__init__(total=total, desc=desc, unit="img", bar_format=_FORMAT)

    def add(self, images: int, num_bytes: int) -> None:
        """So many images more are done; they are so many bytes."""
        self._num_bytes += num_bytes
        self.update(images)

    @property
    def format_dict(self) -> dict[str, Any]:
        """What `_FORMAT` may speak of; tqdm asks for it whenever it draws the bar."""
        facts = dict(super().format_dict)
        rate = self._num_bytes / facts["elapsed"] / 1e6 if facts["elapsed"] else 0.0
        return facts | {"megabyte_rate": f"{rate:.1f}MB/s"}
