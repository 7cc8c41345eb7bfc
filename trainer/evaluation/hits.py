"""Top-1 and top-5, counted."""

import torch
from torch import Tensor


def count_hits(scores: Tensor, labels: Tensor) -> Tensor:
    """int64 [2]: how many rows of scores [n, classes] have their label first, and among the first five. A score that is
    not finite is no answer."""
    values, classes = scores.topk(min(5, scores.shape[1]), dim=1)
    hits = (classes == labels[:, None]) & values.isfinite()
    return torch.stack([hits[:, 0].sum(), hits.sum()])
