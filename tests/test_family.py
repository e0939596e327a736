"""Every algorithm's local steps, in graphs, against float64 NumPy from its paper."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from tests import family_reference, reference
from tests.helpers import batch_of, relative_error
from tff_perfedavg import errors
from tff_perfedavg.algorithms.anil import AnilConfig
from tff_perfedavg.algorithms.boil import BoilConfig
from tff_perfedavg.algorithms.fed_avg import FedAvgConfig
from tff_perfedavg.algorithms.fed_babu import FedBabuConfig
from tff_perfedavg.algorithms.fed_prox import FedProxConfig
from tff_perfedavg.algorithms.fed_recon import FedReconConfig
from tff_perfedavg.algorithms.fed_reptile import FedReptileConfig
from tff_perfedavg.algorithms.meta_sgd import MetaSgdConfig
from tff_perfedavg.algorithms.p_fed_me import PFedMeConfig
from tff_perfedavg.algorithms.per_fed_avg import PerFedAvgConfig
from tff_perfedavg.algorithms.registry import LocalSettings
from tff_perfedavg.models.dense import mlp
from tff_perfedavg.optimization.adaptation import Adaptation, adapt
from tff_perfedavg.optimization.config import AdaptationConfig
from tff_perfedavg.optimization.hessian import hessian_product
from tff_perfedavg.optimization.inner_steps import meta_gradient
from tff_perfedavg.optimization.local_update import local_update
from tff_perfedavg.optimization.moves import Moves

MODEL = mlp((4,), 3, hidden=(5,))
BY_HAND = reference.TwoLayerNetwork()
ALPHA, BETA = 0.3, 0.07
MOVING = {"all": (0, 1, 2, 3), "head": (2, 3), "body": (0, 1)}


def initial_weights():
    return BY_HAND.init(np.random.default_rng(0), 4, 5, 3)


def rows(seed, count):
    rng = np.random.default_rng(seed)
    return rng.normal(size=[count, 4]), rng.integers(3, size=[count])


SUPPORT, QUERY, HESSIAN = rows(1, 6), rows(2, 7), rows(3, 8)


def in_graph(function):
    """What a graph function gives, as nested arrays."""
    found = tf.function(function, autograph=False)()
    return tf.nest.map_structure(lambda t: t.numpy(), found)


def factors_of(kind, weights):
    rng = np.random.default_rng(7)
    if kind == "per_tensor":
        return list(rng.uniform(0.5, 2.0, len(weights)))
    return [rng.uniform(0.5, 2.0, w.shape) for w in weights]


@pytest.mark.parametrize("batch", ["support", "own"])
@pytest.mark.parametrize(
    ("steps", "moves", "pull", "kind"),
    [
        (1, "all", 0.0, None),
        (3, "all", 0.0, "per_tensor"),
        (3, "head", 0.7, "per_weight"),
        (3, "body", 0.7, None),
        (2, "body", 0.0, "per_tensor"),
    ],
)
def test_the_exact_gradient_on_the_own_rows_is_that_of_what_a_user_experiences(
    steps, moves, pull, kind, batch
):
    """Differentiated as a whole, or step by step with D in the place of D''."""
    weights = initial_weights()
    factors = None if kind is None else factors_of(kind, weights)
    how = {"alpha": ALPHA, "steps": steps, "moving": MOVING[moves], "pull": pull}

    def objective(weights, factors):
        return family_reference.meta_objective(
            BY_HAND, weights, SUPPORT, QUERY, factors=factors, **how
        )

    inner = Adaptation(ALPHA, steps, Moves.of(moves, 2), pull)
    batches = {"support": batch_of(*SUPPORT), "query": batch_of(*QUERY)}
    if batch == "own":
        batches["hessian"] = batches["support"]

    def compute():
        own = None if factors is None else [tf.constant(f) for f in factors]
        found = meta_gradient(
            MODEL.batch_loss,
            [tf.constant(w) for w in weights],
            batches,
            dataclasses.replace(inner, factors=own),
            hessian_product("exact", batch),
            BETA,
        )
        return found.of_weights, found.of_factors or [], found.losses

    of_weights, of_factors, losses = in_graph(compute)
    expected = family_reference.central_differences(
        lambda w: objective(w, factors), weights
    )
    assert relative_error([g / BETA for g in of_weights], expected) < 1e-8
    assert np.isclose(losses["query_loss"], objective(weights, factors))
    assert np.isclose(losses["support_loss"], BY_HAND.loss(weights, *SUPPORT))
    if factors is not None:
        expected = family_reference.central_differences(
            lambda phi: objective(weights, phi), factors
        )
        assert relative_error([g / BETA for g in of_factors], expected) < 1e-8


@pytest.mark.parametrize(
    ("variant", "moves"),
    [
        ("exact", "all"),
        ("exact", "head"),
        ("hessian_free", "body"),
        ("first_order", "all"),
    ],
)
def test_the_meta_gradient_of_three_steps_goes_back_along_them(variant, moves):
    """Products on rows of their own are no function's gradient: held to the formula."""
    weights = initial_weights()
    delta = 1e-2

    def by_differences(point, vector, rows):
        e = delta / np.sqrt(sum((t**2).sum() for t in vector))
        ahead = BY_HAND.gradient(reference.axpy(e, vector, point), *rows)
        behind = BY_HAND.gradient(reference.axpy(-e, vector, point), *rows)
        return [(a - b) / (2 * e) for a, b in zip(ahead, behind, strict=True)]

    product = {
        "exact": lambda p, v, r: BY_HAND.hessian_vector(p, v, *r),
        "hessian_free": by_differences,
        "first_order": None,
    }[variant]
    expected = family_reference.meta_gradient(
        BY_HAND,
        weights,
        (SUPPORT, QUERY, HESSIAN),
        ALPHA,
        3,
        MOVING[moves],
        product,
    )
    batches = {
        "support": batch_of(*SUPPORT),
        "query": batch_of(*QUERY),
        "hessian": batch_of(*HESSIAN),
    }
    inner = Adaptation(ALPHA, 3, Moves.of(moves, 2))
    found = in_graph(
        lambda: meta_gradient(
            MODEL.batch_loss,
            [tf.constant(w) for w in weights],
            batches,
            inner,
            hessian_product(variant, delta=delta),
        ).of_weights
    )
    assert relative_error(found, expected) < 1e-9


def test_products_on_rows_of_their_own_are_biased_against_what_users_experience():
    """Few rows and a large alpha: means over draws of a user's batches of four rows."""
    alpha, num_draws = 2.0, 200
    weights, (x, y) = initial_weights(), rows(5, 12)
    rng = np.random.default_rng(6)
    order = np.stack([rng.permutation(12) for _ in range(num_draws)])
    cuts = {"support": order[:, :4], "query": order[:, 4:8], "hessian": order[:, 8:]}

    def mean_gradient(product):
        inner = Adaptation(alpha)

        def of_draw(places):
            batches = {
                role: batch_of(tf.gather(x, p), tf.gather(y, p))
                for role, p in places.items()
            }
            point = [tf.constant(w) for w in weights]
            return meta_gradient(
                MODEL.batch_loss, point, batches, inner, product
            ).of_weights

        def compute():
            places = {role: tf.constant(p, tf.int32) for role, p in cuts.items()}
            found = tf.map_fn(of_draw, places, [tf.float64] * 4)
            return [tf.reduce_mean(f, 0) for f in found]

        return in_graph(compute)

    def experienced(w):
        """The mean loss of a user that adapts on four of its rows."""
        return np.mean(
            [
                family_reference.meta_objective(
                    BY_HAND,
                    w,
                    (x[d], y[d]),
                    (x[q], y[q]),
                    alpha=alpha,
                    steps=1,
                    moving=MOVING["all"],
                )
                for d, q in zip(cuts["support"], cuts["query"], strict=True)
            ]
        )

    expected = family_reference.central_differences(experienced, weights)

    def bias(product):
        away = reference.axpy(-1.0, expected, mean_gradient(product))
        squares = [sum((t**2).sum() for t in ts) for ts in (away, expected)]
        return np.sqrt(squares[0] / squares[1])

    assert bias(hessian_product("exact", "support")) < 1e-7
    assert bias(hessian_product("exact", "own")) > 0.2


def local_steps(config, parameters, steps):
    """An algorithm's last state and what it sends, given batches by step and role."""
    algorithm = config.build()

    def draw(number):
        return [
            batch_of(
                tf.stack([step[role][0] for step in steps])[number],
                tf.stack([step[role][1] for step in steps])[number],
            )
            for role in range(len(algorithm.roles))
        ]

    def compute():
        sent = [tf.constant(p) for p in parameters]
        trained = local_update(MODEL.batch_loss, sent, draw, algorithm)
        return algorithm.update(sent, trained.state), dict(trained.measures)

    return in_graph(compute)


def drawn(num_steps, num_roles):
    return [
        [rows(10 * step + role, 6) for role in range(num_roles)]
        for step in range(num_steps)
    ]


def sent(start, end):
    return reference.axpy(-1.0, end, start)


def test_fed_prox():
    config = FedProxConfig(BETA, 3, proximal_pull=0.9)
    weights, steps = initial_weights(), drawn(3, 1)
    update, _ = local_steps(config, weights, steps)
    expected = family_reference.fed_prox(
        BY_HAND, weights, [step[0] for step in steps], BETA, 0.9
    )
    assert relative_error(update, sent(weights, expected)) < 1e-9


def test_p_fed_me():
    config = PFedMeConfig(ALPHA, BETA, 3, moreau_steps=4, moreau_pull=1.5)
    weights, steps = initial_weights(), drawn(3, 1)
    update, _ = local_steps(config, weights, steps)
    expected = family_reference.p_fed_me(
        BY_HAND, weights, [step[0] for step in steps], BETA, ALPHA, 4, 1.5
    )
    assert relative_error(update, sent(weights, expected)) < 1e-9


def test_fed_babu_sends_the_body_alone():
    config = FedBabuConfig(BETA, 3)
    weights, steps = initial_weights(), drawn(3, 1)
    update, _ = local_steps(config, weights, steps)
    expected = family_reference.fed_babu(
        BY_HAND, weights, [step[0] for step in steps], BETA, 2
    )
    assert len(update) == 2
    assert relative_error(update, sent(weights[:2], expected)) < 1e-9


def test_fed_recon_finds_a_head_once_and_then_trains_the_body():
    config = FedReconConfig(ALPHA, BETA, 3, inner_steps=4)
    weights, steps = initial_weights(), drawn(3, 2)
    update, _ = local_steps(config, weights, steps)
    expected = family_reference.fed_recon(
        BY_HAND, weights, steps[0][0], [s[1] for s in steps], BETA, ALPHA, 4, 2
    )
    assert len(update) == 2
    assert relative_error(update, sent(weights[:2], expected)) < 1e-9


@pytest.mark.parametrize("config_type", [AnilConfig, BoilConfig])
def test_anil_and_boil_adapt_a_part_and_learn_all(config_type):
    config = config_type(ALPHA, BETA, 2, inner_steps=2, hessian_batch="support")
    weights, steps = initial_weights(), drawn(2, 2)
    update, _ = local_steps(config, weights, steps)
    moving = MOVING[config_type.MOVES]
    now = weights
    for support, query in steps:

        def objective(w, support=support, query=query):
            return family_reference.meta_objective(
                BY_HAND, w, support, query, alpha=ALPHA, steps=2, moving=moving
            )

        slopes = family_reference.central_differences(objective, now)
        now = reference.axpy(-BETA, slopes, now)
    assert relative_error(update, sent(weights, now)) < 1e-7


@pytest.mark.parametrize("batch", ["support", "own"])
@pytest.mark.parametrize("grain", ["per_tensor", "per_weight"])
def test_meta_sgd_learns_rates_beside_the_weights(grain, batch):
    config = MetaSgdConfig(
        ALPHA,
        BETA,
        2,
        hessian_batch=batch,
        learned_rates=grain,
        rates_speed=3.0,
        rates_scale=0.5,
    )
    weights, steps = initial_weights(), drawn(2, 2)
    rng = np.random.default_rng(4)
    shapes = [()] * 4 if grain == "per_tensor" else [w.shape for w in weights]
    logs = [rng.normal(size=shape) / 3 for shape in shapes]
    # What the server holds is the logarithms times the scale.
    held = [0.5 * np.stack(logs)] if grain == "per_tensor" else [0.5 * r for r in logs]
    # With D in the place of D'', both are the gradient of what a user experiences.
    given = [[*step, step[0]][: len(config.roles)] for step in steps]
    update, _ = local_steps(config, [*weights, *held], given)

    now, rho = weights, logs
    for support, query in steps:

        def objective(w, r, support=support, query=query):
            return family_reference.meta_objective(
                BY_HAND,
                w,
                support,
                query,
                alpha=ALPHA,
                steps=1,
                moving=MOVING["all"],
                factors=[np.exp(t) for t in r],
            )

        of_weights = family_reference.central_differences(
            lambda w, r=rho: objective(w, r), now
        )
        of_rates = family_reference.central_differences(
            lambda r, w=now: objective(w, r), rho
        )
        now = reference.axpy(-BETA, of_weights, now)
        rho = reference.axpy(-3.0 * BETA, of_rates, rho)
    after = [0.5 * np.stack(rho)] if grain == "per_tensor" else [0.5 * r for r in rho]
    assert relative_error(update[:4], sent(weights, now)) < 1e-7
    assert relative_error(update[4:], sent(held, after)) < 1e-7


def test_learned_rates_stay_within_their_bound():
    config = MetaSgdConfig(ALPHA, BETA, 5, rates_speed=1e4, rates_bound=3.0)
    weights = initial_weights()
    held = [np.zeros([4])]
    update, _ = local_steps(config, [*weights, *held], drawn(5, 3))
    factors = np.exp(-update[4])
    assert factors.max() == pytest.approx(3.0)
    assert factors.min() >= 1 / 3 - 1e-9


def test_fed_babu_adapts_the_head_that_it_left():
    local = LocalSettings(algorithm="fed_babu", options={"head_tensors": 4})
    assert local.adaptation.head_tensors == 4


class TestIdentities:
    """What is said to be another algorithm under some settings is, bit for bit."""

    def equal(self, first, second, roles, parameters=None):
        parameters = parameters or initial_weights()
        steps = drawn(3, roles)
        one, other = (local_steps(c, parameters, steps) for c in (first, second))
        for a, b in zip(one[0], other[0], strict=True):
            assert a.tobytes() == b.tobytes()
        assert one[1] == other[1]

    def test_anil_of_all_tensors_is_per_fed_avg(self):
        per_fed_avg = PerFedAvgConfig(ALPHA, BETA, 3)
        self.equal(AnilConfig(ALPHA, BETA, 3, head_tensors=4), per_fed_avg, 3)

    def test_fed_reptile_is_fed_avg_on_devices(self):
        self.equal(FedReptileConfig(BETA, 3), FedAvgConfig(BETA, 3), 1)

    def test_fed_prox_without_a_pull_is_fed_avg(self):
        self.equal(FedProxConfig(BETA, 3, proximal_pull=0.0), FedAvgConfig(BETA, 3), 1)

    def test_meta_sgd_with_frozen_rates_is_per_fed_avg_to_rounding(self):
        frozen = MetaSgdConfig(ALPHA, BETA, 3, rates_bound=1.0)
        weights, steps = initial_weights(), drawn(3, 3)
        update, _ = local_steps(frozen, [*weights, np.zeros([4])], steps)
        expected, _ = local_steps(PerFedAvgConfig(ALPHA, BETA, 3), weights, steps)
        assert relative_error(update[:4], expected) < 1e-12
        assert not update[4].any()


class TestPull:
    """On a quadratic t^T Q t / 2 - c^T t, whose proximal point is known."""

    Q = np.array([[2.0, 0.5], [0.5, 1.0]])
    c = np.array([1.0, -3.0])
    start = np.array([4.0, 2.0])

    def loss(self, weights, batch):
        t = weights[0]
        return tf.reduce_sum(t * tf.linalg.matvec(tf.constant(self.Q), t)) / 2 - (
            tf.reduce_sum(tf.constant(self.c) * t)
        )

    def adapted(self, alpha, steps, pull):
        how = Adaptation(alpha, steps, pull=pull)

        def compute():
            start, nothing = [tf.constant(self.start)], tf.zeros([])
            adapted, _ = adapt(self.loss, start, lambda _: None, how, lambda _: nothing)
            return adapted[0]

        return in_graph(compute)

    @pytest.mark.parametrize("pull", [0.0, 0.3, 4.0])
    def test_many_steps_end_at_the_proximal_point(self, pull):
        found = self.adapted(0.2, 300, pull)
        regularized = self.Q + pull * np.eye(2)
        expected = np.linalg.solve(regularized, self.c + pull * self.start)
        assert np.allclose(found, expected, atol=1e-9)

    def test_a_large_pull_keeps_the_start(self):
        assert np.abs(self.adapted(1e-6, 10, 1e6) - self.start).max() < 1e-4

    def test_p_fed_me_follows_the_moreau_envelope(self):
        pull = 2.0
        config = PFedMeConfig(0.3, 0.1, 1, moreau_steps=30, moreau_pull=pull)

        def compute():
            start = [tf.constant(self.start)]
            algorithm = config.build()
            state, _ = algorithm.step(self.loss, start, {"support": None})
            return algorithm.update(start, state)[0]

        proximal = np.linalg.solve(
            self.Q + pull * np.eye(2), self.c + pull * self.start
        )
        expected = 0.1 * pull * (self.start - proximal)
        assert np.allclose(in_graph(compute), expected, atol=1e-9)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PerFedAvgConfig(ALPHA, BETA, inner_steps=0), "inner_steps is 0"),
        (lambda: PerFedAvgConfig(ALPHA, BETA, inner_pull=-1.0), "inner_pull is -1.0"),
        (lambda: PerFedAvgConfig(ALPHA, BETA, hessian_batch="x"), "hessian_batch"),
        (lambda: FedProxConfig(BETA, proximal_pull=-0.1), "proximal_pull is -0.1"),
        (lambda: PFedMeConfig(ALPHA, BETA, moreau_steps=0), "moreau_steps is 0"),
        (lambda: PFedMeConfig(ALPHA, BETA, moreau_pull=0.0), "moreau_pull is 0.0"),
        (lambda: MetaSgdConfig(ALPHA, BETA, learned_rates="x"), "learned_rates"),
        (lambda: MetaSgdConfig(ALPHA, BETA, rates_bound=0.5), "rates_bound is 0.5"),
        (lambda: AnilConfig(ALPHA, BETA, head_tensors=0), "head_tensors is 0"),
        (lambda: PFedMeConfig(0.2, BETA), "moreau_pull is 15.0 and .* product, 3"),
        (lambda: FedProxConfig(0.5, proximal_pull=4.0), "product, 2, must be below 2"),
        (lambda: PerFedAvgConfig(ALPHA, BETA, inner_pull=9.0), "must be below 2"),
        (lambda: AdaptationConfig(1.0, pull=2.0), "must be below 2"),
        (lambda: LocalSettings(options={"nonsense": 1}), "option is 'nonsense'"),
        (
            lambda: AnilConfig(ALPHA, BETA, head_tensors=5).build().check(MODEL),
            "5, but",
        ),
        (
            lambda: BoilConfig(ALPHA, BETA, head_tensors=4).build().check(MODEL),
            "4, but",
        ),
        (lambda: FedBabuConfig(BETA, head_tensors=4).build().check(MODEL), "4, but"),
    ],
)
def test_settings_that_cannot_be_are_refused(make, message):
    with pytest.raises(errors.ConfigError, match=message):
        make()
