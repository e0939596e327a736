"""Trainable subsets of a model's weight tensors: head, body or all.

Loads no framework.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from tff_perfedavg import errors

if TYPE_CHECKING:
    from tff_perfedavg.models.model import Model

_T = TypeVar("_T")
ALL, HEAD, BODY = "all", "head", "body"
PARTS = (ALL, HEAD, BODY)


class Moves(NamedTuple):
    """The trainable slice `weights[start:stop]` of a model's weight tensors.

    The head are a model's last tensors, a dense layer's kernel and bias for instance,
    and the body are the others.
    """

    start: int | None = None
    stop: int | None = None

    @classmethod
    def of(cls, part: str, head_tensors: int) -> Moves:
        """Returns the slice of a part of the model: all, head or body.

        Args:
          part: one of `PARTS`.
          head_tensors: how many of the last weight tensors are the head, at least 1.
        """
        return {
            ALL: EVERYTHING,
            HEAD: cls(start=-head_tensors),
            BODY: cls(stop=-head_tensors),
        }[part]

    @property
    def are_all(self) -> bool:
        """Whether every tensor moves."""
        return self == EVERYTHING

    def chosen(self, weights: Sequence[_T]) -> Sequence[_T]:
        """Returns the tensors that move."""
        return weights[self.start : self.stop]

    def join(self, weights: Sequence[_T], moved: Sequence[_T]) -> list[_T]:
        """Returns the weights with the tensors that move replaced.

        Args:
          weights: all tensors of the model.
          moved: as many as move, in the place of these.
        """
        joined = list(weights)
        joined[self.start : self.stop] = moved
        return joined

    def restrict(self, loss: Callable, weights: Sequence[Any]) -> Callable:
        """Returns the loss as a function of the tensors that move.

        Args:
          loss: from (weights, batch) to a scalar.
          weights: all tensors of the model; those that do not move are held fixed.

        Returns:
          A loss from (tensors that move, batch) to a scalar.
        """
        if self.are_all:
            return loss
        return lambda moved, batch: loss(self.join(weights, moved), batch)

    def check(self, model: Model) -> None:
        """Raises `ConfigError` unless the model has a tensor that moves."""
        head, count = -(self.start or self.stop or 0), len(model.init(0))
        if head > count or (head == count and self.start is None):
            raise errors.ConfigError(
                f"head_tensors is {head}, but {model.name!r} has {count} weight "
                "tensors; give fewer."
            )


EVERYTHING = Moves()
