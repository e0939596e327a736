"""TFF runtime of a job: this machine, or remote workers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from tff_perfedavg.data.user_store import UserStore
from tff_perfedavg.runtime.local_runtime import use_local_runtime
from tff_perfedavg.runtime.remote_runtime import use_remote_runtime
from tff_perfedavg.runtime.store_check import store_check


@contextlib.contextmanager
def runtime(workers: Sequence[str], population: UserStore) -> Iterator[None]:
    """Context manager that runs TFF on remote workers or, if none are named, locally.

    Connections to workers end with the block; TFF's default context stays what it is.

    Args:
      workers: `host:port` of each.
      population: whose store every worker must have.

    Raises:
      WorkerError: if a worker does not answer.
      DataError: if a worker has not this store.
    """
    if not workers:
        use_local_runtime()
        yield
        return
    with contextlib.closing(use_remote_runtime(workers, store_check(population))):
        yield
