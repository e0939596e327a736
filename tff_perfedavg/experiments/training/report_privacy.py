"""Callback that reports the privacy spent (epsilon) with every evaluation."""

from __future__ import annotations

from tff_perfedavg.experiments.settings.experiment import Experiment
from tff_perfedavg.experiments.settings.training_options import TrainingOptions
from tff_perfedavg.experiments.training.evaluate import Evaluation
from tff_perfedavg.experiments.training.privacy import PrivacyAccount, default_delta
from tff_perfedavg.experiments.training.rounds import Callback, Start
from tff_perfedavg.experiments.training.simulation import Round, Simulation
from tff_perfedavg.fleet.cohort import PoissonSampler
from tff_perfedavg.progress import tell


class ReportPrivacy(Callback):
    """Callback that accounts for the privacy spent in a run's rounds."""

    def __init__(
        self, simulation: Simulation, experiment: Experiment, options: TrainingOptions
    ):
        """Opens the account.

        Args:
          simulation: gives the users, and who of them takes part.
          experiment: gives the noise multiplier and the cohort's size.
          options: give delta.
        """
        num_users = len(simulation.population.training_users)
        if options.best_metric:
            tell(
                f"best_metric is {options.best_metric!r}: best.npz is chosen by what "
                "users make of it, which the epsilon printed does not cover."
            )
        self._sampler = simulation.sampler
        self._account = PrivacyAccount(
            experiment.aggregation.noise_multiplier,
            experiment.cohorts.clients_per_round / num_users,
            options.delta or default_delta(num_users),
            secret=isinstance(simulation.sampler, PoissonSampler),
        )

    def begin(self, start: Start) -> None:
        self._account.add_rounds(self._sampler.draw, start.done)

    def after_round(self, after: Round) -> bool:
        self._account.add_round(after.cohort)
        return False

    def add_to(self, evaluation: Evaluation) -> None:
        """Adds the epsilon spent to an evaluation's rows, and prints it."""
        account = self._account
        epsilon = account.epsilon()
        for row in evaluation.rows:
            row.update(epsilon=epsilon, delta=account.delta)
        text = (
            f"After {evaluation.done} rounds: differential privacy with epsilon "
            f"{epsilon:.3g} at delta {account.delta:.2g}"
        )
        if not account.secret:
            text += (
                ", that of the users who took part most often, "
                f"{account.most_contributions} times: cohorts follow from the seed, so "
                "sampling amplifies nothing"
            )
        tell(f"{text}.")
