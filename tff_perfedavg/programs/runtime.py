"""The runtime a job runs on: this machine, or workers elsewhere."""

from __future__ import annotations

from collections.abc import Sequence

from tff_perfedavg.data.user_store import UserStore
from tff_perfedavg.simulation.local_runtime import use_local_runtime
from tff_perfedavg.simulation.remote_runtime import use_remote_runtime
from tff_perfedavg.simulation.store_check import store_check


def use_runtime(workers: Sequence[str], population: UserStore) -> None:
    """Makes TFF run on workers elsewhere, or, if none are named, on this machine.

    Args:
      workers: `host:port` of each.
      population: whose store every worker must have.

    Raises:
      WorkerError: if a worker does not answer.
      DataError: if a worker has not this store.
    """
    if workers:
        use_remote_runtime(workers, store_check(population))
    else:
        use_local_runtime()
