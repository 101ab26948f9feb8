"""The command: the demo from end to end on real data, the report of a bench, kernels compiled ahead."""

import re
import subprocess
import sys
import textwrap

import pytest
from typer.testing import CliRunner

import fastae
from fastae import demo
from fastae.cli import app


def call(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_demo_trains_and_numpy_agrees():
    result = demo.run(epochs=40)
    assert result.loss_after < 0.1 * result.loss_before
    assert result.numpy_loss_after == pytest.approx(result.loss_after, rel=1e-3)
    assert result.xhat.shape == result.X.shape == (1797, 64)
    error = ((result.xhat - result.X) ** 2).sum() / (2 * len(result.X))
    assert error == pytest.approx(result.loss_after, rel=1e-4)


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
    monkeypatch.setattr("fastae.cli.find_spec", lambda name: None)
    monkeypatch.chdir(tmp_path)
    ran = call("demo", "--epochs", 2)
    assert ran.exit_code == 0, ran.output
    assert "fastae[plot]" in ran.output.replace("\n", "")
    assert not list(tmp_path.iterdir())


def test_demo_says_what_is_wrong_before_it_trains(tmp_path):
    pytest.importorskip("matplotlib")
    ran = call("demo", "--out", tmp_path / "nowhere" / "x.png")
    assert ran.exit_code == 2
    assert "no directory" in ran.output
    assert "rows per second" not in ran.output
    assert call("demo", "--epochs", 0).exit_code == 2
    ran = call("demo", "--out", tmp_path)
    assert ran.exit_code == 2
    assert "is a directory" in ran.output
    assert not list(tmp_path.iterdir())


def test_demo_says_why_there_is_no_picture(tmp_path):
    pytest.importorskip("matplotlib")
    ran = call("demo", "--epochs", 2, "--out", tmp_path / "digits.xyz")
    assert ran.exit_code == 2
    assert "rows per second" in ran.output
    assert "--out" in ran.output
    assert "xyz" in ran.output


def test_bench_prints_tables_and_writes_all_files(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    from fastae.bench import report, rounds

    for name in ("REST", "WARM", "TURN"):
        monkeypatch.setattr(rounds, name, 0)
    readme, figures, picture = tmp_path / "README.md", tmp_path / "bench.json", tmp_path / "bench.png"
    readme.write_text("head\n" + "".join(report.MARKS) + "tail\n")
    sizes = ("--size", "12,5,300", "--size", "20,3,100")
    ran = call(
        "bench",
        *sizes,
        "--peers",
        "numpy, sklearn",
        "--plot",
        picture,
        "--json",
        figures,
        "--markdown",
        readme,
    )
    assert ran.exit_code == 0, ran.output
    for words in ("12, 5, 300", "20, 3, 100", "sklearn", "FMA", "speedup", "Geometric mean", "openblas"):
        assert words in ran.output
    assert picture.read_bytes().startswith(b"\x89PNG")
    found = report.Report.from_json(figures.read_text())
    assert found.peers == ["numpy", "sklearn"]
    assert all(timing.rounds >= 15 for c in found.comparisons for timing in c.timings.values())
    text = readme.read_text()
    assert text.startswith("head\n")
    assert text.endswith("tail\n")
    assert text.count("| 12, 5, 300 |") == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--peers", "caffe"), "no peer caffe"),
        (("--size", "12,5"), "not of the form n,k,m"),
        (("--size", "12,0,5"), "at least 1"),
        (("--json", "nowhere/x.json"), "no directory"),
        (("--markdown", "nowhere.md"), "nowhere.md"),
    ],
)
def test_bench_says_what_is_wrong_before_it_measures(arguments, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ran = call("bench", *arguments)
    assert ran.exit_code == 2
    assert words in ran.output
    assert "timing" not in ran.output


def test_nothing_is_compiled_after_warmup():
    code = """
        from fastae.cli import app
        app(["warmup"], standalone_mode=False)

        from numba.core import event
        class Compilations(event.Listener):
            def on_start(self, compilation): print("compiled", compilation.data["dispatcher"])
            def on_end(self, compilation): pass
        event.register("numba:compile", Compilations())

        import numpy as np, fastae
        for dtype in ("float32", "float64"):
            X = np.random.default_rng(0).random((50, 6)).astype(dtype)
            for options in ({"noise": "mask"}, {"sparsity_weight": 0.1}, {"missing": "mask"}, {"solver": "lbfgs"}):
                model = fastae.AutoencoderDetector((2,), max_iter=2, **options).fit(X)
                model.predict(X), model.reconstruct(X), model.transform(X), model.explain(X[:3])
            fastae.check_gradients(model.params_, X, engine=fastae.Engine(model.network_, 2, dtype))
            fastae.kernels.sigmoid_with_derivative(X, X.copy(), X.copy()), fastae.kernels.exp(X, X.copy())
    """
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert re.findall(r"float\d\d: ready in", done.stdout) == ["float32: ready in", "float64: ready in"]
    assert "compiled" not in done.stdout


def test_version():
    assert call("--version").output.split() == ["fastae", fastae.__version__]
