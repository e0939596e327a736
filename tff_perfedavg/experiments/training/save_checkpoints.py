"""Callback that saves checkpoints: periodically, at the end, and when stopped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tff_perfedavg import errors
from tff_perfedavg.data.user_store import UserStore
from tff_perfedavg.experiments.files.checkpoints import CheckpointManager
from tff_perfedavg.experiments.training.rounds import Callback
from tff_perfedavg.experiments.training.run_identity import RunIdentity
from tff_perfedavg.experiments.training.simulation import Round


class SaveCheckpoints(Callback):
    """Callback that saves state and callbacks' notes, and stops when asked to."""

    def __init__(
        self,
        manager: CheckpointManager,
        every: int,
        noted: Sequence[Callback],
        identity: RunIdentity,
        population: UserStore,
        asked_to_stop: Callable[[], bool],
    ):
        """Takes what is saved, and when.

        Args:
          manager: of the run's checkpoints.
          every: rounds from one checkpoint to the next.
          noted: the callbacks whose notes are kept.
          identity: of the run.
          population: the run's users. Rounds on rows that changed are not kept.
          asked_to_stop: tells whether to stop when the round is saved.
        """
        self._manager = manager
        self._every = every
        self._noted = noted
        self._identity = identity
        self._population = population
        self._asked_to_stop = asked_to_stop

    def after_round(self, after: Round) -> bool:
        stops = self._asked_to_stop() and not after.is_last
        if stops or after.is_last or after.done % self._every == 0:
            self._save(after.done, after.state)
        return stops

    def diverged(self, done: int, state: Any, error: errors.Diverged) -> str:
        self._save(done, state)
        return ""

    def _save(self, done: int, state: Any) -> None:
        self._population.check_unchanged()
        notes = self._identity.notes()
        for callback in self._noted:
            notes.update(callback.notes())
        is_secret = self._identity.secret is not None
        self._manager.write(state, done, notes, is_secret=is_secret)
