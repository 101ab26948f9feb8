"""The demo learns, agrees with NumPy, and times both fairly; its errors name the option."""

import sys

import pytest
from threadpoolctl import threadpool_info, threadpool_limits
from typer.testing import CliRunner

from fastae import Autoencoder
from fastae.bench import rounds
from fastae.cli import app, demo
from fastae.engine import thread_pool
from fastae.estimator import automatic


@pytest.fixture(autouse=True)
def short_rounds(monkeypatch):
    for name in ("REST", "WARM", "TURN"):
        monkeypatch.setattr(rounds, name, 0)


def call(*words):
    return CliRunner().invoke(app, list(map(str, words)))


def test_demo_trains_and_numpy_agrees():
    result = demo.run(epochs=150)
    assert result.loss_after < 0.9 * result.loss_by_pca
    assert result.loss_before == pytest.approx(result.loss_by_pca, rel=0.3)
    assert result.numpy_loss_after == pytest.approx(result.loss_after, rel=1e-3)
    assert result.xhat.shape == result.X.shape == (1797, 64)
    error = ((result.xhat - result.X) ** 2).sum() / (2 * len(result.X))
    assert error == pytest.approx(result.loss_after, rel=1e-4)


def test_demo_takes_the_steps_of_the_estimators_defaults(monkeypatch):
    asked = []
    monkeypatch.setattr(demo, "train", lambda params, X, **options: asked.append(options["optimizer"]))
    monkeypatch.setitem(automatic.RATES, "sigmoid", (0.5, 0.1))  # wherever they are written down
    demo.run(epochs=150)
    model = Autoencoder(32, scale=None, max_iter=150, batch_size=demo.BATCH_SIZE)
    expected = model._optimizer(automatic.budget_of(model, 1797, (64, 32, 64, 64), 128))
    assert asked
    for optimizer in asked:
        assert (optimizer.beta_1, optimizer.beta_2) == (model.beta_1, model.beta_2)
        assert optimizer.rates(0, 1350).tolist() == expected.rates(0, 1350).tolist()
        unit = pytest.approx(demo.digits().std(0).max(), rel=0.02)
        assert optimizer.rate_factors == {"W1": 0.1, "b1": 0.1, "W3": unit, "b3": unit}
    assert expected.rates(0, 1) == [0.5]


def test_demo_prints_a_table_and_saves_a_picture(tmp_path):
    pytest.importorskip("matplotlib")
    picture = tmp_path / "digits.png"
    ran = call("demo", "--epochs", 3, "--hidden", 8, "--out", picture)
    assert ran.exit_code == 0, ran.output
    for words in ("loss before", "loss after 3 epochs", "rows per second", "NumPy", "speed", "3/3"):
        assert words in ran.output
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert picture.stat().st_size > 5000


def test_demo_works_without_matplotlib(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr("fastae.cli.machine.find_spec", lambda name: None)
    monkeypatch.chdir(tmp_path)
    ran = call("demo", "--epochs", 2)
    assert ran.exit_code == 0, ran.output
    assert "fastae[plot]" in ran.output.replace("\n", "")
    assert not list(tmp_path.iterdir())


def test_demo_reports_errors_before_it_trains(tmp_path):
    pytest.importorskip("matplotlib")
    ran = call("demo", "--out", tmp_path / "nowhere" / "x.png")
    assert ran.exit_code == 2
    assert "not a directory" in ran.output
    assert "rows per second" not in ran.output
    assert call("demo", "--epochs", 0).exit_code == 2
    ran = call("demo", "--out", tmp_path)
    assert ran.exit_code == 2
    assert "is a directory" in ran.output
    assert not list(tmp_path.iterdir())


def test_demo_reports_why_there_is_no_image(tmp_path):
    pytest.importorskip("matplotlib")
    ran = call("demo", "--epochs", 2, "--out", tmp_path / "digits.xyz")
    assert ran.exit_code == 2
    assert "rows per second" in ran.output
    assert "--out" in ran.output
    assert "xyz" in ran.output


def blas_threads():
    return {info["num_threads"] for info in threadpool_info() if info["user_api"] == "blas"}


def test_numpy_is_timed_on_its_best_number_of_blas_threads_in_turn_with_fastae(monkeypatch):
    compared, in_turn = [], rounds.in_turn

    def seen(contenders, *, rounds):
        compared.append(([contender.threads for contender in contenders.values()], list(contenders), rounds))
        return in_turn(contenders, rounds=rounds)

    monkeypatch.setattr(thread_pool, "available_cpus", lambda: 2)
    monkeypatch.setattr(rounds, "in_turn", seen)
    with threadpool_limits(1, user_api="blas"):
        result = demo.run(epochs=1)
        assert blas_threads() == {1}  # as they were
    (choices, _, _), (both, names, count) = compared
    assert choices == [1, 2]
    assert names == ["fastae", "numpy"]
    assert both == [2, result.numpy_threads]
    assert count >= 5
    shown = str([column.header for column in demo.table(result).columns])
    assert f"NumPy, {result.numpy_threads} thread" in shown
    assert "whichever is faster" in demo.table(result).caption
