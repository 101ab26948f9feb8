"""The command: the demo from end to end, on real data."""

import sys

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


def test_version():
    assert call("--version").output.split() == ["fastae", fastae.__version__]
