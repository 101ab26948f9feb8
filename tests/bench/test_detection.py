"""The detection table: the protocols, the figures, and that better detectors rank better."""

import json

import numpy as np
import pytest

from fastae.bench import baseline, detection
from fastae.bench.detection import METHODS, Method, Result, markdown, measure, split, summary

RNG = np.random.default_rng(0)
X = np.concatenate([RNG.normal(size=(90, 5)), 4 + RNG.normal(size=(10, 5))])
Y = np.repeat([0, 1], [90, 10])


@pytest.fixture
def folder(tmp_path):
    for name in ("one", "two"):
        np.savez(tmp_path / f"{name}.npz", X=X.astype("f4"), y=Y.astype("u1"))
    return tmp_path


@pytest.fixture
def known(monkeypatch):
    """Two detectors: one that sees the anomalies, and one that sees nothing."""
    monkeypatch.setitem(METHODS, "good", Method("numpy", lambda rows, seed: lambda X: np.abs(X).sum(axis=1)))
    monkeypatch.setitem(METHODS, "bad", Method("numpy", lambda rows, seed: lambda X: np.full(len(X), np.nan)))


def test_rows_are_split_as_the_protocols_say():
    train, test, labels = split(X, Y, "normal", 3)
    assert (train.shape, test.shape, labels.sum()) == ((45, 5), (55, 5), 10)
    np.testing.assert_allclose(train.mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(train.std(axis=0), 1)
    assert np.abs(test[labels == 1].mean(axis=0)).min() > 3
    assert not np.array_equal(train, split(X, Y, "normal", 4)[0])
    train, test, labels = split(X, Y, "unlabelled", 0)
    assert train is test
    assert labels is Y


def test_figures_are_means_over_seeds_and_sets(known):
    good, bad = (measure(name, X, Y, "normal", range(2)) for name in ("good", "bad"))
    assert good.auroc > 0.99
    assert good.average_precision > 0.9
    assert bad.auroc == 0.5
    means = summary(
        {"a": {"good": good, "bad": bad}, "b": {"good": Result(0.4, 0, 1), "bad": Result(0.6, 0, 2)}}
    )
    assert means["good"]["rank"] == means["bad"]["rank"] == 1.5
    assert means["good"]["AUROC"] == pytest.approx((good.auroc + 0.4) / 2)
    assert means["bad"]["seconds"] == pytest.approx(2 + bad.seconds)
    assert "**" in markdown({"normal": {"a": {"good": good, "bad": bad}}})


@pytest.mark.parametrize("name", METHODS)
def test_every_detector_sees_anomalies_that_are_far(name):
    pytest.importorskip(METHODS[name].package)
    if name in ("PyOD AutoEncoder", "PyOD DeepSVDD"):
        pytest.importorskip("torch")
    result = measure(name, X, Y, "normal", [0])
    assert result.auroc > 0.8
    assert result.seconds > 0


def test_a_row_is_not_its_own_neighbour():
    rows = RNG.normal(size=(50, 3))
    score = detection.METHODS["5 nearest"].fit(rows, 0)
    distances = np.sort(np.linalg.norm(rows[:, None] - rows, axis=2), axis=1)
    np.testing.assert_allclose(score(rows), distances[:, 5])
    np.testing.assert_allclose(score(rows.copy()), distances[:, 4])


def test_the_command_prints_tables_and_writes_json(folder, known, capsys):
    out = folder / "out.json"
    detection.main(["--data", str(folder), "--methods", "good; bad", "--seeds", "2", "--out", str(out)])
    text = capsys.readouterr().out
    assert text.count("| mean rank | 1.00 | 2.00 |") == 2
    content = json.loads(out.read_text())
    assert content["unlabelled"]["two"]["good"]["auroc"] > 0.9
    assert content["seeds"] == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--sets", "three"], "--sets: 'three' is none of one, two"),
        (["--methods", "magic"], "--methods: 'magic' is none of fastae"),
        (["--seeds", "0"], "--seeds must be at least 1"),
        (["--data", "nowhere"], "--data: no directory"),
    ],
)
def test_wrong_arguments_are_named(folder, capsys, words, said):
    with pytest.raises(SystemExit):
        detection.main(["--data", str(folder), *words])
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("module", [detection, baseline])
def test_commands_explain_themselves(module, capsys):
    with pytest.raises(SystemExit) as ended:
        module.main(["--help"])
    assert ended.value.code == 0
    assert f"python -m {module.__name__}" in capsys.readouterr().out
