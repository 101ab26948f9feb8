"""The command end to end on real data: its results are those of the estimators, and an error is one line."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pandas as pd
import processes
import pytest
from processes import process
from sklearn.datasets import load_breast_cancer
from typer.testing import CliRunner

import fastae
import fastae.storage
from fastae.cli import app
from fastae.engine.warmup import dtypes
from fastae.estimator.stored import StoredModel

DATA = load_breast_cancer(as_frame=True)
BENIGN, ALL = DATA.data[DATA.target == 1], DATA.data
QUICK = ("--hidden", 4, "--activation", "tanh", "--epochs", 30)
COMMAND = [sys.executable, "-c", "from fastae.cli import main; main()"]


def call(*arguments, **options):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], **options)


def run(*arguments, **options):
    """The command in a process of its own."""
    words = [*COMMAND, *map(str, arguments)]
    return processes.run(words, cwd=None, **options)


def good(*arguments, **options):
    ran = call(*arguments, **options)
    assert ran.exit_code == 0, ran.output
    return ran.stdout


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A directory with benign.csv, all.csv and model.safetensors, trained on the former."""
    place = tmp_path_factory.mktemp("cli")
    BENIGN.to_csv(place / "benign.csv", index=False)
    ALL.to_csv(place / "all.csv", index=False)
    good("train", place / "benign.csv", *QUICK, "--out", place / "model.safetensors", "--contamination", 0.05)
    return place


# -- train, inspect, score, encode, reconstruct -----------------------------------------------------------------------


def test_train_is_the_estimators_fit(place):
    model = fastae.Autoencoder.load(place / "model.safetensors")
    settings = {"activation": "tanh", "max_iter": 30, "random_state": 0, "dtype": "float32"}
    expected = fastae.AutoencoderDetector((4,), n_estimators=1, contamination=0.05, **settings).fit(BENIGN)
    assert type(model) is fastae.AutoencoderDetector
    np.testing.assert_allclose(model.params_.flat, expected.params_.flat, rtol=1e-4, atol=1e-5)
    assert model.offset_ == pytest.approx(expected.offset_, rel=1e-4)
    assert list(model.feature_names_in_) == list(ALL.columns)
    assert model.get_params() == expected.get_params()


def test_train_reports_what_it_trained(place, tmp_path):
    out = tmp_path / "m.safetensors"
    ran = run("train", place / "benign.csv", *QUICK, "--out", out, "--early-stopping")
    assert ran.returncode == 0, ran.stderr
    for words in (
        "rows             357",
        "features         30",
        "validation loss",
        "r2",
        "threshold",
        "seconds",
    ):
        assert words in ran.stdout
    for words in ("30/30", "loss", "validation", "rows/s"):
        assert words in ran.stderr
    facts = json.loads(good("train", place / "benign.csv", *QUICK, "--out", out, "--json", "--no-detector"))
    assert (facts["rows"], facts["features"], facts["hidden"], facts["epochs"]) == (357, 30, [4], 30)
    assert facts["threshold"] is None
    assert facts["r2"] == pytest.approx(fastae.Autoencoder.load(out).score(BENIGN))
    assert facts["stopped_by"] == "--epochs"


def test_what_was_chosen_from_the_data_is_reported_and_stored(place, tmp_path):
    out = tmp_path / "m.safetensors"
    words = "train", place / "benign.csv", "--estimators", 1, "--out", out, "--json"
    trained = json.loads(good(*words))
    stored = json.loads(good("inspect", out, "--json"))
    model = fastae.Autoencoder.load(out)
    names = (
        "hidden_layer_sizes", "batch_size", "learning_rate_init", "rate_factors", "max_iter", "n_iter_no_change"
    )  # fmt: skip
    options = ("hidden", "batch_size", "learning_rate", "rate_factors", "epochs", "patience")
    chosen = dict(zip(options, map(model.auto_.get, names), strict=True))
    assert trained["auto"] == stored["auto"] == chosen
    assert chosen["epochs"] == trained["epochs"]
    for name, value in (("mean", model.error_over_mean_), ("pca", model.error_over_pca_)):
        assert trained[f"error_over_{name}"] == stored[f"error_over_{name}"] == value > 0
    text = good("inspect", out)
    assert re.search(r"^error over pca +0\.\d+$", text, re.M)
    assert re.search(r"^  batch size +128$", text, re.M)
    words = ["--hidden", 4, "--epochs", 2, "--batch-size", 50, "--learning-rate", 0.01, "--patience", 3]
    facts = json.loads(good("train", place / "benign.csv", *words, "--out", out, "--json"))
    assert facts["auto"] is None
    facts = json.loads(good("train", place / "benign.csv", "--epochs", 2, "--out", out, "--json"))
    assert (facts["auto"]["noise"], facts["auto"]["init"], facts["hidden"]) == ("mask", "random", [60])


def test_several_files_are_one_after_another(place, tmp_path):
    BENIGN[:200].to_csv(tmp_path / "a.csv", index=False)
    BENIGN[200:].to_parquet(tmp_path / "b b.parquet")
    parts, out = (tmp_path / "a.csv", tmp_path / "b b.parquet"), tmp_path / "m.safetensors"
    good("train", *parts, *QUICK, "--out", out, "--contamination", 0.05)
    assert out.read_bytes() == (place / "model.safetensors").read_bytes()
    assert good("score", out, *parts) == good("score", out, place / "benign.csv")


def test_the_settings_of_train_reach_the_estimator(place, tmp_path):
    out = tmp_path / "m.safetensors"
    words = (
        "--hidden 6,3 --activation relu --solver sgd --epochs 7 --batch-size 50 --learning-rate 0.01 --alpha 0.5 "
        "--scale minmax --missing --noise mask --noise-level 0.2 --early-stopping --contamination 0.2 --seed 5 "
        "--patience 20 --threads 1 --dtype float64"
    )
    good("train", place / "benign.csv", "--out", out, *words.split())
    model = fastae.Autoencoder.load(out)
    expected = fastae.AutoencoderDetector(
        (6, 3),
        n_estimators=1,
        activation="relu",
        solver="sgd",
        max_iter=7,
        batch_size=50,
        learning_rate_init=0.01,
        alpha=0.5,
        scale="minmax",
        missing="mask",
        noise="mask",
        noise_level=0.2,
        early_stopping=True,
        n_iter_no_change=20,
        contamination=0.2,
        random_state=5,
        n_threads=1,
        dtype="float64",
    )
    assert model.get_params() == expected.get_params()


def test_several_networks_are_trained_unless_there_is_reason_for_one(place, tmp_path):
    out, scores = tmp_path / "m.safetensors", tmp_path / "s.csv"
    train = "train", place / "benign.csv", "--out", out, "--epochs", 5, "--json"
    assert json.loads(good(*train))["networks"] == 15
    assert json.loads(good(*train, "--hidden", "auto", "--estimators", 3))["networks"] == 3
    assert json.loads(good(*train, "--hidden", 4))["networks"] == 1
    facts = json.loads(good(*train, "--hidden", 4, "--estimators", 3, "--noise", "none"))
    assert (facts["networks"], facts["hidden"]) == (3, [4])
    model = fastae.Autoencoder.load(out)
    expected = fastae.AutoencoderDetector(
        (4,), n_estimators=3, noise=None, max_iter=5, random_state=0, dtype="float32"
    ).fit(BENIGN)
    assert model.get_params() == expected.get_params()
    np.testing.assert_allclose(model.score_samples(ALL), expected.score_samples(ALL), rtol=1e-3)
    good("score", out, place / "all.csv", "--top", 1, "--out", scores)
    table = pd.read_csv(scores)
    assert list(table) == ["error", "outlier", "p_value", "feature_1", "share_1"]
    np.testing.assert_allclose(table.p_value, model.p_values(ALL), rtol=1e-6)
    facts = json.loads(good("inspect", out, "--json"))
    assert (facts["networks"], facts["code"]) == (3, 12)
    assert facts["parameters"] == 3 * (30 * 4 + 4 + 4 * 30 + 30 + 30 * 30 + 30)
    ran = call("encode", out, place / "all.csv", "--out", tmp_path / "codes.npy")
    assert np.load(tmp_path / "codes.npy").shape == (569, 12)
    assert "the codes of 3 networks, side by side" in ran.stderr
    ran = call(*train, "--no-detector", "--estimators", 3)
    assert ran.exit_code == 2
    assert "leave out --no-detector" in ran.output


def test_inspect_shows_what_was_trained(place):
    output = good("inspect", place / "model.safetensors")
    for words in (
        "30 -> 4 tanh -> 30 tanh -> 30 identity",
        "float32",
        "mean radius, mean texture",
        "threshold",
    ):
        assert words in output
    facts = json.loads(good("inspect", place / "model.safetensors", "--json"))
    assert facts["parameters"] == 30 * 4 + 4 + 4 * 30 + 30 + 30 * 30 + 30
    assert facts["features"] == list(ALL.columns)
    assert facts["model"] == "AutoencoderDetector"


@pytest.mark.parametrize("kind", ["csv", "parquet", "json"])
def test_scores_are_the_estimators(kind, place, tmp_path):
    model = fastae.Autoencoder.load(place / "model.safetensors")
    if kind == "json":
        output = good("score", place / "model.safetensors", place / "all.csv", "--top", 2, "--json")
        table = pd.DataFrame([json.loads(line) for line in output.splitlines()])
    else:
        out = tmp_path / f"s.{kind}"
        output = good("score", place / "model.safetensors", place / "all.csv", "--top", 2, "--out", out)
        table = {"csv": pd.read_csv, "parquet": pd.read_parquet}[kind](out)
        assert f"outliers   {table.outlier.sum()}" in output
    assert list(table) == ["error", "outlier", "feature_1", "share_1", "feature_2", "share_2"]
    np.testing.assert_allclose(table.error, -model.score_samples(ALL), rtol=1e-6)
    assert table.outlier.dtype == bool
    assert np.array_equal(table.outlier, model.predict(ALL) == -1)
    features, shares = model.explain(ALL, top=2)
    assert np.array_equal(table[["feature_1", "feature_2"]], features)
    np.testing.assert_allclose(table[["share_1", "share_2"]], shares, rtol=1e-5)


@pytest.mark.parametrize(("command", "method"), [("encode", "transform"), ("reconstruct", "reconstruct")])
def test_arrays_are_the_estimators_and_written_chunk_by_chunk(command, method, place, tmp_path, monkeypatch):
    monkeypatch.setattr("fastae.cli.models.CHUNK_BYTES", 50_000)
    sizes, compute = [], getattr(StoredModel, method)
    monkeypatch.setattr(StoredModel, method, lambda self, X: sizes.append(len(X)) or compute(self, X))
    data, out = tmp_path / "x.npy", tmp_path / "written.npy"
    np.save(data, ALL.to_numpy())
    facts = json.loads(good(command, place / "model.safetensors", data, "--out", out, "--json"))
    assert sum(sizes) == len(ALL)
    assert len(sizes) > 2
    written = np.load(out)
    assert (facts["shape"], facts["dtype"]) == (list(written.shape), "float32")
    np.testing.assert_array_equal(
        written, getattr(fastae.Autoencoder.load(place / "model.safetensors"), method)(ALL)
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["written.npy", "x.npy"]


@pytest.mark.parametrize("words", [["inspect"], ["score"], ["reconstruct", "--out", "written.npy"]])
def test_using_a_model_needs_neither_scikit_learn_nor_pandas(words, place, tmp_path):
    """Importing them takes longer than all else that these commands do."""
    name, *options = words
    data = [] if name == "inspect" else [place / "all.csv"]
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\nfrom fastae.cli import main\ntry:\n    main()\n"
        "finally:\n    print(sorted({'sklearn', 'pandas', 'fastae'} & set(sys.modules)), file=sys.stderr)\n"
    )
    command = [sys.executable, script, name, place / "model.safetensors", *data, *options]
    ran = processes.run(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(processes.HOME)})
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr.splitlines()[-1] == "['fastae']"


def test_a_model_in_a_file_gives_what_the_estimator_gives(place):
    detector, stored = (
        fastae.AutoencoderDetector.load(place / "model.safetensors"),
        StoredModel(place / "model.safetensors"),
    )
    rows = fastae.open_rows(place / "all.csv")
    frame = ALL
    assert stored.kind == "AutoencoderDetector"
    assert stored.offset_ == detector.offset_
    for method in ("transform", "reconstruct", "score_samples"):
        np.testing.assert_array_equal(getattr(stored, method)(rows), getattr(detector, method)(frame), method)
    for ours, theirs in zip(stored.explain(rows, 3), detector.explain(frame, 3), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    with pytest.raises(ValueError, match="has 29 features, but the model was fitted with 30"):
        stored.transform(fastae.open_rows(frame.to_numpy()[:, 1:]))
    with_nan = frame.to_numpy(copy=True)
    with_nan[3, 4] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        stored.score_samples(fastae.open_rows(with_nan))


def test_json_has_null_for_errors_beyond_all_numbers(place, tmp_path):
    data = ALL[:3].to_numpy(copy=True)
    data[1, 2] = 1e200
    np.save(tmp_path / "x.npy", data)
    with np.errstate(all="ignore"):
        lines = good("score", place / "model.safetensors", tmp_path / "x.npy", "--json").splitlines()

    def refuse(word):
        raise AssertionError(word)

    errors = [json.loads(line, parse_constant=refuse)["error"] for line in lines]
    assert errors[1] is None
    assert all(error > 0 for error in (errors[0], errors[2]))


def test_missing_cells_are_filled_in(place, tmp_path):
    with_holes = BENIGN.mask(np.random.default_rng(0).random(BENIGN.shape) < 0.05)
    with_holes.to_csv(tmp_path / "x.csv", index=False)
    ran = call("train", tmp_path / "x.csv", *QUICK, "--out", tmp_path / "m")
    message = "contains NaN in column 'mean radius': if cells are missing, train with --missing"
    assert (ran.exit_code, ran.stderr) == (1, f"fastae: {tmp_path / 'x.csv'} {message}\n")
    good("train", tmp_path / "x.csv", *QUICK, "--missing", "--out", tmp_path / "m")
    good("reconstruct", tmp_path / "m", tmp_path / "x.csv", "--out", tmp_path / "y.npy")
    assert np.isfinite(np.load(tmp_path / "y.npy")).all()


def test_a_checkpoint_is_resumed(place, tmp_path):
    data, kept = place / "benign.csv", ("--checkpoint", tmp_path / "c")
    constant = (*QUICK, "--schedule", "constant")
    good("train", data, *constant, "--out", tmp_path / "straight")
    good("train", data, *constant, *kept, "--epochs", 12, "--out", tmp_path / "part")
    good("train", data, *constant, *kept, "--resume", "--out", tmp_path / "rest")
    models = [fastae.Autoencoder.load(tmp_path / name) for name in ("straight", "rest")]
    assert np.array_equal(models[0].params_.flat, models[1].params_.flat)
    assert models[0].loss_curve_ == models[1].loss_curve_
    ran = call("train", data, *constant, *kept, "--resume", "--seed", 5, "--out", tmp_path / "other")
    assert ran.exit_code == 1, "the checkpoint is not read"
    assert "random_state was 0, and is 5 now" in ran.stderr


def test_plots_are_written(place, tmp_path):
    pytest.importorskip("matplotlib")
    trained, scored = tmp_path / "t.png", tmp_path / "s.svg"
    good(
        "train", place / "benign.csv", *QUICK, "--out", tmp_path / "m", "--plot", trained, "--early-stopping"
    )
    assert trained.read_bytes().startswith(b"\x89PNG")
    good("train", place / "benign.csv", *QUICK, "--hidden", 1, "--out", tmp_path / "m", "--plot", trained)
    good("score", tmp_path / "m", place / "all.csv", "--out", tmp_path / "s.csv", "--plot", scored)
    assert b"<svg" in scored.read_bytes()
    assert trained.stat().st_size > 20_000 < scored.stat().st_size
    for words in (
        ("train", place / "all.csv", "--out", tmp_path / "n"),
        ("score", tmp_path / "m", place / "all.csv"),
    ):
        ran = call(*words, "--plot", tmp_path / "x.txt")
        assert (ran.exit_code, ran.stdout) == (1, "")
        assert "the suffix must be one of" in ran.stderr
    assert not (tmp_path / "n").exists()


# -- pipes ------------------------------------------------------------------------------------------------------------


def test_works_in_a_pipe(place):
    model = place / "model.safetensors"
    ran = run("score", model, "-", input=(place / "all.csv").read_text())
    assert (ran.returncode, ran.stderr) == (0, "")
    rows = list(csv.DictReader(ran.stdout.splitlines()))
    assert len(rows) == len(ALL)
    assert "\x1b" not in ran.stdout + run("inspect", model).stdout


def test_text_in_and_out_is_utf_8_whatever_the_locale(tmp_path):
    out, text = (
        tmp_path / "größe.safetensors",
        BENIGN.rename(columns={"mean radius": "größe"}).to_csv(index=False),
    )
    ascii_only = {"env": os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}, "encoding": "utf-8"}
    assert run("train", "-", *QUICK, "--out", out, input=text, **ascii_only).returncode == 0
    scored = run("score", out, "-", "--top", 30, input=text, **ascii_only)
    assert scored.returncode == 0
    assert "größe" in scored.stdout
    text = text.encode("latin-1")
    ran = processes.run([*COMMAND, "score", out, "-"], input=text, text=False)
    assert (ran.returncode, ran.stdout) == (1, b"")
    assert ran.stderr.startswith(b"fastae: standard input is not a CSV file in UTF-8")


def test_closed_streams_are_handled(place):
    def closed(redirection, *words):
        line = f'"$@" {redirection}'
        words = ["sh", "-c", line, "sh", *COMMAND, *map(str, words)]
        return processes.run(words)

    assert closed(">&-", "inspect", place / "model.safetensors").returncode == 0
    ran = closed("<&-", "score", place / "model.safetensors", "-")
    assert (ran.returncode, ran.stderr) == (1, "fastae: standard input is closed\n")


def test_a_pipe_closed_early_is_no_error(place):
    words = [*COMMAND, "score", str(place / "model.safetensors"), str(place / "all.csv")]
    with process(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        child.stdout.close()
        assert child.stderr.read() == b""
        assert child.wait(timeout=60) == 141


@pytest.mark.skipif(not os.path.isdir("/dev/fd"), reason="pipes have no names")
def test_a_model_that_nobody_would_read_is_not_trained(place):
    read, write = os.pipe()
    os.close(read)
    out = f"/dev/fd/{write}"
    words = [*COMMAND, "train", str(place / "all.csv"), *QUICK, "--out", out]
    try:
        ran = processes.run(words, pass_fds=[write])
    finally:
        os.close(write)
    assert (ran.returncode, ran.stderr) == (141, f"fastae: {out}: nobody reads from this pipe\n")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="has no full device")
@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["doctor"]], ids=str)
def test_a_full_disk_behind_the_output_is_an_error_in_one_line(words):
    with open("/dev/full", "w") as full:
        ran = processes.run([*COMMAND, *words], stdout=full)
    assert (ran.returncode, ran.stderr) == (1, "fastae: [Errno 28] No space left on device\n")


def test_a_model_does_not_go_to_a_file_named_minus(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ran = call("train", "x.csv", "--out", "-")
    assert ran.exit_code == 2
    assert "not to standard output" in ran.output
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(sys.platform == "win32", reason="has no such signals")
def test_an_interrupted_run_reports_it_and_can_resume(tmp_path):
    data, out, kept = (tmp_path / name for name in ("x.npy", "m", "checkpoint"))
    np.save(data, np.random.default_rng(0).normal(size=(4000, 50)))
    words = ["train", data, "--estimators", 1, "--out", out, "--patience", 10**9, "--checkpoint", kept]
    words += ["--schedule", "constant", "--learning-rate", 0.001, "--epochs"]
    with process([*COMMAND, *words, 10**8], stderr=subprocess.PIPE) as child:
        until = time.monotonic() + 60
        while not kept.exists() and time.monotonic() < until:
            time.sleep(0.05)
        child.send_signal(signal.SIGINT)
        _, errors = child.communicate(timeout=30)
        assert child.returncode == 130
    assert errors.endswith(b"fastae: interrupted\n")
    assert not out.exists()
    done = len(fastae.storage.read(kept).about["loop"]["history"]["loss"])
    facts = json.loads(good(*words, done + 1, "--resume", "--json"))
    assert facts["epochs"] == done + 1


# -- errors -----------------------------------------------------------------------------------------------------------


def test_errors_are_one_line_that_names_the_problem(place, tmp_path):
    model, data = place / "model.safetensors", place / "all.csv"
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(model.read_bytes()[:-8])
    text = tmp_path / "text.csv"
    ALL.assign(name="Ann").to_csv(text, index=False)
    lacking = tmp_path / "lacking.csv"
    ALL.drop(columns="mean radius").to_csv(lacking, index=False)
    narrow = tmp_path / "narrow.npy"
    np.save(narrow, ALL.to_numpy()[:, :3])
    empty = tmp_path / "empty.csv"
    ALL[:0].to_csv(empty, index=False)
    plain = tmp_path / "plain.safetensors"
    good("train", data, *QUICK, "--no-detector", "--out", plain)
    for words, message in (
        (("train", "no.csv", "--out", tmp_path / "m"), "no.csv: No such file or directory"),
        (("train", text, "--out", tmp_path / "m"), f"{text}: not numeric: column 'name' ('Ann')"),
        (
            ("train", data, "--out", tmp_path / "no" / "m"),
            f"{tmp_path / 'no' / 'm'}: {tmp_path / 'no'} is not a directory",
        ),
        (("train", data, "--drop", "age", "--out", tmp_path / "m"), f"{data} has no column 'age' to drop"),
        (("train", data, "--resume", "--out", tmp_path / "m"), "resume=True needs checkpoint"),
        (("inspect", data), f"{data} is not a complete safetensors file"),
        (("inspect", cut), f"{cut} is not a complete safetensors file"),
        (("inspect", "no.safetensors"), "no.safetensors: No such file or directory"),
        (("encode", model, lacking, "--out", tmp_path / "z.npy"), "missing column 'mean radius'"),
        (("score", model, text, "--drop", "mean radius", "--drop", "name"), "missing column 'mean radius'"),
        (("score", model, narrow), f"{narrow} has 3 features, but the model was fitted with 30"),
        (("score", plain, data), "has no threshold: train the model without --no-detector"),
        (
            ("score", model, data, "--out", tmp_path / "s.txt"),
            "the suffix must be .csv or .parquet or .pq, got '.txt'",
        ),
        (
            ("encode", model, data, "--out", tmp_path / "z.txt"),
            "must be .npy or .csv or .parquet or .pq, got '.txt'",
        ),
        (
            ("encode", model, data, "--out", "-"),
            "-: the suffix must be .npy or .csv or .parquet or .pq, got ''",
        ),
        (("encode", model, empty, "--out", tmp_path / "z.npy"), f"{empty} has no rows"),
        (("score", model, empty), f"{empty} has no rows"),
        (("train", empty, "--out", tmp_path / "m"), f"{empty} has no rows"),
        (("train", data, "--hidden", 10**9, "--out", tmp_path / "m"), "GiB for its parameters"),
    ):
        ran = call(*words)
        assert ran.exit_code == 1, (words, ran.output)
        assert ran.stderr.startswith("fastae: ")
        assert ran.stderr.count("\n") == 1
        assert message in ran.stderr
        assert ran.stdout == ""
    assert not list(tmp_path.glob("z.*"))
    assert not list(tmp_path.glob("m*"))


def test_wrong_arguments_end_in_2(place, tmp_path):
    for words in (
        ("train", place / "all.csv"),
        ("train", place / "all.csv", "--out", tmp_path / "m", "--hidden", "4,x"),
        ("train", place / "all.csv", "--out", tmp_path / "m", "--hidden", 2**62),
        ("train", place / "all.csv", "--out", tmp_path / "m", "--seed", 2**70),
        ("train", place / "all.csv", "--out", tmp_path / "m", "--epochs", 0),
        ("train", place / "all.csv", "--out", tmp_path / "m", "--activation", "step"),
        ("train", place / "all.csv", "--out", tmp_path / "m", "--checkpoint", tmp_path / "m"),
        ("nonsense",),
    ):
        assert call(*words).exit_code == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("words", [("--debug", "inspect", "no"), ("inspect", "no", "--debug")])
def test_debug_shows_the_traceback(words):
    ran = run(*words)
    assert ran.returncode == 1
    assert "Traceback" in ran.stderr
    assert "FileNotFoundError" in ran.stderr


def test_a_failed_write_leaves_the_old_file(place, tmp_path):
    out = tmp_path / "z.npy"
    out.write_bytes(b"old")
    with_holes = tmp_path / "x.npy"
    np.save(with_holes, np.where(np.arange(30) == 3, np.nan, ALL.to_numpy()))
    assert call("encode", place / "model.safetensors", with_holes, "--out", out).exit_code == 1
    assert out.read_bytes() == b"old"
    assert sorted(os.listdir(tmp_path)) == ["x.npy", "z.npy"]


@pytest.mark.parametrize("link", [None, os.symlink, os.link], ids=["itself", "symbolic link", "hard link"])
def test_an_output_that_is_an_input_is_refused(link, place, tmp_path):
    names = ("a.csv", "b.csv", "x.npy", "m.npy")
    a, b, x, model = (tmp_path / name for name in names)
    BENIGN.to_csv(a, index=False)
    b.write_bytes(a.read_bytes())
    np.save(x, ALL.to_numpy())
    model.write_bytes((place / "model.safetensors").read_bytes())
    content = {name: (tmp_path / name).read_bytes() for name in names}

    def same(path):
        other = tmp_path / f"other-{path.name}"
        if link is None:
            return path
        if not other.exists():
            link(path, other)
        return other

    new = tmp_path / "new"
    for words, option in (
        (("train", a, b, "--out", same(b)), "--out"),
        (("train", tmp_path / "[ab].csv", "--out", same(b)), "--out"),
        (("train", a, "--out", new, "--checkpoint", same(a)), "--checkpoint"),
        (("train", a, "--out", new, "--plot", same(a)), "--plot"),
        (("train", a, "--out", new, "--plot", new), "--plot"),
        (("score", model, a, "--out", same(a)), "--out"),
        (("score", model, a, "--out", new.with_suffix(".csv"), "--plot", same(a)), "--plot"),
        (("score", model, a, "--plot", same(model)), "--plot"),
        (("encode", model, x, "--out", same(x)), "--out"),
        (("encode", model, x, "--out", same(model)), "--out"),
        (("reconstruct", model, x, "--out", same(x)), "--out"),
    ):
        ran = call(*words)
        assert ran.exit_code == 2, (words, ran.output)
        assert option in ran.stderr
        assert {name: (tmp_path / name).read_bytes() for name in names} == content
    assert not list(tmp_path.glob("new*"))
    with open(a, "rb") as file:
        ran = processes.run([*COMMAND, "score", str(model), "-", "--out", str(same(a))], stdin=file)
    assert (ran.returncode, a.read_bytes()) == (2, content["a.csv"])


# -- the others -------------------------------------------------------------------------------------------------------


def test_check_gradients_accepts_correct_gradients_and_finds_a_wrong_one(monkeypatch):
    errors = json.loads(good("check-gradients", "--json"))
    assert errors["good"]
    assert max(errors["float64"].values()) < 1e-8 < max(errors["float32"].values()) < 1e-4
    assert "W3" in good("check-gradients", "--activation", "tanh", "--features", 5, "--hidden", 2)
    right = fastae.Engine.loss_and_gradient

    def wrong(self, params, X, **options):
        loss, gradient = right(self, params, X, **options)
        gradient["b1"] = gradient["b1"] / 40
        return loss, gradient

    monkeypatch.setattr(fastae.Engine, "loss_and_gradient", wrong)
    assert call("check-gradients").exit_code == 1


def test_doctor_describes_this_machine():
    from fastae.kernels.target import TARGET

    facts = json.loads(good("doctor", "--json"))
    assert facts["versions"]["fastae"] == fastae.__version__
    assert facts["versions"]["numpy"] == np.__version__
    assert f"{TARGET.register_tiles[1]}x1" in facts["cpu"]["register_tiles"]
    assert facts["threads"]["used_by_default"] >= 1
    assert facts["kernels"]["come_from"] in ("the package", "the compiler")
    assert "compiled" in facts["cache"]["state"]
    assert "register tiles" in good("doctor")


def test_doctor_recognises_an_empty_cache(tmp_path):
    ran = run("doctor", "--json", env={**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)})
    facts = json.loads(ran.stdout)
    assert facts["cache"]["place"].startswith(str(tmp_path))
    assert facts["cache"]["state"].startswith("empty")
    assert facts["environment"]["NUMBA_CACHE_DIR"] == str(tmp_path)


def test_shells_complete_commands():
    environment = {
        **os.environ,
        "_FASTAE_COMPLETE": "complete_bash",
        "COMP_WORDS": "fastae sc",
        "COMP_CWORD": "1",
    }
    script = "import sys; sys.argv[0] = 'fastae'; from fastae.cli import main; main()"
    ran = processes.run([sys.executable, "-c", script], env=environment)
    assert ran.stdout.split() == ["score"]


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
        "--out",
        figures,
        "--markdown",
        readme,
    )
    assert ran.exit_code == 0, ran.output
    for words in ("12, 5, 300", "20, 3, 100", "sklearn", "FMA", "speedup", "Peak rates", "openblas"):
        assert words in ran.output
    assert picture.read_bytes().startswith(b"\x89PNG")
    written = report.Report.from_json(figures.read_text())
    assert written.peers == ["numpy", "sklearn"]
    assert all(timing.rounds >= 15 for c in written.comparisons for timing in c.timings.values())
    text = readme.read_text()
    assert text.startswith("head\n")
    assert text.endswith("tail\n")
    assert text.count("| 12, 5, 300 |") == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--peers", "caffe"), "unknown peer caffe"),
        (("--size", "12,5"), "not of the form n,k,m"),
        (("--size", "12,0,5"), "at least 1"),
        (("--out", "nowhere/x.json"), "not a directory"),
        (("--markdown", "nowhere.md"), "nowhere.md"),
        (("--markdown", "."), ". is a directory"),
        (("--plot", "x.png", "--out", "x.png"), "x.png is also the file of --plot"),
        (("--small", "--many"), "cannot be combined with --small"),
        (("--deep", "--quality"), "cannot be combined with --deep"),
        (("--quality", "--threads", "1"), "cannot be combined with --quality"),
        (("--epochs", "--dtype", "bfloat16"), "--epochs is timed in float32 or float64"),
        (("--many", "--peers", "torch"), "known are torch.func.vmap, jax.vmap"),
        (("--detection", "nowhere"), "nowhere is not a directory"),
        (("--detection", "."), "Invalid value for --detection: . holds no .npz files"),
        (("--detection", ".", "--peers", "torch"), "--peers: cannot be combined with --detection"),
        (("--detection", ".", "--json"), "--json: cannot be combined with --detection"),
    ],
)
def test_bench_reports_errors_before_it_measures(arguments, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ran = call("bench", *arguments)
    assert ran.exit_code == 2
    assert words in ran.output
    assert "timing" not in ran.output


def test_bench_hands_its_options_to_the_measurement_of_detectors(tmp_path, monkeypatch):
    from fastae.bench import detection

    (tmp_path / "a.npz").touch()
    seen = []
    monkeypatch.setattr(detection, "main", seen.append)
    ran = call("bench", "--detection", tmp_path, "--seeds", 3, "--out", tmp_path / "x.json")
    assert ran.exit_code == 0, ran.output
    assert seen == [["--data", str(tmp_path), "--seeds", "3", "--out", str(tmp_path / "x.json")]]


def test_bench_is_limited_to_some_cpus_and_to_a_dtype(monkeypatch):
    from fastae.bench import rounds

    for name in ("REST", "WARM", "TURN"):
        monkeypatch.setattr(rounds, name, 0)
    ran = call(
        "bench", "--size", "12,5,300", "--peers", "numpy", "--threads", 1, "--dtype", "float64", "--json"
    )
    (case,) = json.loads(ran.stdout)["cases"]
    assert case["dtype"] == "float64"
    threads = {name: setting.partition(",")[0] for name, setting in case["settings"].items()}
    assert threads == {"fastae": "1", "numpy": "1"}
    ran = call("bench", "--size", "12,5,300", "--peers", "numpy", "--threads", 1000)
    assert ran.exit_code == 2
    assert "1000 is not within 1 .. " in ran.output


def test_nothing_is_compiled_after_warmup():
    code = """
        from fastae.cli import app
        app(["warmup"], standalone_mode=False)

        from fastae.engine.warmup import dtypes, warm_up
        for dtype in dtypes():
            warm_up(dtype)  # loads into this process what the command left for it
        from numba.core import event
        late = event.RecordingListener()
        event.register("numba:compiler_lock", late)  # held to compile, and to load

        import numpy as np, fastae
        for dtype in ("float32", "float64"):
            X = np.random.default_rng(0).random((50, 6)).astype(dtype)
            for options in ({"noise": "mask"}, {"sparsity_weight": 0.1}, {"missing": "mask"}, {"solver": "lbfgs"}):
                model = fastae.AutoencoderDetector((2,), max_iter=2, **options).fit(X)
                model.predict(X), model.reconstruct(X), model.transform(X), model.explain(X[:3])
            engine = fastae.Engine(model.network_, 2, dtype)
            fastae.check_gradients(model.params_, X, engine=engine)
            engine.loss_and_gradient(model.params_, np.tile(X, (100, 1)))  # with rows in the lanes
            fastae.kernels.sigmoid_with_derivative(X, X.copy(), X.copy()), fastae.kernels.exp(X, X.copy())
        if "bfloat16" in dtypes():
            engine = fastae.Engine(model.network_, 2, "bfloat16")
            params = fastae.Parameters.random(model.network_)
            engine.loss_and_gradient(params, X), engine.reconstruct(params, X)
        print("late:", len(late.buffer))
    """
    done = processes.run([sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)])
    assert done.returncode == 0, done.stderr
    assert re.findall(r"(\w+): ready in", done.stdout) == dtypes()
    assert done.stdout.endswith("late: 0\n")


def test_version():
    assert call("--version").output.split() == ["fastae", fastae.__version__]


def test_train_minimises_the_loss_asked_for(tmp_path):
    data = (np.random.default_rng(0).random((80, 6)) < 0.3).astype("f4")
    np.save(tmp_path / "data.npy", data)
    words = (
        "train",
        tmp_path / "data.npy",
        "--hidden",
        2,
        "--epochs",
        5,
        "--no-detector",
        "--out",
        tmp_path / "model",
    )
    facts = json.loads(good(*words, "--loss", "bernoulli", "--scale", "none", "--json"))
    model = fastae.Autoencoder.load(tmp_path / "model")
    same = fastae.Autoencoder(
        2, loss="bernoulli", scale=None, max_iter=5, random_state=0, dtype="float32"
    ).fit(data)
    assert np.array_equal(model.params_.flat, same.params_.flat)
    assert facts["loss"] == same.loss_
    good(*words, "--loss", "huber", "--huber-delta", 0.5)
    assert fastae.Autoencoder.load(tmp_path / "model").huber_delta == 0.5
    assert "--huber-delta: goes with --loss huber only" in call(*words, "--huber-delta", 0.5).output
    ran = call(*words, "--loss", "bernoulli")
    assert ran.exit_code == 1 or ran.exit_code == 2
    assert "scale must be 'minmax'" in ran.output
