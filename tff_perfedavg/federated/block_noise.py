"""Central differential privacy where a client stands for a block of users."""

from __future__ import annotations

import tensorflow as tf
import tensorflow_federated as tff


class BlockGaussianFactory(tff.aggregators.WeightedAggregationFactory):
    """Gaussian mechanism: noise on the sum of all users' updates, then their mean.

    For blocks whose update is the mean over their users and whose weight is the users'
    number; each user's update must have been clipped before (`clip_update`). What
    comes out is distributed as with
    `tff.aggregators.DifferentiallyPrivateFactory.gaussian_fixed` and one user per
    client: (sum over users + N(0, (noise_multiplier clip)^2)) / clients_per_round,
    where a user left out counts as zeros. The noise is not keyed by a seed: a seed that
    is known would take it away.
    """

    def __init__(self, noise_multiplier: float, clients_per_round: int, clip: float):
        """Takes the settings of `gaussian_fixed`.

        Args:
          noise_multiplier: standard deviation of the noise over `clip`.
          clients_per_round: users in a cohort.
          clip: the norm to which each user's update was clipped.
        """
        self._stddev = noise_multiplier * clip
        self._clients_per_round = clients_per_round

    def create(
        self, value_type: tff.Type, weight_type: tff.Type
    ) -> tff.templates.AggregationProcess:
        @tff.tensorflow.computation(value_type, weight_type)
        def sum_over_block(mean, weight):
            return tf.nest.map_structure(lambda t: t * tf.cast(weight, t.dtype), mean)

        @tff.tensorflow.computation(value_type)
        def noised_mean(total):
            return tf.nest.map_structure(
                lambda t: (t + tf.random.normal(t.shape, stddev=self._stddev))
                / self._clients_per_round,
                total,
            )

        @tff.federated_computation
        def initialize():
            return tff.federated_value((), tff.SERVER)

        @tff.federated_computation(
            initialize.type_signature.result,
            tff.FederatedType(value_type, tff.CLIENTS),
            tff.FederatedType(weight_type, tff.CLIENTS),
        )
        def next_fn(state, values, weights):
            total = tff.federated_sum(
                tff.federated_map(sum_over_block, (values, weights))
            )
            return tff.templates.MeasuredProcessOutput(
                state,
                tff.federated_map(noised_mean, total),
                tff.federated_value((), tff.SERVER),
            )

        return tff.templates.AggregationProcess(initialize, next_fn)
