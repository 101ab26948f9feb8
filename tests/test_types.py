"""What type checkers make of a user's program: fastae's classes are classes, and a wrong choice is an error.

mypy runs on a program outside the checkout, with fastae installed as a wheel and as an editable install. It must find
exactly what the program's comments say: ``# reveals: a type`` and ``# error: code``.
"""

import ast
import os
import re
import shutil
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path
from typing import get_args

import pytest
from processes import run

import fastae
from fastae.cli.shared import Activation as CommandActivation
from fastae.network import Activation
from fastae.objective import Noise
from fastae.reference import ACTIVATIONS

ROOT = Path(__file__).parents[1]
PROGRAM = """
import numpy as np

import fastae
from fastae.network import Activation

X = np.ones((50, 6))
network = fastae.Network((6, 2, 6), ("tanh", "identity"))
params = fastae.Parameters.random(network, dtype=np.float32)

# -- what is right passes
chosen: Activation = "relu"
fastae.Autoencoder((4, 2), activation=chosen, solver="lbfgs", scale=None, batch_size="auto", dtype=np.float64)
fastae.Autoencoder([4, 2], n_iter_no_change=np.inf, random_state=np.random.RandomState(0), callback=lambda epoch: None)
fastae.Network((6, 2, 6), (chosen, "identity"))
fastae.Engine(network, dtype="bfloat16")
fastae.Engine(network, dtype=np.dtype("float32"))
fastae.Engine(network, dtype=params.dtype)
fastae.SGD(learning_rate=lambda step: 0.1 / (step + 1), nesterov=True)
fastae.train(params, X, optimizer=fastae.AdamW(), objective=fastae.Objective(noise="swap"), epochs=2)
fastae.check_gradients(params, X, engine=fastae.Engine(network))
fastae.kernels.sigmoid_with_derivative(X, X.copy(), X.copy())

# -- every name has its type
reveal_type(fastae.Autoencoder(4))  # reveals: fastae.estimator.autoencoder.Autoencoder
reveal_type(fastae.Autoencoder().fit(X))  # reveals: fastae.estimator.autoencoder.Autoencoder
reveal_type(fastae.Autoencoder().partial_fit(X))  # reveals: fastae.estimator.autoencoder.Autoencoder
reveal_type(fastae.Autoencoder().set_params(alpha=0))  # reveals: fastae.estimator.autoencoder.Autoencoder
reveal_type(fastae.AutoencoderDetector.load("model"))  # reveals: fastae.estimator.detector.AutoencoderDetector
reveal_type(fastae.Autoencoder().loss_curve_)  # reveals: list[float]
reveal_type(fastae.Autoencoder().n_features_in_)  # reveals: int
reveal_type(fastae.Autoencoder().score(X))  # reveals: float
reveal_type(fastae.AutoencoderDetector().offset_)  # reveals: float
reveal_type(fastae.train(params, X).loss)  # reveals: list[float]
reveal_type(fastae.Engine(network).loss_and_gradient(params, X))  # reveals: tuple[float, fastae.network.Parameters]
reveal_type(fastae.check_gradients(params, X))  # reveals: dict[str, float]
reveal_type(fastae.open_rows("x.npy"))  # reveals: fastae.data.row_source.Rows
reveal_type(fastae.plots.LossCurveDisplay([1.0]))  # reveals: fastae.plots.loss.LossCurveDisplay
reveal_type(fastae.reference.cost(X, X))  # reveals: numpy.floating[Any]
reveal_type(fastae.kernels.exp(X, X))  # reveals: None

# -- what is wrong is an error
fastae.Autoencoder(activation="sigmod")  # error: arg-type
fastae.Autoencoder(solver="adma")  # error: arg-type
fastae.Autoencoder(learning_rate="cosin")  # error: arg-type
fastae.Autoencoder(scale="std")  # error: arg-type
fastae.Autoencoder(noise="gausian")  # error: arg-type
fastae.Autoencoder(missing="nan")  # error: arg-type
fastae.Autoencoder(batch_size="all")  # error: arg-type
fastae.Autoencoder(dtype="float16")  # error: arg-type
fastae.Autoencoder(max_iter="200")  # error: arg-type
fastae.Autoencoder(hidden=4)  # error: call-arg
fastae.Autoencoder(4, "tanh")  # error: arg-type
fastae.AutoencoderDetector(solver="adma")  # error: arg-type
fastae.AutoencoderDetector(contamination="0.1")  # error: arg-type
fastae.Objective(noise="gausian")  # error: arg-type
fastae.SGD(learning_rate="0.1")  # error: arg-type
fastae.Adam(momentum=0.9)  # error: call-arg
fastae.Network((6, 2, 6), ("sigmod", "identity"))  # error: arg-type
fastae.Parameters(network, "bfloat16")  # error: arg-type
fastae.Engine(network, dtype="float16")  # error: arg-type
fastae.train(params, X, optimizer="adam")  # error: arg-type
fastae.reference.forward(X, params, ("sigmod", "identity"))  # error: arg-type
fastae.check_gradients(params, X, activations=("sigmod", "identity"))  # error: arg-type
fastae.plots.LossCurveDisplay.from_estimator(network)  # error: arg-type
fastae.Autoencoders()  # error: attr-defined
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy of the checkout: building writes beside the sources."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("fastae", "kernels", "bench"):
        without = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=without)
    return source


def environment(place, source, build):
    """A new environment with fastae as `build` packs it, that sees everything else in this one; its Python."""
    python = place / "venv" / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    venv.create(place / "venv", symlinks=sys.platform != "win32")
    script = f"import setuptools.build_meta as backend; backend.{build}({str(place)!r})"
    done = run([sys.executable, "-c", script], cwd=source, env={**os.environ, "FASTAE_BUILD_KERNELS": "0"})
    assert done.returncode == 0, done.stderr
    query = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = run([python, "-c", query]).stdout.strip()
    (wheel,) = place.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(packages)
    Path(packages, "others.pth").write_text(sysconfig.get_path("purelib"))
    return python


@pytest.mark.parametrize("build", ["build_wheel", "build_editable"])
def test_mypy_reports_what_a_users_program_expects(build, source, tmp_path):
    pytest.importorskip("mypy")
    pytest.importorskip("setuptools", minversion="77")
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    python = environment(tmp_path, source, build)
    words = ["--strict", "--no-error-summary", "--cache-dir", source / "cache", "--python-executable", python]
    ran = run(
        [sys.executable, "-m", "mypy", *words, program.name],
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if name not in ("MYPYPATH", "PYTHONPATH")},
    )
    assert not ran.stderr
    reported = {}
    for line in ran.stdout.splitlines():
        number, kind, text = re.fullmatch(r"program\.py:(\d+): (error|note): (.*)", line).groups()
        if kind == "error":
            reported[int(number)] = "error: " + re.search(r"\[([\w-]+)\]$", text)[1]
        elif text.startswith("Revealed type is"):
            reported[int(number)] = "reveals: " + text.partition('"')[2].rstrip('"').replace("builtins.", "")
    expected = {
        number: comment[1]
        for number, line in enumerate(PROGRAM.splitlines(), start=1)
        if (comment := re.search(r"# ((?:reveals|error): .*)", line))
    }
    assert reported == expected


@pytest.mark.parametrize("package", [fastae, fastae.kernels], ids=lambda package: package.__name__)
def test_type_checkers_see_every_name_that_is_loaded_when_first_used(package):
    text = Path(package.__file__).read_text(encoding="utf-8")
    blocks = [node for node in ast.parse(text).body if isinstance(node, ast.If)]
    (declared,) = (block.body for block in blocks if ast.unparse(block.test) == "TYPE_CHECKING")
    loaded = {*package._HOME, *getattr(package, "_MODULES", ())} - {
        "rows"
    }  # an old name of data/row_source.py
    assert loaded <= {alias.asname for imported in declared for alias in imported.names}


def test_choices_are_those_that_are_checked_at_run_time():
    from sklearn.utils._param_validation import StrOptions

    from fastae.estimator.settings import Settings
    from fastae.kernels.layout import ACTIVATIONS as KERNELS
    from fastae.objective import NOISES

    assert set(get_args(Activation)) == set(ACTIVATIONS) == set(KERNELS) == set(get_args(CommandActivation))
    assert set(get_args(Noise)) == set(NOISES)
    for name, constraints in Settings._parameter_constraints.items():
        options = {
            option for choice in constraints if isinstance(choice, StrOptions) for option in choice.options
        }
        assert options == {text for text in texts(Settings.__annotations__[name])}, name


def texts(annotation):
    """The strings among the Literals of an annotation."""
    if isinstance(annotation, str):
        return {annotation}
    return {text for part in get_args(annotation) if part != annotation for text in texts(part)}
