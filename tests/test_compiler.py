"""A round in one part for each thing done, and what is left as it is."""

import numpy as np
import pytest

AGGREGATE = "federated_aggregate"


@pytest.fixture
def types(tff):
    number = tff.TensorType(np.float32)
    return tff.FederatedType(number, tff.SERVER), tff.FederatedType(number, tff.CLIENTS)


def aggregations(computation):
    return computation.to_building_block().compact_representation().count(AGGREGATE)


def doubled(tff):
    return tff.tensorflow.computation(lambda x: 2 * x, tff.TensorType(np.float32))


def test_a_learning_process_has_one_aggregation_left(tff):
    import tff_perfedavg as pfa
    from tff_perfedavg.runtime.compiler import consolidate

    process = pfa.build_per_fed_avg(
        pfa.models.logistic_regression((3,), 2),
        pfa.PerFedAvgConfig(0.1, 0.1, 2, 2, 2, 2),
    )
    plain = tff.backends.native.desugar_and_transform_to_native(process.next)
    assert aggregations(plain) == 3
    consolidated = consolidate(process.next)
    assert aggregations(consolidated) == 1
    assert consolidated.type_signature == process.next.type_signature


def test_a_round_gives_what_it_gave(tff, types):
    from tff_perfedavg.runtime.compiler import consolidate

    @tff.federated_computation(*types)
    def one_round(state, values):
        shifted = tff.federated_map(
            tff.tensorflow.computation(
                lambda a, b: a + b, (values.type_signature.member,) * 2
            ),
            (tff.federated_broadcast(state), values),
        )
        total, mean = tff.federated_sum(shifted), tff.federated_mean(shifted)
        metrics = tff.federated_zip(
            {"mean": mean, "count": tff.federated_value(7, tff.SERVER)}
        )
        return tff.federated_map(doubled(tff), total), metrics

    consolidated = consolidate(one_round)
    assert consolidated is not one_round
    # 3 + 1, 3 + 2, 3 + 6.
    for computation in (one_round, consolidated):
        state, metrics = computation(3.0, [1.0, 2.0, 6.0])
        assert state == 36.0
        assert metrics == {"mean": 6.0, "count": 7}


def test_what_is_random_before_the_broadcast_is_the_same_after_it(tff, types):
    import tensorflow as tf

    from tff_perfedavg.runtime.compiler import consolidate

    draw = tff.tensorflow.computation(
        lambda x: x + tf.random.uniform([]), tff.TensorType(np.float32)
    )

    @tff.federated_computation(*types)
    def masked(state, values):
        mask = tff.federated_map(draw, state)
        sent = tff.federated_broadcast(mask)
        both = tff.federated_zip((sent, values))
        sums = tff.federated_sum(
            tff.federated_map(
                tff.tensorflow.computation(
                    lambda m, v: m + v, both.type_signature.member
                ),
                both,
            )
        )
        return sums, mask

    assert consolidate(masked) is masked
    total, mask = masked(1.0, [0.0, 0.0])
    assert total == 2 * mask


def test_what_is_no_round_is_left_as_it_is(tff, types, monkeypatch, caplog):
    from tff_perfedavg.runtime import compiler
    from tff_perfedavg.runtime.compiler import consolidate

    monkeypatch.setattr(compiler, "_told", set())

    server, clients = types

    @tff.federated_computation(server, clients)
    def back_to_clients(state, values):
        return tff.federated_broadcast(state), values

    @tff.federated_computation(clients)
    def total(values):
        return tff.federated_sum(values)

    @tff.federated_computation(server, clients)
    def two_broadcasts(state, values):
        mean = tff.federated_mean(values)
        again = tff.federated_broadcast(mean)
        return state, tff.federated_sum(again)

    @tff.federated_computation(server, clients)
    def secure(state, values):
        return state, tff.federated_secure_sum(
            tff.federated_map(
                tff.tensorflow.computation(
                    lambda x: np.int32(1), values.type_signature.member
                ),
                values,
            ),
            5,
        )

    for computation in (back_to_clients, total, doubled(tff), two_broadcasts, secure):
        assert consolidate(computation) is computation
    # What could not be made a round of four parts is told, once.
    assert caplog.text.count("could not be made four") == 1
    consolidate(two_broadcasts)
    assert caplog.text.count("could not be made four") == 1
    assert two_broadcasts(1.0, [2.0, 4.0]) == (1.0, 6.0)
    assert secure(1.0, [0.5, 0.5, 0.5]) == (1.0, 3)
