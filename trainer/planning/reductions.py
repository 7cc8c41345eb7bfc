"""When ZeRO-1 and 2 reduce gradients, and what that takes for a moment.

Gradients are copied into a bucket: at stage 2 as the backward pass completes them, at stage 1 after it, group by group
(with ``overlap_comm`` as at stage 2). A bucket that has no room for the next one is reduced: its content is joined into
a copy, the copy is all-reduced and copied back, and what belongs to this rank moves to a buffer for all of its
gradients, which the first reduction allocates. The last bucket is reduced when nothing is saved any more.
"""

from trainer.planning.parameter_use import ParameterUse


def bucket_fills(use: ParameterUse, bucket: int, *, after_backward: bool) -> list[int]:
    """Elements that each reduction of a micro-batch reduces, first to last, with buckets of `bucket` elements.

    `after_backward`: all in a row by group, not as their gradients come. A parameter larger than a bucket is reduced by
    itself."""
    by_group = [name for group in use.live_groups for name in group]
    fills: list[int] = []
    for name in by_group if after_backward else use.gradient_order:
        size = use.sizes[name]
        if fills and fills[-1] + size <= bucket:
            fills[-1] += size
        else:
            fills.append(size)
    return fills


def most_during_reductions(fills: list[int], *, size: int, own: int, held: int, in_backward: int, stays: bool) -> int:
    """Bytes at the worst reduction of a micro-batch, beside the buckets.

    `size`: bytes of an element; `own`: bytes of the buffer for this rank's gradients; `held`: of gradients from earlier
    micro-batches; `in_backward`: what the backward pass needs beside gradients as it begins, which goes as gradients
    come, 0 if it is over; `stays`: all gradients may be there before the first reduction (stage 1)."""
    most, reduced, total = 0, 0, sum(fills)
    for number, fill in enumerate(fills):
        reduced += fill
        copy = max(fill * size, 0 if number else own)
        unreduced = (total - reduced) * size if stays else 0
        saved = in_backward * (total - reduced) // total
        most = max(most, held + copy + (own if number else 0) + unreduced + saved)
    return most
