"""Base class of algorithms' configurations, checked before anything is loaded."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    import tensorflow as tf

    from tff_perfedavg.algorithms.registry import LocalSettings
    from tff_perfedavg.optimization.adaptation import Adaptation
    from tff_perfedavg.optimization.config import AdaptationConfig
    from tff_perfedavg.optimization.local_algorithm import LocalAlgorithm


class AlgorithmConfig:
    """Hyper-parameters of an algorithm, checked before anything is loaded.

    Subclasses are frozen dataclasses; what only some know is in their fields.

    Attributes:
      METHODS: the settings that each name stands for by which methods are compared;
        empty for an algorithm that is one method, under its own name.
      RATES: the settings that a device may give, and the fields they are.
      server_learning_rate: the server's own, of plain SGD; 1 makes the mean of the
        users' weights the server's.
    """

    METHODS: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    RATES: ClassVar[Mapping[str, str]] = {}
    server_learning_rate: ClassVar[float] = 1.0

    num_local_steps: int

    @classmethod
    def of(cls, settings: LocalSettings) -> AlgorithmConfig:
        """Builds the configuration from an experiment's settings."""
        raise NotImplementedError

    @property
    def label(self) -> str:
        """The method's name in tables and figures."""
        raise NotImplementedError

    @property
    def idle(self) -> Mapping[str, str]:
        """Settings of its own without effect, given the others, and why."""
        return {}

    @property
    def roles(self) -> Mapping[str, int]:
        """Rows of a local step's batches, by role."""
        raise NotImplementedError

    @property
    def adaptation(self) -> AdaptationConfig:
        """The default adaptation of what is trained."""
        raise NotImplementedError

    @property
    def remarks(self) -> Sequence[str]:
        """Warnings about the settings, a sentence each."""
        return ()

    def inner(self, in_graph: Mapping[str, Any]) -> Adaptation:
        """Returns the adaptation, at the rate that the graph gives, if it gives one."""
        adaptation = self.adaptation.build()
        rate = in_graph.get("inner_learning_rate", adaptation.learning_rate)
        return dataclasses.replace(adaptation, learning_rate=rate)

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """Rows of a local step's batches, in the order of the roles."""
        return tuple(self.roles.values())

    def build(self, **in_graph: tf.Tensor) -> LocalAlgorithm:
        """Builds the algorithm.

        Args:
          **in_graph: fields whose values are known in a graph alone, scalar tensors
            in the place of numbers.
        """
        raise NotImplementedError

    def with_values(self, values: Mapping[str, Any]):
        """Returns a copy with fields replaced, unchecked: tensors cannot be."""
        changed = copy.copy(self)
        vars(changed).update(values)
        return changed
