"""Callback that warns of excluded users and of outlier updates, once each."""

from __future__ import annotations

import collections
import math
import statistics

from tff_perfedavg.experiments.settings.parts import COMPRESSION, MEAN, SECURE
from tff_perfedavg.experiments.training.rounds import Callback
from tff_perfedavg.experiments.training.simulation import Round
from tff_perfedavg.progress import tell

# Aggregators that let one user's update weigh as much as it is large.
_UNBOUNDED = (MEAN, COMPRESSION, SECURE)
# An update this many powers of ten above the usual is worth a word.
_OUTLIER_DECADES = 5
_USUAL_ROUNDS = 100


class WatchUpdates(Callback):
    """Callback that warns of the first excluded update, and of the first outlier."""

    def __init__(self, aggregator: str):
        self._aggregator = aggregator
        self._told_of_excluded = False
        self._told_of_outlier = aggregator not in _UNBOUNDED
        self._norms: collections.deque[float] = collections.deque(maxlen=_USUAL_ROUNDS)

    def after_round(self, after: Round) -> bool:
        self._look_for_excluded(after)
        if not self._told_of_outlier and after.metrics["num_users_taken"]:
            self._look_for_outlier(after)
        return False

    def _look_for_excluded(self, after: Round) -> None:
        # The metric counts users without rows, too.
        excluded = after.num_with_rows - after.metrics["num_users_taken"]
        if excluded > 0 and not self._told_of_excluded:
            self._told_of_excluded = True
            tell(
                f"Round {after.done - 1}: {excluded} of {after.num_with_rows} users' "
                "updates were not finite and were left out; the metrics count them "
                "from here on (num_users_excluded)."
            )

    def _look_for_outlier(self, after: Round) -> None:
        # In a cohort of one or two nobody is usual; other rounds are.
        norm, decades = after.metrics["update_norm"], after.outlier_decades
        total = norm * after.metrics["num_users_taken"]
        usual = statistics.median(self._norms) if self._norms else 0.0
        if usual and total > usual * 10**_OUTLIER_DECADES:
            decades = max(decades, int(math.log10(total / usual)))
        if decades < _OUTLIER_DECADES:
            self._norms.append(norm)
            return
        self._told_of_outlier = True
        tell(
            f"Round {after.done - 1}: a user's update is some 10^{decades} times the "
            f"usual, and the aggregator {self._aggregator} averages it in like any "
            "other. --aggregator=clip --clipping_norm=NORM bounds what one user "
            "can do."
        )
