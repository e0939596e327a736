"""Aggregators: clipping, robust, compressed, differentially private, secure."""

from __future__ import annotations

import logging
from typing import NamedTuple

import tensorflow_federated as tff

from tff_perfedavg.experiments.settings import parts
from tff_perfedavg.experiments.settings.parts import AggregationSettings
from tff_perfedavg.federated.block_noise import BlockGaussianFactory
from tff_perfedavg.federated.client_work import UpdateTransform
from tff_perfedavg.optimization.update_transforms import clip_update


class Aggregation(NamedTuple):
    """A TFF aggregator, and a transform of each user's update before it.

    Attributes:
      model_aggregator: TFF's, over clients; None for the weighted mean.
      update_transform: of each user's update, before any is summed; None for none.
    """

    model_aggregator: tff.aggregators.AggregationFactory | None
    update_transform: UpdateTransform | None


def build_aggregation(
    settings: AggregationSettings, clients_per_round: int, in_blocks: bool
) -> Aggregation:
    """Builds the aggregator and the update transform of the settings.

    Args:
      settings: what is asked for.
      clients_per_round: users in a cohort.
      in_blocks: whether a client stands for several users. One user per client leaves
        everything to TFF's aggregators; in blocks, what acts on a user's update acts
        before the sum, and noise after it, with the same distribution.
    """
    name, clip = settings.aggregator, settings.clipping_norm
    cohort, noise = clients_per_round, settings.noise_multiplier
    if name == parts.MEAN:
        return Aggregation(None, None)
    if name == parts.CLIP:
        assert clip is not None
        if in_blocks:
            return Aggregation(None, clip_update(clip))
        mean = tff.aggregators.MeanFactory()
        return Aggregation(tff.aggregators.clipping_factory(clip, mean), None)
    if name == parts.DP_FIXED:
        assert clip is not None
        if in_blocks:
            noised = BlockGaussianFactory(noise, cohort, clip)
            return Aggregation(noised, clip_update(clip))
        private = tff.aggregators.DifferentiallyPrivateFactory
        return Aggregation(private.gaussian_fixed(noise, cohort, clip), None)
    if name == parts.SECURE:
        # TFF's secure sums leave assertions of theirs unused, at length.
        logging.getLogger("tensorflow").addFilter(
            lambda record: "Object was never used" not in record.getMessage()
        )
    assert not in_blocks, f"{name} must see each user's update"
    builders = {
        parts.ROBUST: tff.learning.robust_aggregator,
        parts.COMPRESSION: tff.learning.compression_aggregator,
        parts.SECURE: tff.learning.secure_aggregator,
        # Zeroing would go by a norm that is found without noise: no epsilon covers it.
        parts.DP_ADAPTIVE: lambda: tff.learning.dp_aggregator(
            noise, cohort, zeroing=False
        ),
    }
    return Aggregation(builders[name](), None)
