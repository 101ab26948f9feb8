"""Checkpoints: after a kill, training goes on to the bits of a run that nothing interrupted."""

import json
import subprocess
import sys
import textwrap
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from damage import damages
from disk import full_disk, names
from processes import process
from safetensors.numpy import save_file

import fastae
from fastae import Autoencoder, AutoencoderDetector, storage
from fastae.optimizers import Custom, State, cosine
from fastae.training.checkpoint import Checkpoint

X = np.random.default_rng(0).normal(size=(260, 7)) @ np.random.default_rng(1).normal(size=(7, 12)) + 5
NETWORK = fastae.Network.autoencoder(12, 4)
EPOCHS = 40

FITS = {
    "adam": {"noise": "mask"},
    "adam-float32": {"noise": "gaussian", "early_stopping": True, "n_iter_no_change": 60, "dtype": "float32"},
    "early": {"noise": "swap", "early_stopping": True, "learning_rate_init": 0.1, "tol": 0, "n_iter_no_change": 2},
    "adaptive": {
        "solver": "sgd", "momentum": 0.8, "learning_rate": "adaptive", "tol": 0.5, "n_iter_no_change": 2,
        "learning_rate_init": 0.01,
    },
    "invscaling": {"solver": "sgd", "nesterovs_momentum": False, "learning_rate": "invscaling"},
    "cosine": {"solver": "adamw", "learning_rate": "cosine", "sparsity_weight": 0.1},
    "full-batch": {"batch_size": 10_000, "alpha": 0.1},
    "in-order": {"shuffle": False, "batch_size": 31, "n_iter_no_change": np.inf},
}  # fmt: skip


# A schedule that does not depend on max_iter, and small steps
STEADY = {
    "init": "random",
    "batch_size": 200,
    "learning_rate": "constant",
    "learning_rate_init": 0.001,
    "n_iter_no_change": 10,
}


def detector(options, **more):
    return AutoencoderDetector(
        **{
            "hidden_layer_sizes": (4,),
            "n_estimators": 1,
            "max_iter": EPOCHS,
            "random_state": 0,
            **STEADY,
            **options,
            **more,
        }
    )


@pytest.mark.parametrize("kind", ["file", "files", "link", "csv", "memmap", "validation", "train"])
def test_a_file_that_is_read_is_not_overwritten(tmp_path, kind, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", X)
    np.savetxt("x.csv", X, delimiter=",")
    (tmp_path / "link").symlink_to("x.npy")
    before = {name: (tmp_path / name).read_bytes() for name in ("x.npy", "x.csv")}
    checkpoint = {"csv": "x.csv", "link": "link"}.get(kind, tmp_path / "x.npy")
    model = detector({})
    data = fastae.open_rows({"files": ["x.npy", "x.npy"], "csv": "x.csv"}.get(kind, "x.npy"))
    fit = {
        "memmap": partial(model.fit, np.load("x.npy", mmap_mode="r")),
        "validation": partial(model.fit, X, X_val=data),
        "train": partial(fastae.train, fastae.Parameters.random(NETWORK), data),
    }.get(kind, partial(model.fit, data))
    said = r"^checkpoint is the same file as the input .*x\.(npy|csv), which would be lost"
    for resume in (False, True):
        with pytest.raises(ValueError, match=said):
            fit(checkpoint=checkpoint, resume=resume)
    assert {name: (tmp_path / name).read_bytes() for name in before} == before
    model.fit(data, checkpoint=tmp_path / "other")


@pytest.fixture
def every_epoch(monkeypatch):
    """Checkpoints are written after each epoch."""
    monkeypatch.setattr(Checkpoint, "SECONDS", 0)
    monkeypatch.setattr(Checkpoint, "SHARE", 0)


class Killed(BaseException):
    pass


def kill_in(number, seen=None):
    def callback(epoch):
        if seen is not None:
            seen.append(epoch.number)
        if epoch.number == number:
            raise Killed

    return callback


def resumed_from(path, options, **more):
    """A detector whose fit was resumed, and the number of the first epoch that was left to do, or None."""
    seen = []
    model = detector(options, callback=lambda epoch: seen.append(epoch.number))
    return model.fit(X, checkpoint=path, resume=True, **more), next(iter(seen), None)


def same(ours, theirs):
    for name in ("loss_curve_", "validation_loss_curve_", "n_iter_", "stop_reason_", "offset_"):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert ours.params_.flat.tobytes() == theirs.params_.flat.tobytes()
    assert ours._state.moments.tobytes() == theirs._state.moments.tobytes()
    assert (ours._state.steps, ours._state.epochs) == (theirs._state.steps, theirs._state.epochs)


class Momentum(Custom):
    """An optimizer of one's own that remembers in ``state.moments``."""

    def update(self, params, gradient, state, rate):
        state.moments[0] = 0.9 * state.moments[0] - rate * gradient.flat
        params.flat += state.moments[0]


# -- the same bits ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["adam-float32", "early", "adaptive"])
def test_a_killed_process_goes_on_to_the_same_bits(tmp_path, name):
    path = tmp_path / "run.checkpoint"
    script = """
        import json, sys
        import numpy as np
        from fastae import AutoencoderDetector
        from fastae.training.checkpoint import Checkpoint

        Checkpoint.SECONDS = Checkpoint.SHARE = 0

        def tell(epoch):
            print(epoch.number, flush=True)
            if epoch.number == 20:
                sys.stdin.read()  # wait to be killed

        path, options = sys.argv[1], json.loads(sys.argv[2])
        X = np.random.default_rng(0).normal(size=(260, 7)) @ np.random.default_rng(1).normal(size=(7, 12)) + 5
        AutoencoderDetector((4,), n_estimators=1, random_state=0, callback=tell, **options).fit(X, checkpoint=path)
    """
    options = {**STEADY, **FITS[name], "max_iter": EPOCHS}
    command = [sys.executable, "-c", textwrap.dedent(script), path, json.dumps(options)]
    with process(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        for line in child.stdout:
            if int(line) == 5:  # somewhere in an epoch or in a write
                child.kill()
                break
        child.wait(timeout=60)
    assert child.returncode not in (0, 1)
    uninterrupted = detector(FITS[name]).fit(X)
    assert uninterrupted.n_iter_ > 5
    resumed, first = resumed_from(path, FITS[name])
    same(resumed, uninterrupted)
    assert first > 1, "it began anew"


@pytest.mark.usefixtures("every_epoch")
@pytest.mark.parametrize("name", FITS)
@pytest.mark.parametrize("validation", [False, True])
def test_every_epoch_can_be_gone_on_from_again_and_again(tmp_path, name, validation):
    options = {"X_val": X[:50] + 0.1} if validation else {}
    uninterrupted = detector(FITS[name]).fit(X, **options)
    path = tmp_path / "run.checkpoint"
    firsts, last = [], uninterrupted.n_iter_
    for number in (2, 3, 4, 9, last):
        seen = []
        model = detector(FITS[name], callback=kill_in(number, seen))
        with pytest.raises(Killed):
            model.fit(X, checkpoint=path, resume=True, **options)
        firsts.append(seen[0])
    for _ in range(2):  # the second has nothing left to do
        resumed, first = resumed_from(path, FITS[name], **options)
        same(resumed, uninterrupted)
        firsts.append(first)
    assert firsts == [1, 2, 3, 4, 9, last, None]
    assert names(tmp_path) == ["run.checkpoint"]


def test_the_settings_above_stop_in_each_of_the_ways():
    stops = {name: detector(options).fit(X).stop_reason_ for name, options in FITS.items()}
    assert stops["early"] == stops["adaptive"] == "tol"
    assert stops["adam"] == stops["cosine"] == "max_iter"


TRAININGS = {
    "adam": {},
    "sgd": {"optimizer": fastae.SGD(learning_rate=0.05, momentum=0.9, nesterov=True), "batch_size": 32},
    "noise": {"objective": fastae.Objective(noise="swap"), "batch_size": 100, "seed": 7},
    "index": {"index": np.arange(0, 260, 3), "batch_size": 20},
    "weights": {"sample_weight": np.arange(260.0), "shift": X.mean(0), "scale": np.ones(12), "batch_size": 50},
    "schedule": {"optimizer": fastae.Adam(learning_rate=cosine(0.01, 3 * EPOCHS, warmup=9)), "batch_size": 100},
    "in-order": {"shuffle": False, "batch_size": 100},
    "clipped": {"optimizer": fastae.Adam(clip_norm=0.1, rate_factors={"W2": 0, "b1": 0.5}), "batch_size": 100},
    "tied": {"tied": (("W1", "W2"),), "batch_size": 100},
    "own": {"optimizer": Momentum(learning_rate=0.05), "batch_size": 100},
}  # fmt: skip


@pytest.mark.usefixtures("every_epoch")
@pytest.mark.parametrize(
    ("name", "kind"),
    [(name, np.random.PCG64) for name in TRAININGS]
    + [("sgd", kind) for kind in (np.random.MT19937, np.random.Philox, np.random.SFC64)],
)
def test_training_goes_on_from_whatever_it_was_given(tmp_path, name, kind):
    def start():
        options = {"seed": np.random.Generator(kind(3)), "epochs": EPOCHS, **TRAININGS[name]}
        params = fastae.Parameters.random(NETWORK, seed=2)
        return params, {**options, "state": State.zeros(params)}

    params, options = start()
    history = fastae.train(params, X, **options)
    again, options = start()
    path = tmp_path / "a"
    with pytest.raises(Killed):
        fastae.train(again, X, **options, checkpoint=path, callback=kill_in(13))
    again, options = start()
    again["W1"] = np.zeros((12, 4))  # overwritten, as are the state and the generator
    options["state"].steps, options["state"].moments[:] = 17, 1
    if "seed" not in TRAININGS[name]:
        options["seed"].random(5)
    resumed = fastae.train(again, X, **options, checkpoint=path, resume=True)
    assert again.flat.tobytes() == params.flat.tobytes()
    assert resumed.state is options["state"]
    assert resumed.state.moments.tobytes() == history.state.moments.tobytes()
    assert (resumed.loss, resumed.learning_rate, resumed.rows, resumed.best_epoch, resumed.state.steps) == (
        history.loss, history.learning_rate, history.rows, history.best_epoch, history.state.steps,
    )  # fmt: skip
    assert resumed.seconds > 0


def test_more_epochs_go_on_to_the_bits_of_a_longer_run(tmp_path):
    path = tmp_path / "a"
    detector(FITS["adam"], max_iter=15).fit(X, checkpoint=path)
    longer, first = resumed_from(path, FITS["adam"])
    same(longer, detector(FITS["adam"]).fit(X))
    assert first == 16


def test_what_a_callback_stopped_may_go_on(tmp_path):
    path = tmp_path / "a"
    stopped = detector(FITS["adam"], callback=lambda epoch: epoch.number == 7).fit(X, checkpoint=path)
    assert (stopped.n_iter_, stopped.stop_reason_) == (7, "callback")
    resumed, first = resumed_from(path, FITS["adam"])
    same(resumed, detector(FITS["adam"]).fit(X))
    assert first == 8


@pytest.mark.usefixtures("every_epoch")
def test_a_fit_without_a_random_state_keeps_the_rows_it_set_aside(tmp_path):
    path = tmp_path / "a"
    options = {"early_stopping": True, "n_iter_no_change": 60, "random_state": None}
    first = detector(options, callback=kill_in(9))
    with pytest.raises(Killed):
        first.fit(X, checkpoint=path)
    kept = storage.read(path)
    resumed = detector(options).fit(X, checkpoint=path, resume=True)
    assert resumed.n_iter_ == EPOCHS
    assert resumed.validation_loss_curve_[:8] == kept.about["loop"]["history"]["validation_loss"]


def test_where_there_is_no_file_training_begins(tmp_path):
    begun = detector({}).fit(X, checkpoint=tmp_path / "a", resume=True)
    same(begun, detector({}).fit(X))
    assert names(tmp_path) == ["a"]


def test_without_resume_an_old_file_is_written_anew(tmp_path):
    (tmp_path / "a").write_text("something else")
    model = detector({}).fit(X, checkpoint=tmp_path / "a")
    same(detector({}).fit(X, checkpoint=tmp_path / "a", resume=True), model)


# -- when it is written -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "written"), [(0.125, [40]), (1.0, [5, 15, 25, 35, 40]), (16.0, [*range(1, 41)])]
)
def test_it_is_written_at_the_end_and_no_more_often_than_it_may_cost(tmp_path, monkeypatch, seconds, written):
    epochs, clock = [], [0.0]
    monkeypatch.setattr("fastae.training.checkpoint.time", SimpleNamespace(perf_counter=lambda: clock[0]))

    def write(path, kind, about, tensors):
        epochs.append(len(about["loop"]["history"]["loss"]))
        clock[0] += 0.5  # what the write takes

    def tick(_):
        clock[0] += seconds  # what the epoch takes

    monkeypatch.setattr(storage, "write", write)
    detector({}, callback=tick).fit(X, checkpoint=tmp_path / "a")
    assert epochs == written


# -- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "data", "said"),
    [
        ({"alpha": 0.1}, X, "alpha was 0.0001, and is 0.1 now"),
        ({"random_state": 1}, X, "random_state was 0, and is 1"),
        ({"hidden_layer_sizes": (5,)}, X, "hidden_layer_sizes"),
        ({"solver": "sgd"}, X, "solver"),
        ({"max_iter": 3}, X, "10 epochs already, but epochs is 3"),
        ({}, X[:200], r"X.shape was \[260, 12\], and is \[200, 12\]"),
        ({}, X[:, :11], r"X.shape was \[260, 12\], and is \[260, 11\]"),
        ({}, X.astype("f4"), "dtype"),
        ({}, X + 1, "shift was"),
    ],
)
def test_another_run_is_refused_and_says_what_differs(tmp_path, change, data, said):
    path = tmp_path / "run.checkpoint"
    detector({}, max_iter=10).fit(X, checkpoint=path)
    with pytest.raises(ValueError, match=r"run\.checkpoint (belongs to|has) .*?" + said):
        detector(change).fit(data, checkpoint=path, resume=True)
    same(detector({}).fit(X, checkpoint=path, resume=True), detector({}).fit(X))


def test_a_schedule_that_max_iter_changes_is_refused(tmp_path):
    options = {"learning_rate": "cosine"}
    detector(options, max_iter=10).fit(X, checkpoint=tmp_path / "a")
    with pytest.raises(ValueError, match="learning_rate was"):
        detector(options, max_iter=20).fit(X, checkpoint=tmp_path / "a", resume=True)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"optimizer": fastae.SGD()}, "optimizer"),
        ({"optimizer": fastae.Adam(beta_1=0.8)}, "beta_1"),
        ({"batch_size": 10}, "batch_size"),
        ({"shuffle": False}, "shuffle"),
        ({"seed": 1}, "seed"),
        ({"index": np.arange(260)}, "index"),
        ({"sample_weight": np.ones(260)}, "sample_weight"),
        ({"objective": fastae.Objective(noise="mask")}, "objective"),
        ({"tol": 1e-3}, "tol"),
        ({"patience": 3}, "patience"),
        ({"validate": lambda params: 1.0}, "validate"),
        ({"optimizer": fastae.Adam(clip_norm=1.0)}, "clip_norm"),
        ({"optimizer": fastae.Adam(rate_factors={"b1": 0})}, "rate_factors"),
        ({"tied": [("W1", "W2")]}, "tied"),
    ],
)
def test_another_training_is_refused_and_changes_nothing(tmp_path, change, said):
    params = fastae.Parameters.random(NETWORK)
    fastae.train(params, X, epochs=5, batch_size=50, checkpoint=tmp_path / "a")
    before = params.flat.copy()
    with pytest.raises(ValueError, match=f"belongs to another run: .*{said}"):
        fastae.train(
            params, X, **{"epochs": 9, "batch_size": 50, **change}, checkpoint=tmp_path / "a", resume=True
        )
    assert (params.flat == before).all()


def test_a_training_is_no_fit(tmp_path):
    fastae.train(fastae.Parameters.random(NETWORK), X, epochs=2, checkpoint=tmp_path / "a")
    with pytest.raises(ValueError, match="settings of the estimator"):
        detector({}).fit(X, checkpoint=tmp_path / "a", resume=True)


def test_a_damaged_checkpoint_or_another_file_is_refused(tmp_path):
    path = tmp_path / "run.checkpoint"
    model = detector({}, max_iter=3).fit(X, checkpoint=path)
    whole = path.read_bytes()
    for size in (0, 7, 300, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"run\.checkpoint is not a complete"):
            model.fit(X, checkpoint=path, resume=True)
    model.save(path)
    with pytest.raises(
        ValueError, match=r"run\.checkpoint is a file of AutoencoderDetector, not of Checkpoint"
    ):
        model.fit(X, checkpoint=path, resume=True)
    path.write_bytes(whole)
    with pytest.raises(ValueError, match=r"run\.checkpoint is a file of Checkpoint, not of Autoencoder"):
        Autoencoder.load(path)


def test_wrong_metadata_of_a_checkpoint_is_a_run_or_one_error_that_names_the_file(tmp_path):
    path = tmp_path / "run.checkpoint"
    options = {"early_stopping": True, "max_iter": 2}
    detector(options).fit(X, checkpoint=path)
    model, messages = detector(options), []
    for _ in damages(path):
        try:
            model.fit(X, checkpoint=path, resume=True)
        except ValueError as error:
            messages.append(str(error))
    assert len(messages) > 200
    assert {message.count("run.checkpoint") for message in messages} == {1}


def test_a_checkpoint_of_format_1_is_resumed(tmp_path):
    path = tmp_path / "a"
    detector({}, max_iter=9).fit(X, checkpoint=path)
    stored = storage.read(path)
    save_file(stored.tensors, path, metadata={"fastae": json.dumps({**stored.about, "format": 1})})
    resumed, first = resumed_from(path, {})
    same(resumed, detector({}).fit(X))
    assert first == 10


def test_what_has_no_checkpoints_says_so(tmp_path):
    with pytest.raises(ValueError, match=r"solver .*'lbfgs'"):
        detector({"solver": "lbfgs"}).fit(X, checkpoint=tmp_path / "a")
    with pytest.raises(ValueError, match="resume=True needs checkpoint"):
        detector({}).fit(X, resume=True)
    with pytest.raises(TypeError, match="checkpoint must be a path or a Checkpoint, got 5"):
        detector({}).fit(X, checkpoint=5)


def test_a_place_that_cannot_be_written_is_an_error_before_training(tmp_path):
    def never(_):
        raise AssertionError("trained")

    with pytest.raises(FileNotFoundError, match="missing"):
        detector({}, callback=never).fit(X, checkpoint=tmp_path / "missing" / "a")
    with pytest.raises(IsADirectoryError, match=tmp_path.name):
        detector({}, callback=never).fit(X, checkpoint=tmp_path)


@pytest.mark.usefixtures("every_epoch")
def test_a_full_disk_leaves_the_last_checkpoint_to_go_on_from(tmp_path):
    path = tmp_path / "run.checkpoint"
    with pytest.raises(Killed):
        detector({}, callback=kill_in(9)).fit(X, checkpoint=path)
    with full_disk(), pytest.raises(OSError, match=r"run\.checkpoint"):
        detector({}).fit(X, checkpoint=path, resume=True)
    assert names(tmp_path) == ["run.checkpoint"]
    resumed, first = resumed_from(path, {})
    same(resumed, detector({}).fit(X))
    assert first == 9


def test_an_own_optimizer_may_have_any_attributes(tmp_path):
    class Holding(Momentum):
        def __init__(self, rate, keep):
            super().__init__(learning_rate=rate)
            self.keep, self.table, self.missing, self.loop = keep, {(1, 2): 3}, float("nan"), []
            self.loop.append(self.loop)

    params, path = fastae.Parameters.random(fastae.Network.autoencoder(12, 3)), tmp_path / "run.checkpoint"
    fastae.train(params, X, optimizer=Holding(0.01, 0.9), epochs=2, checkpoint=path)
    with pytest.raises(ValueError, match="belongs to another run: optimizer was"):
        fastae.train(params, X, optimizer=Holding(0.01, 0.8), epochs=3, checkpoint=path, resume=True)
    history = fastae.train(params, X, optimizer=Holding(0.01, 0.9), epochs=3, checkpoint=path, resume=True)
    assert len(history.loss) == 3
