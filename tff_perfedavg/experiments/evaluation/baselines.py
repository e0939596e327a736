"""Trivial baselines: what users reach by their label shares alone, without a gradient.

Where users differ in which labels they hold, much of what personalization gains is
knowing these labels. Three baselines measure how much, from the labels of a user's
adaptation rows:

- the majority class: the user's most frequent label, whatever the row;
- absent classes masked: the model, without the classes that the user does not hold;
- label shares: the model's logits + log p_user - log p_all, the correction for another
  prior (Saerens, Latinne and Decaestecker, 2002). p_user are the shares of the user's
  labels; p_all is their mean over training users, which count alike in training, too,
  whatever their rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
import scipy.special
import tensorflow as tf

from tff_perfedavg import errors
from tff_perfedavg.data.heterogeneity import label_histograms
from tff_perfedavg.data.user_store import Rows, UserStore
from tff_perfedavg.experiments.evaluation.metrics import NEW, SEEN
from tff_perfedavg.models.model import Model

MAJORITY = "majority class"
_ROWS_AT_ONCE = 4096


def evaluate_baselines(
    model: Model, weights: Sequence[np.ndarray], population: UserStore, label: str
) -> pd.DataFrame:
    """Measures every user of a population, seen and new, with each baseline.

    Evaluation labels are used to judge, never to answer. A user without adaptation
    rows has the shares of all; a class of a new user that no training user adapts on
    counts as if one row of theirs had it.

    Args:
      model: the model.
      weights: the initial model, which no user adapts.
      population: the users; labels must be classes.
      label: what the model's run is called.

    Returns:
      The rows of `evaluate_users`, of step 0 alone, behind a column `algorithm`. A user
      that is judged on a class that a baseline rules out has an infinite loss.

    Raises:
      DataError: if labels are no classes.
    """
    if population.description.num_classes is None or population.label_shape:
        raise errors.DataError(
            f"The labels of {population.path} are no classes, which label shares need; "
            "say --nobaselines."
        )
    own, everybodys = _log_shares(population)
    # What is added to the logits of a user, `[users, classes]`.
    priors = {
        MAJORITY: own,
        f"{_short(label)}, absent classes masked": np.where(own > -np.inf, 0, own),
        f"{_short(label)} + label shares": own - everybodys,
    }
    hits, losses = (
        {name: np.zeros(population.num_users) for name in priors} for _ in range(2)
    )
    for owners, logits, labels in _evaluation_logits(model, weights, population):
        for name, prior in priors.items():
            answers = prior[owners] + (0 if name == MAJORITY else logits)
            right, loss = _judge(answers, labels)
            np.add.at(hits[name], owners, right)
            np.add.at(losses[name], owners, loss)
    frames = [_frame(name, population, losses[name], hits[name]) for name in priors]
    return pd.concat(frames, ignore_index=True)


def _frame(
    name: str, population: UserStore, losses: np.ndarray, hits: np.ndarray
) -> pd.DataFrame:
    """Returns a baseline's rows from users' sums of losses and of right answers."""
    groups = {SEEN: population.training_users, NEW: population.new_users}
    everyone = np.concatenate(list(groups.values()))
    sizes = np.diff(np.asarray(population.users)[:, :3], axis=1)
    # NaN for users without evaluation rows.
    count = np.where(sizes[:, 1] > 0, sizes[:, 1], np.nan)
    return pd.DataFrame(
        {
            "algorithm": name,
            "users": np.repeat([*groups], [len(users) for users in groups.values()]),
            "user": everyone,
            "step": 0,
            "loss": (losses / count)[everyone],
            "accuracy": (hits / count)[everyone],
            "num_adaptation_examples": sizes[everyone, 0],
            "num_evaluation_examples": sizes[everyone, 1],
        }
    )


def _short(label: str) -> str:
    # Nobody updates a baseline.
    return label.removesuffix(" + update")


def _log_shares(population: UserStore) -> tuple[np.ndarray, np.ndarray]:
    """Returns log shares of adaptation labels: each user's, and all training users'."""
    counts = label_histograms(population, evaluation=False)
    sizes = counts.sum(1, keepdims=True)
    shares = counts / np.maximum(sizes, 1)
    training = population.training_users
    training = training[sizes[training, 0] > 0]
    # Of no training user, a class has the share that one row of theirs would have.
    least = 1 / max(counts[training].sum(), 1)
    mean = shares[training].mean(0) if len(training) else np.zeros(counts.shape[1])
    everybodys = np.log(np.maximum(mean, least))
    with np.errstate(divide="ignore"):
        own = np.log(shares)
    return np.where(sizes > 0, own, everybodys), everybodys


def _evaluation_logits(
    model: Model, weights: Sequence[np.ndarray], population: UserStore
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yields users' numbers, logits and labels of evaluation rows, some at a time."""
    users = np.asarray(population.users)
    owners = np.repeat(np.arange(len(users)), users[:, 2] - users[:, 0])
    places = np.flatnonzero(np.arange(len(owners)) >= users[owners, 1])
    apply = tf.function(
        lambda x: model.apply([tf.constant(w) for w in weights], x),
        input_signature=[model.input_spec],
    )
    for first in range(0, len(places), _ROWS_AT_ONCE):
        chosen = places[first : first + _ROWS_AT_ONCE]
        rows = Rows(population.features[chosen], population.labels[chosen])
        logits = apply(population.scaled(rows).x).numpy().astype(np.float64)
        yield owners[chosen], logits, np.asarray(rows.y, np.int64)


def _judge(answers: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns of each row whether it is right, and its cross-entropy."""
    normalised = answers - scipy.special.logsumexp(answers, axis=1, keepdims=True)
    losses = -normalised[np.arange(len(labels)), labels]
    right = (answers.argmax(1) == labels) & ~np.isnan(losses)
    return right, np.where(np.isnan(losses), np.inf, losses)
