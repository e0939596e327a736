"""Label baselines: majority class, masked classes and label shares (label shift).

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
from tff_perfedavg.experiments.evaluation.baseline_names import (
    MAJORITY,
    MASKED,
    SHARES,
    has_classes,
    name_for,
)
from tff_perfedavg.experiments.evaluation.metrics import NEW, SEEN
from tff_perfedavg.models.model import CLASS_LABELS, Model
from tff_perfedavg.optimization import batches
from tff_perfedavg.optimization.adaptation import adaptation_batches
from tff_perfedavg.optimization.config import AdaptationConfig

_ROWS_AT_ONCE = 4096


def evaluate_baselines(
    model: Model,
    weights: Sequence[np.ndarray],
    population: UserStore,
    label: str,
    histograms: np.ndarray | None = None,
) -> pd.DataFrame:
    """Evaluates each label baseline on every training user and new user.

    Evaluation labels are used to judge, never to answer. A user without adaptation
    rows has the shares of all; a class of a new user that no training user adapts on
    counts as if one row of theirs had it.

    Args:
      model: the model.
      weights: the initial model, which no user adapts.
      population: the users; labels must be classes.
      label: what the model's run is called.
      histograms: int `[users, classes]`, the adaptation rows of each class that users
        may know of; by default all.

    Returns:
      The rows of `evaluate_users`, of step 0 alone, behind columns `algorithm` (its
      name for people) and `baseline`. A user that is judged on a class that a baseline
      rules out has an infinite loss.

    Raises:
      DataError: if labels are no classes.
    """
    if not has_classes(population):
        raise errors.DataError(
            f"The labels of {population.path} are no classes, which label shares need; "
            "say --nobaselines."
        )
    own, everybodys = _log_shares(population, histograms)
    # What is added to the logits of a user, `[users, classes]`.
    priors = {
        MAJORITY: own,
        MASKED: np.where(own > -np.inf, 0, own),
        SHARES: own - everybodys,
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
    frame = pd.concat(frames, ignore_index=True)
    names = frame["baseline"].map(lambda name: name_for(name, label))
    frame.insert(0, "algorithm", names)
    if histograms is not None:
        frame["num_adaptation_examples"] = histograms.sum(1)[frame["user"]]
    return frame


def adaptation_histograms(
    population: UserStore, adaptation: AdaptationConfig, seed: int
) -> np.ndarray:
    """Counts the rows of each class that users adapt on, `[users, classes]`.

    Args:
      population: the users; labels must be classes.
      adaptation: gives the most rows that a user may use.
      seed: of the choice of rows, the adaptation's.
    """
    histograms = label_histograms(population, evaluation=False)
    num_rows = adaptation.num_rows
    if num_rows is None:
        return histograms
    of_class = adaptation.rows_per_class
    rows = AdaptationConfig(1.0, num_rows=num_rows, rows_per_class=of_class).build()
    seed_pair = batches.seed_pair(seed)

    @tf.function
    def used(user, labels):
        # The labels stand for their rows.
        own = batches.UserRows.of(labels, labels)
        chosen = adaptation_batches(own, tf.constant(seed_pair), user, rows)
        return chosen(tf.constant(0)).y

    # Traced by itself: TensorFlow warns of functions that calls trace time and again.
    used = used.get_concrete_function(tf.TensorSpec([], tf.int32), CLASS_LABELS)
    for user in np.flatnonzero(histograms.sum(1) > num_rows):
        labels = np.asarray(population.adaptation(user).y, np.int32)
        chosen = used(tf.constant(user, tf.int32), tf.constant(labels)).numpy()
        histograms[user] = np.bincount(chosen, minlength=histograms.shape[1])
    return histograms


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
            "baseline": name,
            "users": np.repeat([*groups], [len(users) for users in groups.values()]),
            "user": everyone,
            "step": 0,
            "loss": (losses / count)[everyone],
            "accuracy": (hits / count)[everyone],
            "num_adaptation_examples": sizes[everyone, 0],
            "num_evaluation_examples": sizes[everyone, 1],
        }
    )


def _log_shares(
    population: UserStore, histograms: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Returns log shares of adaptation labels: each user's, and all training users'."""
    counts = label_histograms(population, evaluation=False)
    sizes = counts.sum(1, keepdims=True)
    training = population.training_users
    training = training[sizes[training, 0] > 0]
    # Of no training user, a class has the share that one row of theirs would have.
    least = 1 / max(counts[training].sum(), 1)
    mean = np.zeros(counts.shape[1])
    if len(training):
        mean = (counts[training] / sizes[training]).mean(0)
    everybodys = np.log(np.maximum(mean, least))
    known = counts if histograms is None else histograms
    sizes = known.sum(1, keepdims=True)
    with np.errstate(divide="ignore"):
        own = np.log(known / np.maximum(sizes, 1))
    return np.where(sizes > 0, own, everybodys), everybodys


def _evaluation_logits(
    model: Model, weights: Sequence[np.ndarray], population: UserStore
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yields users' numbers, logits and labels of evaluation rows, some at a time."""
    users, owners = np.asarray(population.users), population.owners()
    places = np.flatnonzero(np.arange(len(owners)) >= users[owners, 1])
    apply = tf.function(
        lambda x: model.apply([tf.constant(w) for w in weights], x)
    ).get_concrete_function(model.input_spec)
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
