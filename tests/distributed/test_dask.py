"""Dask: the same bits as on one machine for any number of workers, whatever happens to them."""

import os
import signal
import time
from types import SimpleNamespace

import numpy as np
import pytest
from processes import run_python

import fastae
from fastae.distributed.partitions import LocalEngine

dask = pytest.importorskip("dask")
da = pytest.importorskip("dask.array")
dd = pytest.importorskip("dask.dataframe")
distributed = pytest.importorskip("dask.distributed")

from fastae.distributed import (  # noqa: E402
    DaskPartitions,
    DistributedEngine,
    LostPartitionError,
    find_client,
    open_partitions,
    place,
)

NETWORK = fastae.Network.autoencoder(9, 4)
X = np.random.default_rng(0).normal(size=(4000, 9)) @ np.random.default_rng(1).normal(size=(9, 9))
PARTITIONS = [X[first : first + 450] for first in range(0, 4000, 450)]
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:distributed", "ignore::DeprecationWarning")
KILL = getattr(signal, "SIGKILL", signal.SIGTERM)  # on Windows, SIGTERM ends a process at once


def three_workers():
    quiet = {"silence_logs": 50, "dashboard_address": None, "memory_limit": 0}
    return distributed.LocalCluster(n_workers=3, threads_per_worker=1, **quiet)


@pytest.fixture(scope="module")
def cluster():
    with three_workers() as made:
        yield made


@pytest.fixture
def mortals():
    """A client of workers that may be killed: no other test has them."""
    with three_workers() as cluster, distributed.Client(cluster, direct_to_workers=True) as made:
        made.wait_for_workers(3)
        yield made


@pytest.fixture
def client(cluster):
    with distributed.Client(cluster, direct_to_workers=True) as made:
        made.wait_for_workers(3)
        yield made


def array():
    return da.from_array(X, chunks=(450, 5))


def start(dtype="float32"):
    return fastae.Parameters.random(NETWORK, 3, dtype)


def kill(client, count=1):
    """kill -9 of some workers; their nannies start others."""
    for pid in list(client.run(os.getpid).values())[:count]:
        os.kill(pid, KILL)


OPTIONS = {"epochs": 6, "batch_size": 900, "seed": 2}
DATA = {"objective": fastae.Objective(alpha=0.1, noise="swap"), "scale": np.full(9, 0.5)}


def alone(**options):
    params = start()
    history = LocalEngine(NETWORK, PARTITIONS, **DATA).train(params, **{**OPTIONS, **options})
    return params.flat.tobytes(), history


def test_same_bits_as_one_machine_for_any_number_of_workers(cluster, client):
    wanted, expected = alone()
    for workers in (1, 2, 3):
        chosen = list(client.nthreads())[:workers]
        partitions = client.persist(array().rechunk({1: -1}), workers=chosen, allow_other_workers=False)
        distributed.wait(partitions)
        engine = DistributedEngine(client, NETWORK, partitions, **DATA)
        engine._held = engine._build(
            place(engine.partition_sizes, {i: set(chosen) for i in range(9)}, dict.fromkeys(chosen, 1))
        )
        assert len({held.address for held in engine._held}) == workers
        params, seen = start(), []
        history = engine.train(params, **OPTIONS, callback=lambda epoch, seen=seen: seen.append(epoch.number))
        assert params.flat.tobytes() == wanted
        assert history.loss == expected.loss
        assert seen == [1, 2, 3, 4, 5, 6]
        del engine, partitions


def test_partitions_stay_where_they_are_and_nothing_comes_here(client):
    partitions = client.persist(array().rechunk({1: -1}))
    distributed.wait(partitions)
    before = client.who_has(partitions)
    engine = DistributedEngine(client, NETWORK, partitions)
    where = {number: held.address for held in engine._held for number in held.numbers}
    moved = [i for i, future in enumerate(engine.partitions.futures) if where[i] not in before[future.key]]
    assert len(moved) <= 2  # only what an uneven placement needs

    def graphs(dask_scheduler):
        return len(dask_scheduler.tasks)

    tasks = client.run_on_scheduler(graphs)
    engine.train(start(), **OPTIONS)
    assert client.run_on_scheduler(graphs) == tasks


def _train_while_killing(client, kills, epochs):
    wanted, _ = alone(epochs=epochs)
    params, killed = start(), []
    engine = DistributedEngine(client, NETWORK, array(), **DATA)
    ask = engine._ask
    at = set(np.linspace(3, 5 * epochs - 3, kills).astype(int).tolist())
    asked = 0

    def ask_and_kill(*arguments):
        nonlocal asked
        asked += 1
        if asked in at:
            pids = list(client.run(os.getpid).values())
            killed.append(pids[len(killed) % len(pids)])
            os.kill(killed[-1], KILL)
        return ask(*arguments)

    engine._ask = ask_and_kill
    history = engine.train(params, **{**OPTIONS, "epochs": epochs})
    assert len(killed) == kills
    assert len(history.loss) == epochs
    assert params.flat.tobytes() == wanted


def test_a_killed_worker_changes_no_bit(mortals):
    _train_while_killing(mortals, 2, 4)


@pytest.mark.exhaustive
def test_ten_killed_workers_change_no_bit(mortals):
    _train_while_killing(mortals, 10, 12)


@pytest.mark.exhaustive  # waits for Dask's nannies
def test_all_workers_killed_at_once_change_no_bit(mortals):
    wanted, _ = alone()
    params = start()
    engine = DistributedEngine(mortals, NETWORK, array(), **DATA)
    engine.train(params, **OPTIONS, callback=lambda epoch: kill(mortals, 3) if epoch.number == 3 else None)
    assert params.flat.tobytes() == wanted


def test_a_partition_lost_three_times_in_a_row_is_an_error_that_leaves_a_usable_state(client, tmp_path):
    engine = DistributedEngine(client, NETWORK, array(), **DATA)
    params, state = start(), None
    state = fastae.optimizers.State.zeros(params)
    ask, broken = engine._ask, []

    def lose(asked, flat, step):
        answers = ask(asked, flat, step)
        if step.epoch == 2 and step.number == 3:
            broken.append(1)
            answers = [None, *answers[1:]]
        return answers

    engine._ask = lose
    file = tmp_path / "run.checkpoint"
    with pytest.raises(
        LostPartitionError, match=r"partition \d of X \(rows \d+ to \d+\) was lost 3 times in a row"
    ):
        engine.train(params, state=state, checkpoint=file, **OPTIONS)
    assert len(broken) == 3
    assert (state.epochs, state.steps) == (2, 10)
    engine._ask = ask
    engine.train(params, state=state, **{**OPTIONS, "epochs": 4})
    assert params.flat.tobytes() == alone()[0]
    resumed = fastae.Parameters(NETWORK)  # zeros: those of the file replace them
    history = engine.train(resumed, checkpoint=file, resume=True, **OPTIONS)  # written at the error
    assert len(history.loss) == 6
    assert history.state.steps == 30
    assert resumed.flat.tobytes() == params.flat.tobytes()


def test_scattered_partitions_that_are_lost_are_named(mortals):
    parts = mortals.scatter(PARTITIONS)
    lone = da.concatenate(
        [da.from_delayed(p, b.shape, b.dtype) for p, b in zip(parts, PARTITIONS, strict=True)]
    )
    engine = DistributedEngine(mortals, NETWORK, lone)
    params = start()
    with pytest.raises(LostPartitionError, match="scattered data are not rebuilt"):
        engine.train(params, epochs=9, callback=lambda epoch: kill(mortals) if epoch.number == 2 else None)
    assert (params.flat != start().flat).any()


def test_a_worker_that_joins_is_used_from_the_next_epoch(cluster, client):
    wanted, _ = alone()
    params, used = start(), []
    engine = DistributedEngine(client, NETWORK, array(), **DATA)

    def join(epoch):
        used.append({held.address for held in engine._held})
        if epoch.number == 2:
            cluster.scale(4)
            client.wait_for_workers(4)

    engine.train(params, **OPTIONS, callback=join)
    cluster.scale(3)
    assert [len(workers) for workers in used] == [3, 3, 4, 4, 4, 4]
    assert params.flat.tobytes() == wanted
    until = time.monotonic() + 60
    while len(client.nthreads()) > 3 and time.monotonic() < until:
        time.sleep(0.05)
    assert len(client.nthreads()) == 3


def test_place_leaves_partitions_where_they_are_and_feeds_the_idle():
    here = {0: {"a"}, 1: {"a"}, 2: {"b"}, 3: {"b"}}
    assert place([10] * 4, here, {"a": 1, "b": 1}) == {"a": [0, 1], "b": [2, 3]}
    placed = place([10] * 4, here, {"a": 1, "b": 1, "c": 1})
    assert sorted(map(len, placed.values())) == [1, 1, 2]
    assert set(place([10] * 4, here, {"c": 2})) == {"c"}
    many = place([1] * 300, {i: {"ab"[i % 2]} for i in range(300)}, {"a": 1, "b": 1})
    assert sorted(many["a"] + many["b"]) == list(range(300))


def test_estimators_fit_and_are_applied_lazily(client):
    pd = pytest.importorskip("pandas")
    options = {
        "max_iter": 10,
        "random_state": 0,
        "batch_size": 4000,
        "activation": "tanh",
        "dtype": "float64",
    }
    model = fastae.Autoencoder((4,), **options).fit(array(), X_val=array())
    local = fastae.Autoencoder((4,), **options).fit(X, X_val=X)
    np.testing.assert_allclose(model.loss_curve_, local.loss_curve_, rtol=1e-9)
    np.testing.assert_allclose(model.validation_loss_curve_, local.validation_loss_curve_, rtol=1e-9)
    np.testing.assert_allclose(model.scale_, local.scale_, rtol=1e-12)
    for method in ("transform", "reconstruct", "reconstruction_error"):
        lazy = getattr(model, method)(array())
        assert isinstance(lazy, da.Array)
        np.testing.assert_array_equal(lazy.compute(), getattr(model, method)(X))
    frame = pd.DataFrame(X, columns=list("abcdefghi"))
    many = dd.from_pandas(frame, npartitions=4)
    detector = fastae.AutoencoderDetector((4,), n_estimators=1, max_iter=3, random_state=0).fit(many)
    assert detector.feature_names_in_.tolist() == list("abcdefghi")
    np.testing.assert_array_equal(detector.predict(many).compute(), detector.predict(frame))
    assert (detector.predict(frame) == -1).mean() == pytest.approx(0.1, abs=0.001)
    with pytest.raises(ValueError, match="other columns"):
        detector.score_samples(many.rename(columns={"a": "z"}))


def test_networks_of_an_ensemble_are_spread_over_the_workers(client, monkeypatch):
    options = {"n_estimators": 5, "max_iter": 5, "random_state": 0}
    spread, local = (fastae.AutoencoderDetector(**options).fit(data) for data in (array(), X))
    np.testing.assert_allclose(spread.loss_curve_, local.loss_curve_, rtol=1e-5)
    np.testing.assert_allclose(spread.oob_scores_, local.oob_scores_, rtol=1e-4)
    assert spread.offset_ == pytest.approx(local.offset_, rel=1e-4)
    for method in ("score_samples", "decision_function", "p_values", "transform"):
        lazy = getattr(spread, method)(array())
        assert isinstance(lazy, da.Array)
        np.testing.assert_allclose(lazy.compute(), getattr(spread, method)(X), rtol=1e-5, atol=1e-6)
    assert np.array_equal(spread.predict(array(), fdr=0.1), spread.predict(X, fdr=0.1))
    assert spread.partial_fit(array()).n_iter_ == 6
    monkeypatch.setattr("fastae.estimator.ensemble_training.SAMPLE_BYTES", 500 * 9 * 8)
    sampled = fastae.AutoencoderDetector(**options, early_stopping=True).fit(array())
    assert len(sampled.oob_scores_) == 4000
    assert np.isfinite(sampled.oob_scores_).all()
    assert len(sampled.validation_loss_curve_) == 5


def test_wrong_arguments_are_named(client):
    with pytest.raises(TypeError, match="X must be a Dask array or DataFrame, got ndarray"):
        DistributedEngine(client, NETWORK, X)
    with pytest.raises(TypeError, match=r"client must be a dask.distributed.Client, got str"):
        DistributedEngine("tcp://", NETWORK, array())
    with pytest.raises(ValueError, match="X has 9 features, but the network takes 5"):
        DistributedEngine(client, fastae.Network.autoencoder(5, 2), array())
    with pytest.raises(ValueError, match=r"X contains NaN in column 1: missing='mask' allows missing cells$"):
        fastae.Autoencoder((2,)).fit(da.where(array() > 1, np.nan, array()))
    blocks = [da.from_array(X[:450]), da.from_delayed(dask.delayed(X[:450, :8]), (450, 9), float)]
    narrow = da.concatenate(blocks)
    with pytest.raises(ValueError, match=r"partition 1 of X has shape \(450, 8\), but X has 9 columns"):
        fastae.Autoencoder((2,)).fit(narrow)
    with pytest.raises(ValueError, match="early_stopping needs X_val"):
        fastae.Autoencoder((2,), early_stopping=True).fit(array())
    with pytest.raises(ValueError, match="solver 'lbfgs' needs X on one machine"):
        fastae.Autoencoder((2,), solver="lbfgs").fit(array())
    with pytest.raises(ZeroDivisionError):
        DaskPartitions(client, array().map_blocks(lambda rows: 1 / 0, dtype=float, meta=np.empty((0, 0))))


def test_a_client_that_is_closed_during_a_fit_is_named(cluster):
    with distributed.Client(cluster) as client:
        model = fastae.Autoencoder((2,), max_iter=5, callback=lambda _: client.close())
        with pytest.raises(LostPartitionError, match="cannot be reached: the Dask client is closed"):
            model.fit(array())


def test_files_are_read_by_the_workers(client, tmp_path):
    pd = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    for i in range(2):
        rows = pd.DataFrame(X[2000 * i : 2000 * (i + 1)], columns=list("abcdefghi"))
        rows.to_parquet(tmp_path / f"part-{i}.parquet", row_group_size=300)
    for source in (tmp_path / "part-*.parquet", [tmp_path / f"part-{i}.parquet" for i in range(2)]):
        partitions = open_partitions(client, source, drop=["b"])
        assert (partitions.shape, partitions.feature_names) == ((4000, 8), list("acdefghi"))
        assert len(partitions.partition_sizes) > 4
        np.testing.assert_array_equal(np.concatenate(partitions.each(np.asarray)), np.delete(X, 1, axis=1))


def test_former_names_still_work():
    import fastae.distributed as package
    from fastae.distributed.blocks import DaskBlocks

    assert DaskBlocks is package.DaskBlocks is DaskPartitions
    assert (package.LostBlockError, package.open_blocks) == (LostPartitionError, open_partitions)


def test_without_a_cluster_the_error_says_what_to_make():
    with pytest.raises(ValueError, match=r"make a dask.distributed.Client first"):
        find_client()


def test_numpy_data_import_no_dask():
    code = (
        "import sys, numpy, fastae; fastae.Autoencoder((2,), max_iter=1).fit(numpy.ones((5, 3)));"
        "assert 'dask' not in sys.modules and 'mpi4py' not in sys.modules"
    )
    run_python(code, PYTHONWARNINGS="ignore")


def test_the_command_trains_on_a_cluster(cluster, client, tmp_path):
    import json

    from typer.testing import CliRunner

    from fastae.cli import app

    np.save(tmp_path / "x.npy", X)
    command = ["train", tmp_path / "x.npy", "--out", tmp_path / "m.safetensors", "--epochs", 2, "--json"]
    ran = CliRunner().invoke(app, [*map(str, command), "--dask", cluster.scheduler_address])
    assert ran.exit_code == 0, ran.output
    facts = json.loads(ran.stdout)
    assert (facts["rows"], facts["epochs"]) == (4000, 2)
    model = fastae.AutoencoderDetector.load(tmp_path / "m.safetensors")
    assert len(model.all_params_) == facts["networks"] == 15
    assert (model.oob_scores_ < model.offset_).sum() == 400
    ran = CliRunner().invoke(app, [*map(str, command), "--dask", "local", "--mpi"])
    assert ran.exit_code == 2
    assert "cannot be used together" in ran.output


def test_frames_of_any_numeric_columns_are_taken_and_others_named(client):
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame(X[:, :3], columns=list("abc"))
    frame["whole"], frame["b"] = pd.array([1, None] * 2000, dtype="Int64"), X[:, 1] > 0
    many = dd.from_pandas(frame, npartitions=4)
    options = {"max_iter": 2, "random_state": 0, "batch_size": 4000, "missing": "mask"}
    unknown_lengths = many.map_partitions(lambda part: part[part.a > -9e9])
    model = fastae.Autoencoder((2,), dtype="float64", **options).fit(unknown_lengths)
    local = fastae.Autoencoder((2,), dtype="float64", **options).fit(frame)
    np.testing.assert_allclose(model.loss_curve_, local.loss_curve_, rtol=1e-9)
    np.testing.assert_array_equal(model.transform(many).compute(), model.transform(frame))
    single = dd.from_pandas(frame[["a", "c"]].astype("float32"), npartitions=2)
    assert fastae.Autoencoder((2,), **options).fit(single).params_.dtype == np.float32
    numbered = fastae.Autoencoder((2,), **options).fit(dd.from_pandas(pd.DataFrame(X), npartitions=2))
    assert not hasattr(numbered, "feature_names_in_")
    frame["town"] = "Oslo"
    with pytest.raises(TypeError, match=r"X: not numeric: column 'town'"):
        fastae.Autoencoder((2,)).fit(dd.from_pandas(frame, npartitions=4))


def test_no_rows_or_columns_are_an_error_of_the_argument(client):
    rows = array()
    none = rows[rows[:, 0] > 1e9]
    with pytest.raises(ValueError, match=r"X has shape \(0, 9\)"):
        fastae.Autoencoder((2,)).fit(none)
    with pytest.raises(ValueError, match=r"X_val has shape \(0, 9\)"):
        fastae.Autoencoder((2,)).fit(rows, X_val=none)
    with pytest.raises(ValueError, match=r"X has shape \(4000, 0\)"):
        fastae.Autoencoder((2,)).fit(rows[:, :0])


def test_a_partition_that_kills_its_workers_is_named(client):
    first = X[0, 0]

    def given_up(rows):
        """As Dask says of a task after which one worker after the other was gone."""
        if rows[0, 0] == first:
            raise distributed.KilledWorker("task", SimpleNamespace(address="tcp://gone:1"), 3)
        return rows

    partitions = array().rechunk({1: -1}).map_blocks(given_up, dtype=X.dtype, meta=X[:0])
    with pytest.raises(
        LostPartitionError, match="partition 0 of X was lost with every worker that computed it"
    ):
        DaskPartitions(client, partitions)


def test_workers_use_their_own_threads_or_as_many_as_are_asked_for():
    def threads(dask_worker):
        return [actor.engine.n_threads for actor in dask_worker.state.actors.values()]

    quiet = {"silence_logs": 50, "dashboard_address": None}
    with (
        distributed.LocalCluster(n_workers=1, threads_per_worker=2, **quiet) as wide,
        distributed.Client(wide, set_as_default=False) as other,
    ):
        for n_threads in (None, 1):
            params = start()
            engine = DistributedEngine(other, NETWORK, array(), n_threads=n_threads, **DATA)
            (newest,) = (found[-1] for found in other.run(threads).values())
            assert newest == (n_threads or 2)
            engine.train(params, **OPTIONS)
            assert params.flat.tobytes() == alone()[0]


def test_a_cluster_in_this_process_whose_client_is_not_the_default_one_keeps_its_actors():
    """There the actors that come back hold no reference to themselves, and Dask removed them between two steps."""
    out = run_python(
        """
        import gc
        import dask.array as da, numpy as np
        from dask.distributed import Client, LocalCluster
        import fastae
        from fastae.distributed import DistributedEngine

        network, X = fastae.Network.autoencoder(8, 2), np.random.default_rng(0).normal(size=(2000, 8))
        params = fastae.Parameters.random(network)
        cluster = LocalCluster(n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None)
        with cluster, Client(cluster, set_as_default=False) as client:
            engine = DistributedEngine(client, network, da.from_array(X, chunks=(500, 8)))
            for _ in range(3):
                gc.collect()
                loss, _ = engine.loss_and_gradient(params)
                client.run(gc.collect)
            assert abs(loss / fastae.Engine(network).loss_and_gradient(params, X)[0] - 1) < 1e-5
        print("done")
        """
    )
    assert out.split() == ["done"]
