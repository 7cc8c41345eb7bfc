"""Reading ahead: the next few reads run in the background while the present one is used."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Request = TypeVar("Request")
Result = TypeVar("Result")


def read_ahead(read: Callable[[Request], Result], requests: Iterable[Request], depth: int) -> Generator[Result]:
    """`map(read, requests)`, in the same order, with up to `depth` later reads running or done in the background.

    `requests` is drawn from in the calling thread, only `read` runs in others. An exception comes out at its request's
    turn. Reads that have not begun by then are dropped, as they are when the generator is closed. A depth of 0 reads in
    the calling thread."""
    if depth == 0:
        yield from map(read, requests)
        return
    pool = ThreadPoolExecutor(depth, thread_name_prefix="read-ahead")
    pending: deque[Future[Result]] = deque()
    try:
        for request in requests:
            pending.append(pool.submit(read, request))
            if len(pending) > depth:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
