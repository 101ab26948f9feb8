"""What a new user sees: help, the order of commands, what ended a run, and what was wrong with it."""

import json
import re
import sys
from datetime import datetime, timedelta

import numpy as np
import pytest
from processes import run
from typer.testing import CliRunner

import fastae
from fastae.cli import app
from fastae.engine.warmup import dtypes
from fastae.training.progress import progress_bar

COMMANDS = [
    "train",
    "inspect",
    "score",
    "encode",
    "reconstruct",
    "demo",
    "doctor",
    "warmup",
    "bench",
    "check-gradients",
]


def call(*arguments, **options):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], **options)


@pytest.fixture
def data(tmp_path):
    rng = np.random.default_rng(0)
    np.save(tmp_path / "x.npy", rng.normal(size=(500, 3)) @ rng.normal(size=(3, 12)))
    return tmp_path / "x.npy"


def test_the_package_is_a_command():
    words = [sys.executable, "-m", "fastae", "-h"]
    ran = run(words)
    assert ran.stdout.startswith("Usage: python -m fastae [OPTIONS] COMMAND")


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_commands_are_listed_in_order_of_use_and_not_cut(option):
    page = call(option, env={"COLUMNS": "80", "TERMINAL_WIDTH": "80"}).stdout
    listed = page.split("Commands:\n")[1].split("\n\n")[0]
    assert re.findall(r"^  ([a-z-]+) ", listed, re.MULTILINE) == COMMANDS
    assert "..." not in listed
    assert all(line.rstrip().endswith(".") for line in listed.splitlines())
    assert "Examples:\n    fastae train data.csv" in page


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_page_has_an_example_that_is_read(command):
    page = call(command, "-h").stdout
    assert page == call(command, "--help").stdout
    examples = page.split("Example")[1]
    lines = re.findall(rf"^ +(?:.* \| )?fastae ({command}.*)$", examples, re.MULTILINE)
    assert lines
    for line in lines:  # every option of an example exists
        for option in re.findall(r"--[a-z-]+", line):
            assert f"{option} " in page.split("Example")[0], option


def test_json_is_a_flag_of_every_command_that_has_it():
    for command in COMMANDS:
        page = call(command, "-h", env={"COLUMNS": "200"}).stdout
        for words in re.findall(r"--json(.*)", page.split("Example")[0]):
            assert words.split() == "Print results as JSON, one object per line.".split()


def test_bench_prints_json(monkeypatch):
    from fastae.bench import rounds

    for name in ("REST", "WARM", "TURN"):
        monkeypatch.setattr(rounds, name, 0)
    ran = call("bench", "--size", "12,5,300", "--peers", "numpy", "--json")
    assert ran.stdout.count("\n") == 1
    assert json.loads(ran.stdout)["cases"]


def test_what_ended_a_run_is_named_as_an_option(data, tmp_path):
    words = ("train", data, "--hidden", 3, "--out", tmp_path / "m")
    assert "stopped by       --epochs\n" in call(*words, "--epochs", 3).stdout
    ran = call(*words, "--epochs", 5000, "--learning-rate", 0.03, "--patience", 1)
    assert "stopped by       --patience\n" in ran.stdout
    assert "stopped by   --patience\n" in re.sub("  +", "   ", call("inspect", tmp_path / "m").stdout)


def test_a_run_that_ends_while_the_loss_falls_says_so(data, tmp_path):
    words = ("train", data, "--hidden", 3, "--init", "random", "--out", tmp_path / "m")
    said = "fastae: the loss was still falling after 20 epochs: raise --epochs\n"
    assert said in call(*words, "--epochs", 20).stderr
    assert call(*words, "--epochs", 20, "--json").stderr == said
    ran = call(*words, "--epochs", 5000, "--schedule", "constant", "--patience", 1)
    assert "falling" not in ran.stderr


def test_a_code_wider_than_the_data_is_said_to_be(data, tmp_path):
    words = ("train", data, "--epochs", 1, "--json", "--out", tmp_path / "m", "--hidden")
    ran = call(*words, 32)
    assert ran.stderr.startswith("fastae: the code is wider than the data: 32 units for 12 columns")
    assert "choose --hidden below" in ran.stderr
    for more in ((12,), (32, "--noise", "mask"), ("auto",)):
        assert call(*words, *more).stderr == ""


def test_inspect_shows_when_and_by_which_version_a_model_was_written(data, tmp_path):
    call("train", data, "--hidden", 3, "--epochs", 1, "--out", tmp_path / "m")
    facts = json.loads(call("inspect", tmp_path / "m", "--json").stdout)
    assert facts["version"] == fastae.__version__
    assert abs(datetime.now() - datetime.fromisoformat(facts["date"])) < timedelta(hours=1)


@pytest.mark.parametrize("dtype", dtypes())
def test_inspect_shows_the_dtype_of_the_products(dtype, data, tmp_path):
    call("train", data, "--hidden", 3, "--epochs", 1, "--dtype", dtype, "--out", tmp_path / "m")
    assert json.loads(call("inspect", tmp_path / "m", "--json").stdout)["dtype"] == dtype


def test_help_names_a_column_not_a_type_of_python():
    assert {"--keep COLUMN", "--drop COLUMN", "--label COLUMN"} <= set(
        re.findall(r"--[a-z]+ [A-Z]+", call("score", "-h").stdout)
    )


def test_the_bar_ends_where_training_ended(capsys):
    for number in (3, 10):
        with progress_bar(True, 10, 100) as show:
            for epoch in range(1, number + 1):
                show(fastae.training.Epoch(epoch, 10, 1.0 / epoch, 0.1, 1e-3 * epoch, None))
        last = capsys.readouterr().err
        assert f"epoch {number}/10, loss {1.0 / number:.5g}" in last


def test_the_bar_gives_way_before_anything_is_cut_in_80_columns(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with progress_bar(True, 2000, 1000) as show:
        show(fastae.training.Epoch(2000, 2000, 0.123456, 0.1, 1.0, None, 10.23456))
    last = capsys.readouterr().err
    assert " epoch 2000/2000, loss 0.12346, validation 10.235, 2,000,000 rows/s " in last
    assert "…" not in last
