"""Partitions: the same bits however they are distributed, and the steps of training on all rows."""

import itertools

import numpy as np
import pytest

import fastae
from fastae.data.column_statistics import ColumnStatistics
from fastae.distributed.partitions import LocalEngine
from fastae.distributed.reduction_tree import assemble, cover
from fastae.distributed.worker_part import StepRequest, WorkerPart, rows_of_step
from fastae.optimizers import State

NETWORK = fastae.Network.autoencoder(9, 4)
X = np.random.default_rng(0).normal(size=(2500, 9))
CUTS = [0, 700, 701, 1500, 1500, 2200, 2500]  # one row, and none, in a partition
PARTITIONS = [X[first:last] for first, last in itertools.pairwise(CUTS)]


def start(dtype="float64"):
    return fastae.Parameters.random(NETWORK, 3, dtype)


def test_every_way_to_distribute_partitions_gives_the_same_bits():
    generator = np.random.default_rng(1)
    engine = LocalEngine(NETWORK, PARTITIONS, dtype="float32")
    flat, root = start("float32").flat, (0, len(PARTITIONS))
    for step in (StepRequest(), StepRequest(2, 9, 4, order_seed=5)):
        gradient, totals = (part.copy() for part in engine.sums(flat, step))
        for machines in (1, 2, 3, 4, 6):
            owners = generator.integers(machines, size=len(PARTITIONS))
            sums = {}
            for machine in range(machines):
                held = {i: PARTITIONS[i] for i in range(len(PARTITIONS)) if owners[i] == machine}
                first_rows = {i: engine.first_rows[i] for i in held}
                sums |= WorkerPart(engine.setup, held, first_rows, len(PARTITIONS), 1).sums(flat, step)
            total = assemble(sums, root)
            assert total.gradient.tobytes() == gradient.tobytes()
            assert total.totals.tobytes() == totals.tobytes()


def test_another_order_of_adding_would_be_seen():
    engine = LocalEngine(NETWORK, PARTITIONS, dtype="float32")
    turned = LocalEngine(NETWORK, PARTITIONS[::-1], dtype="float32")
    flat = start("float32").flat
    assert (
        engine.sums(flat, StepRequest()).gradient.tobytes()
        != turned.sums(flat, StepRequest()).gradient.tobytes()
    )


def test_neighbours_on_a_worker_send_one_sum():
    assert list(cover(range(8), (0, 8))) == [(0, 8)]
    assert list(cover(range(4, 8), (0, 8))) == [(4, 8)]
    assert list(cover({0, 2, 3, 6}, (0, 8))) == [(0, 1), (2, 4), (6, 7)]
    assert list(cover((), (0, 8))) == []


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_full_batches_take_the_steps_of_train(dtype):
    objective = fastae.Objective(alpha=0.1, noise="gaussian", noise_level=0.3)
    data = {"shift": np.full(9, 0.1), "scale": np.full(9, 0.7), "objective": objective}
    engine = LocalEngine(NETWORK, PARTITIONS, dtype=dtype, **data)
    ours, theirs = start(dtype), start(dtype)
    options = {"optimizer": fastae.Adam(learning_rate=0.01), "epochs": 8}
    history = engine.train(ours, **options)
    expected = fastae.train(theirs, X, **options, **data)
    tolerance = 1e-5 if dtype == "float32" else 1e-12
    np.testing.assert_allclose(history.loss, expected.loss, rtol=tolerance)
    np.testing.assert_allclose(ours.flat, theirs.flat, rtol=0, atol=10 * tolerance)
    assert (history.state.steps, history.state.epochs, history.rows) == (8, 8, 8 * 2500)
    loss, gradient = LocalEngine(NETWORK, PARTITIONS, dtype=dtype).loss_and_gradient(start(dtype))
    wanted, expected = fastae.Engine(NETWORK, 1, dtype).loss_and_gradient(start(dtype), X)
    assert loss == pytest.approx(wanted, rel=tolerance)
    np.testing.assert_allclose(gradient.flat, expected.flat, rtol=0, atol=10 * tolerance)


@pytest.mark.parametrize("rows", [0, 1, 7, 1000])
@pytest.mark.parametrize("steps", [1, 3, 50])
def test_an_epoch_takes_every_row_once(rows, steps):
    for number in range(20):
        cuts = [rows_of_step(number, rows, StepRequest(i, steps)) for i in range(steps)]
        assert [row for cut in cuts for row in range(*cut)] == list(range(rows))


def test_steps_are_of_about_the_batch_size():
    sizes = [sum(last - first for first, last in (rows_of_step(i, 7, StepRequest(s, 20)) for i in range(400)))
             for s in range(20)]  # fmt: skip
    assert sum(sizes) == 2800
    assert max(sizes) - min(sizes) <= 0.05 * 140


def test_mini_batches_learn_and_are_drawn_anew_in_each_epoch():
    engine, params = LocalEngine(NETWORK, PARTITIONS), start("float32")
    options = {"optimizer": fastae.Adam(learning_rate=0.01), "batch_size": 100}
    history = engine.train(params, epochs=10, **options)
    assert history.state.steps == 250
    assert history.loss[-1] < 0.7 * history.loss[0]
    again = engine.sums(params.flat, StepRequest(0, 25, 0, 7)).gradient.copy()
    assert (engine.sums(params.flat, StepRequest(0, 25, 1, 7)).gradient != again).any()
    assert (engine.sums(params.flat, StepRequest(0, 25, 0, 7)).gradient == again).all()
    in_order = start("float32")
    engine.train(in_order, epochs=10, shuffle=False, **options)
    assert (in_order.flat != params.flat).any()


def test_a_run_in_two_goes_ends_in_the_same_bits(tmp_path):
    engine = LocalEngine(NETWORK, PARTITIONS)
    options = {"batch_size": 300, "seed": 4}
    whole, halved = start("float32"), start("float32")
    resumed = fastae.Parameters(NETWORK)  # zeros: those of the file replace them
    engine.train(whole, epochs=6, **options)
    state = State.zeros(halved)
    for _ in range(2):
        engine.train(halved, epochs=3, state=state, **options)
    assert halved.flat.tobytes() == whole.flat.tobytes()
    file = tmp_path / "run.checkpoint"
    engine.train(start("float32"), epochs=2, checkpoint=file, **options)
    history = engine.train(resumed, epochs=6, checkpoint=file, resume=True, **options)
    assert resumed.flat.tobytes() == whole.flat.tobytes()
    assert len(history.loss) == 6


def test_divergence_and_errors_leave_the_last_epoch():
    engine, params = LocalEngine(NETWORK, PARTITIONS, dtype="float64"), start()
    with pytest.raises(fastae.DivergenceError, match="lower the learning rate"):
        engine.train(params, optimizer=fastae.SGD(learning_rate=1e200), epochs=9)
    assert np.isfinite(params.flat).all()


def test_former_names_still_work():
    from fastae.blocks import BlockEngine, Blocks
    from fastae.distributed.partitions import PartitionedEngine, Partitions
    from fastae.shard import Shard

    assert (BlockEngine, Blocks, Shard) == (PartitionedEngine, Partitions, WorkerPart)


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="sparsity_weight needs the mean code of all rows"):
        LocalEngine(NETWORK, PARTITIONS, objective=fastae.Objective(sparsity_weight=1.0))
    with pytest.raises(ValueError, match="X has no rows"):
        LocalEngine(NETWORK, [X[:0]])
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        LocalEngine(NETWORK, PARTITIONS).train(start("float32"), batch_size=0)
    with pytest.raises(TypeError, match="params must be Parameters"):
        LocalEngine(NETWORK, PARTITIONS).train({})


def test_statistics_of_partitions_are_those_of_all_rows():
    data = X + 100
    data[::7, 2] = np.nan
    merged, whole = ColumnStatistics(9), ColumnStatistics.of(data)
    for first, last in itertools.pairwise(CUTS):
        merged.merge(ColumnStatistics.of(data[first:last]))
    for name, value in vars(whole).items():
        np.testing.assert_allclose(getattr(merged, name), value, rtol=1e-12, err_msg=name)
