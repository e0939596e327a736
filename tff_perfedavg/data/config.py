"""Configuration of data: the data set and its partition among users.

Plain Python, for checks before anything is loaded.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Collection

from tff_perfedavg import errors
from tff_perfedavg.settings import setting

NATURAL = "natural"
PAPER = "paper"
PAPER_DIFF_HETERO = "paper_diff_hetero"
DIRICHLET = "dirichlet"
K_CLASSES = "k_classes"
IID = "iid"
QUANTITY_SKEW = "quantity_skew"
TASKS = "tasks"
PARTITIONS = (
    NATURAL,
    PAPER,
    PAPER_DIFF_HETERO,
    DIRICHLET,
    K_CLASSES,
    IID,
    QUANTITY_SKEW,
    TASKS,
)

# What each data set is divided by unless told otherwise. Those with the paper's rule or
# `tasks` come without owners and take any partition but `natural`; the others take
# `natural` and, but for the generated and TFF's own, any other but `tasks`.
_PAPER_IMAGES = {"partition": PAPER, "num_users": 50, "evaluation_a": 34}
_DEFAULTS: dict[str, dict] = {
    "digits": {
        "partition": PAPER,
        "num_users": 26,
        "num_new_users": 6,
        "a": 8,
        "evaluation_a": 4,
    },
    "mnist": {**_PAPER_IMAGES, "a": 196},
    "mnist_by_writer": {"partition": NATURAL},
    "fashion_mnist": {**_PAPER_IMAGES, "a": 196},
    "cifar10": {**_PAPER_IMAGES, "a": 68},
    "uci_har": {"partition": NATURAL, "evaluation_fraction": 0.3},
    # Windows of 41 characters: speakers of about a thousand and more.
    # Five signs of each user, ten drawings of each to adapt on and ten to be judged by.
    "omniglot": {
        "partition": TASKS,
        "num_users": 1200,
        "num_new_users": 200,
        "classes_per_user": 5,
        "evaluation_fraction": 0.5,
        "own_labels": 5,
    },
    "shakespeare": {"partition": NATURAL, "min_rows": 24, "num_new_users": 28},
    "femnist": {"partition": NATURAL},
    "cifar100": {"partition": NATURAL},
    "stackoverflow": {"partition": NATURAL},
    "synthetic": {"partition": NATURAL, "num_users": 100, "num_new_users": 20},
    "sinusoid": {"partition": NATURAL, "num_users": 1000, "num_new_users": 200},
}
DATASETS = tuple(_DEFAULTS)
# Their users are made, not found: only `natural` divides them.
GENERATED = ("synthetic", "sinusoid")
# Their labels are numbers; all others' are classes.
REGRESSION = ("sinusoid",)
# Read through TFF's loaders, user by user: likewise.
FROM_TFF = ("femnist", "cifar100", "stackoverflow")
# What each partition goes by, beside the numbers of users and the seed.
_FIELDS_OF = {
    NATURAL: ["min_rows"],
    PAPER: ["a", "evaluation_a"],
    PAPER_DIFF_HETERO: ["a", "evaluation_a"],
    DIRICHLET: ["concentration", "rows_per_user"],
    K_CLASSES: ["classes_per_user"],
    IID: [],
    QUANTITY_SKEW: ["concentration"],
    TASKS: ["classes_per_user", "turned_classes"],
}
# Classes belong to families (alphabets), which tasks are made of.
WITH_FAMILIES = ("omniglot",)
# Rows as they are, or what a frozen network with weights from elsewhere makes of them.
RAW = "raw"
FEATURES = (RAW, "efficientnet_lite0")
# Whose rows are images, which such networks take.
IMAGES = (
    "digits",
    "mnist",
    "mnist_by_writer",
    "fashion_mnist",
    "cifar10",
    "omniglot",
    "femnist",
    "cifar100",
)
# Pixels a side. Networks halve them five times; above, nothing was tried.
_LEAST_SIZE, _MOST_SIZE = 32, 1024
# Fields that are numbers of users, rows or classes.
_COUNTS = (
    "num_users",
    "num_new_users",
    "a",
    "evaluation_a",
    "rows_per_user",
    "classes_per_user",
    "min_rows",
)
_MOST = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """A data set and how it is divided among users.

    `DataConfig.of(dataset, ...)` takes what suits the data set for every field not
    given.
    """

    dataset: str = setting(dataclasses.MISSING, "Data set.", DATASETS)
    partition: str = setting(dataclasses.MISSING, "How it is divided.", PARTITIONS)
    num_users: int = setting(
        50,
        "Users to make, seen and new together; natural partitions have those that "
        "there are.",
    )
    num_new_users: int = setting(
        0,
        "How many are held out of training. Where the data set says itself who is new "
        "(mnist_by_writer, uci_har), 0 leaves it to that.",
    )
    fold: str = setting(
        "",
        "Which users are new, as K/N: the K-th of N parts of all, drawn by lot, so "
        "that over K from 1 to N each is new once; in the place of num_new_users.",
    )
    a: int = setting(8, "The paper's rule: adaptation rows per class, even.")
    evaluation_a: int = setting(4, "The same for evaluation rows.")
    concentration: float = setting(0.5, "Of dirichlet and quantity_skew.")
    rows_per_user: int = setting(100, "Of dirichlet.")
    classes_per_user: int = setting(2, "Of k_classes and tasks.")
    evaluation_fraction: float = setting(
        0.2,
        "Share of a user's rows (or segments) kept for evaluation, where the rule does "
        "not say.",
    )
    min_rows: int = setting(2, "Natural users with fewer rows are left out.")
    own_labels: int = setting(
        0,
        "Every user keeps this many of its classes, in an order of its own, as labels "
        "0, 1, ...; 0 leaves labels as they are.",
    )
    fresh_labels: bool = setting(
        True,
        "With own_labels: in every round a user trains on as many of its classes, "
        "drawn afresh, in an order drawn afresh; evaluation keeps to its own.",
    )
    turned_classes: bool = setting(
        True,
        "Of tasks: a user who trains sees its images turned by a multiple of 90 "
        "degrees, drawn by lot: four times as many classes to learn from.",
    )
    features: str = setting(
        RAW,
        "Users' rows: raw, or the features that a frozen network pretrained on "
        "ImageNet makes of their images, on which a head is trained; the export joins "
        "both.",
        FEATURES,
    )
    image_size: int = setting(
        128, "Pixels a side that images are resized to for a frozen network."
    )
    synthetic_alpha: float = setting(1.0, "How unlike users' models are, of synthetic.")
    synthetic_beta: float = setting(1.0, "How unlike their features are, of synthetic.")
    seed: int = setting(0, "Seed of every draw.", lowest=0)

    def __post_init__(self):
        errors.check_known("dataset", self.dataset, DATASETS)
        errors.check_known("partition", self.partition, PARTITIONS)
        if self.partition == NATURAL and not self._has_owners:
            raise errors.ConfigError(
                f"partition is 'natural', but {self.dataset} does not say whose its "
                "rows are; choose another partition."
            )
        if self.dataset in GENERATED + FROM_TFF and self.partition != NATURAL:
            raise errors.ConfigError(
                f"partition is {self.partition!r}, but {self.dataset} comes user by "
                "user; only 'natural' divides it."
            )
        # Of users that are found, how many there are is not known yet.
        most = _MOST if self._is_found else self.num_users - 1
        if not 0 <= self.num_new_users <= most:
            raise errors.ConfigError(
                f"num_new_users is {self.num_new_users} of {self.num_users} users; "
                "at least one user must be left to train."
            )
        for field in _COUNTS:
            if getattr(self, field) > _MOST:
                raise errors.ConfigError(
                    f"{field} is {getattr(self, field)}; it must be at most {_MOST}, "
                    "since users and rows are counted in int32."
                )
        if self.partition in (PAPER, PAPER_DIFF_HETERO):
            for field, wanting in (("a", "adapt on"), ("evaluation_a", "be judged on")):
                if getattr(self, field) < 2:
                    raise errors.ConfigError(
                        f"{field} is {getattr(self, field)}, which leaves users no "
                        f"rows to {wanting}; it must be an even number of at least 2."
                    )
            for field in ("num_users", "num_new_users", "a", "evaluation_a"):
                if getattr(self, field) % 2:
                    raise errors.ConfigError(
                        f"{field} is {getattr(self, field)}; the paper's rule needs "
                        "an even number."
                    )
        if not 0 < self.evaluation_fraction < 1:
            raise errors.ConfigError(
                f"evaluation_fraction is {self.evaluation_fraction}; it must be "
                "between 0 and 1."
            )
        self._check_fold()
        self._check_own_labels()
        self._check_features()
        for field in ("synthetic_alpha", "synthetic_beta"):
            value = getattr(self, field)
            if not (math.isfinite(value) and value >= 0):
                raise errors.ConfigError(f"{field} is {value}; it must be at least 0.")
        if self.seed < 0:
            raise errors.ConfigError(f"seed is {self.seed}; it must be at least 0.")

    @property
    def fold_of(self) -> tuple[int, int] | None:
        """Number of the fold, from 1, and of how many; None without folds."""
        if not self.fold:
            return None
        number, _, count = self.fold.partition("/")
        return int(number), int(count)

    def _check_fold(self) -> None:
        if not self.fold:
            return
        if not re.fullmatch(r"[0-9]{1,9}/[0-9]{1,9}", self.fold):
            raise errors.ConfigError(
                f"fold is {self.fold!r}; write which of how many, for example 3/10."
            )
        number, count = self.fold_of or (0, 0)
        if not 1 <= number <= count or count < 2:
            raise errors.ConfigError(
                f"fold is {self.fold}; it must be from 1/N to N/N, of at least 2."
            )
        if self.num_new_users:
            raise errors.ConfigError(
                f"fold is {self.fold} and num_new_users {self.num_new_users}; leave "
                "out one of the two."
            )
        without = (PAPER, PAPER_DIFF_HETERO, TASKS)
        if self.partition in without or self.dataset in GENERATED + FROM_TFF:
            raise errors.ConfigError(
                f"fold is {self.fold}, but users of {self.dataset} by "
                f"{self.partition} are new by another rule; give num_new_users."
            )

    def _check_own_labels(self) -> None:
        count = self.own_labels
        if count and not 2 <= count <= _MOST:
            raise errors.ConfigError(
                f"own_labels is {count}; it must be a whole number of at least 2, or 0 "
                "for labels as they are."
            )
        if count and self.dataset in REGRESSION:
            raise errors.ConfigError(
                f"own_labels is {count}, but the labels of {self.dataset} are numbers, "
                "not classes; leave it out."
            )
        if not count and not self.fresh_labels:
            raise errors.ConfigError(
                "fresh_labels is False, but labels are as they are; give own_labels."
            )
        if self.partition == TASKS and self.dataset not in WITH_FAMILIES:
            raise errors.ConfigError(
                f"partition is 'tasks', but the classes of {self.dataset} are of no "
                f"families, as those of {', '.join(WITH_FAMILIES)} are; choose another "
                "partition, k_classes for example."
            )
        if self.partition != TASKS and not self.turned_classes:
            raise errors.ConfigError(
                f"turned_classes is False, but partition {self.partition} turns none; "
                "leave it out."
            )
        if self.partition == TASKS and count > self.classes_per_user:
            raise errors.ConfigError(
                f"own_labels is {count}, but users hold {self.classes_per_user} "
                "classes (classes_per_user); the largest feasible is "
                f"{self.classes_per_user}."
            )

    def _check_features(self) -> None:
        errors.check_known("features", self.features, FEATURES)
        if self.features != RAW and self.dataset not in IMAGES:
            raise errors.ConfigError(
                f"features is {self.features!r}, which takes images, and the rows of "
                f"{self.dataset} are none; those of {', '.join(IMAGES)} are."
            )
        if not _LEAST_SIZE <= self.image_size <= _MOST_SIZE:
            raise errors.ConfigError(
                f"image_size is {self.image_size}; it must be from {_LEAST_SIZE} to "
                f"{_MOST_SIZE} pixels."
            )

    @classmethod
    def of(cls, dataset: str, **fields) -> DataConfig:
        """Builds a configuration from the data set's defaults and the fields given.

        Args:
          dataset: one of `DATASETS`.
          **fields: other fields by name, in the place of the data set's defaults.

        Raises:
          ConfigError: if the data set is unknown, or a field out of range.
        """
        errors.check_known("dataset", dataset, DATASETS)
        usual = dict(_DEFAULTS[dataset])
        if fields.get("fold"):
            # Folds say who is new.
            usual.pop("num_new_users", None)
        return cls(dataset=dataset, **{**usual, **fields})

    @property
    def ignored(self) -> dict[str, str]:
        """Reasons why fields have no effect on this data set and partition, by name."""
        reasons = {}
        for name in {name for names in _FIELDS_OF.values() for name in names}:
            if name not in _FIELDS_OF[self.partition]:
                reasons[name] = f"partition {self.partition} has no such setting"
                takers = [p for p in self._others if name in _FIELDS_OF[p]]
                if takers:
                    reasons[name] += f" ({' and '.join(takers)} have)"
        if self.dataset in GENERATED:
            reasons["min_rows"] = f"of {self.dataset} no user is left out"
        if self._is_found:
            reasons["num_users"] = f"{self.dataset} has the users that there are"
        if self.partition in (PAPER, PAPER_DIFF_HETERO):
            reasons["evaluation_fraction"] = (
                f"partition {self.partition} goes by evaluation_a"
            )
        if self.dataset in FROM_TFF:
            reasons["evaluation_fraction"] = (
                f"{self.dataset} says itself which rows evaluate"
            )
        if self.features == RAW:
            reasons["image_size"] = f"features is {RAW}, and images stay as they are"
        if self.dataset != "synthetic":
            for name in ("synthetic_alpha", "synthetic_beta"):
                reasons[name] = f"dataset is {self.dataset}"
        return reasons

    @property
    def _is_found(self) -> bool:
        """Whether the data set says who its users are."""
        return self.partition == NATURAL and self.dataset not in GENERATED

    @property
    def _has_owners(self) -> bool:
        """Whether the data set says whose its rows are."""
        return _DEFAULTS[self.dataset]["partition"] == NATURAL

    @property
    def _others(self) -> list[str]:
        """The other partitions that the data set can have."""
        if self.dataset in GENERATED + FROM_TFF:
            return []
        can = {NATURAL: self._has_owners, TASKS: self.dataset in WITH_FAMILIES}
        return [p for p in PARTITIONS if p != self.partition and can.get(p, True)]

    def check_given(self, given: Collection[str]) -> None:
        """Raises `ConfigError` if a field that was given has no effect.

        Args:
          given: names of fields.
        """
        ignored = self.ignored
        for name in given:
            if name in ignored:
                raise errors.ConfigError(
                    f"{name} is {getattr(self, name)}, but {ignored[name]}; leave it "
                    "out."
                )

    def __str__(self) -> str:
        """Returns the fields that matter for this data set and partition."""
        fields = ["dataset", "partition"]
        if not self._is_found:
            fields.append("num_users")
        fields.append("fold" if self.fold else "num_new_users")
        fields += _FIELDS_OF[self.partition]
        if self.dataset == "synthetic":
            fields += ["synthetic_alpha", "synthetic_beta"]
        if self.partition not in (PAPER, PAPER_DIFF_HETERO):
            fields.append("evaluation_fraction")
        if self.own_labels:
            fields += ["own_labels", "fresh_labels"]
        if self.features != RAW:
            fields += ["features", "image_size"]
        return ", ".join(f"{name}={getattr(self, name)}" for name in [*fields, "seed"])
