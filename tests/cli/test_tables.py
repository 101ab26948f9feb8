"""Tables in and out: columns carried along, labels, other columns than the model's, headers that are guessed."""

import gzip
import json
import re

import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_breast_cancer
from sklearn.metrics import average_precision_score, roc_auc_score
from typer.testing import CliRunner

import fastae
from fastae.cli import app

DATA = load_breast_cancer(as_frame=True)
TABLE = DATA.data.assign(
    id=[f"{number:04}" for number in range(569)],
    number=np.arange(569),
    share=np.arange(569) / 8,
    malignant=1 - DATA.target,
)
TABLE = TABLE[["id", *DATA.data.columns[::-1], "number", "share", "malignant"]]
KEEP = ("--keep", "number", "--keep", "id", "--keep", "share")


def call(*arguments, **options):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], **options)


def good(*arguments, **options):
    ran = call(*arguments, **options)
    assert ran.exit_code == 0, ran.output
    return ran


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A directory with a model and one table in three formats: all columns of the model in another order, and more."""
    place = tmp_path_factory.mktemp("tables")
    fastae.AutoencoderDetector(4, n_estimators=1, max_iter=30, random_state=0).fit(
        DATA.data[DATA.target == 1]
    ).save(place / "model")
    TABLE.to_csv(place / "x.csv", index=False)
    TABLE.to_csv(place / "x.csv.gz", index=False)
    TABLE.to_parquet(place / "x.parquet", index=False, row_group_size=200)
    return place


def read(path):
    return pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path, dtype={"id": str})


@pytest.mark.parametrize("written", ["csv", "parquet"])
@pytest.mark.parametrize("suffix", ["csv", "csv.gz", "parquet"])
def test_columns_are_carried_along_to_every_output(suffix, written, place, tmp_path, monkeypatch):
    monkeypatch.setattr("fastae.cli.models.CHUNK_BYTES", 50_000)
    model, data, out = place / "model", place / f"x.{suffix}", tmp_path / f"out.{written}"
    fitted, X = fastae.Autoencoder.load(model), DATA.data
    for command, columns, values in (
        ("encode", [f"code_{i}" for i in range(1, 5)], fitted.transform(X)),
        ("reconstruct", list(X.columns), fitted.reconstruct(X)),
        ("score", ["error", "outlier", "feature_1", "share_1"], None),
    ):
        words = ("--top", 1) if command == "score" else ()
        good(command, model, data, "--out", out, *words, *KEEP)
        table = read(out)
        assert list(table) == ["number", "id", "share", *columns]
        pd.testing.assert_frame_equal(
            table[["number", "id", "share"]], TABLE[["number", "id", "share"]], check_dtype=False
        )
        assert table.number.dtype == np.int64
        assert table.share.dtype == np.float64
        if values is not None:
            np.testing.assert_allclose(table[columns], values, rtol=1e-6)


def test_kept_cells_are_the_same_text_and_have_types_in_json(place, tmp_path):
    cells = ["007", 'a, "b"', "", "1.50", "x\ny", "true"]
    frame = DATA.data[:6].assign(text=cells, n=[1, 2, None, 4, 5, 6], f=["0.50", "1.0", "", "4", "1e3", "2"])
    frame["n"] = frame.n.astype("Int64")
    frame.to_csv(tmp_path / "x.csv", index=False)
    words = ("score", place / "model", tmp_path / "x.csv", "--keep", "text", "--keep", "n", "--keep", "f")
    output = good(*words).stdout
    table = pd.read_csv(pd.io.common.StringIO(output), dtype=str, keep_default_na=False)
    assert table.text.tolist() == cells
    assert table.n.tolist() == ["1", "2", "", "4", "5", "6"]
    assert table.f.tolist() == frame.f.tolist()
    rows = [json.loads(line) for line in good(*words, "--json").stdout.splitlines()]
    assert [row["text"] for row in rows] == cells
    assert [row["n"] for row in rows] == [1, 2, None, 4, 5, 6]
    assert [row["f"] for row in rows] == [0.5, 1, None, 4, 1000, 2]


def test_labels_give_the_quality_of_the_scores(place, tmp_path):
    detector = fastae.AutoencoderDetector.load(place / "model")
    errors, labels = -detector.score_samples(DATA.data), 1 - DATA.target
    expected = [roc_auc_score(labels, errors), average_precision_score(labels, errors)]
    out = tmp_path / "s.csv"
    for data in ("x.csv", "x.parquet"):
        words = ("score", place / "model", place / data, "--label", "malignant")
        facts = json.loads(good(*words, "--out", out, "--json").stdout)
        assert [facts["AUROC"], facts["average_precision"]] == pytest.approx(expected, abs=1e-4)
        assert "malignant" not in pd.read_csv(out)
        found = re.findall(r"AUROC ([0-9.]+), average precision ([0-9.]+)\n", good(*words).stderr)
        assert list(map(float, found[0])) == pytest.approx(expected, abs=1e-4)
    assert "malignant" in pd.read_csv(pd.io.common.StringIO(good(*words, "--keep", "malignant").stdout))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([2, 1, 0], "must be 1 for outliers and 0 for other rows, got 2"),
        (["bad", "good", "bad"], "got bad"),
        ([1, None, 0], "got an empty cell"),
        ([1, 1, 1], "must be 1 for some rows and 0 for others"),
    ],
)
def test_labels_that_are_no_labels_are_refused(labels, message, place, tmp_path):
    DATA.data[:3].assign(y=pd.array(labels)).to_csv(tmp_path / "x.csv", index=False)
    ran = call("score", place / "model", tmp_path / "x.csv", "--label", "y")
    assert (ran.exit_code, ran.stdout) == (1, "")
    assert message in ran.stderr


def test_columns_that_the_model_does_not_use_are_ignored_with_one_line(place, tmp_path):
    plain, model = tmp_path / "x.csv", place / "model"
    DATA.data.to_csv(plain, index=False)
    expected = good("score", model, plain)
    assert expected.stderr == ""
    for data in ("x.csv", "x.csv.gz", "x.parquet"):
        ran = good("score", model, place / data)
        assert ran.stdout == expected.stdout
        assert ran.stderr.splitlines() == [
            f"fastae: {place / data}: ignored what the model does not use: "
            "columns 'id', 'number', 'share', 'malignant'"
        ]
    ran = good("score", model, place / "x.csv", "--keep", "id", "--label", "malignant", "--drop", "number")
    assert ran.stderr.splitlines()[0].endswith("does not use: column 'share'")
    DATA.data.to_csv(plain)  # with an index that has no name
    assert "ignored what the model does not use: column ''" in good("score", model, plain).stderr


def test_what_cannot_be_kept_is_said(place, tmp_path):
    model, data = place / "model", place / "x.csv"
    np.save(tmp_path / "x.npy", DATA.data.to_numpy())
    DATA.data.assign(error=1).to_csv(tmp_path / "e.csv", index=False)
    DATA.data.assign(l=[[1, 2]] * 569).to_parquet(tmp_path / "l.parquet", index=False)
    for words, message in (
        (("score", model, data, "--keep", "no"), "x.csv has no column 'no'\n"),
        (("score", model, data, "--label", "no"), "x.csv has no column 'no'\n"),
        (("score", model, tmp_path / "x.npy", "--keep", "id"), "has no column names, and so no column 'id'"),
        (("score", model, tmp_path / "l.parquet", "--keep", "l"), "column 'l' cannot be kept in CSV: "),
        (("score", model, tmp_path / "e.csv", "--keep", "error"), "the output has one of that name"),
        (("encode", model, data, "--keep", "id", "--out", tmp_path / "z.npy"), "an .npy file has no names"),
    ):
        ran = call(*words)
        assert (ran.exit_code > 0, ran.stdout) == (True, ""), words
        assert message in ran.stderr
    assert not list(tmp_path.glob("z*"))


def test_columns_of_several_files_are_carried_along(place, tmp_path):
    TABLE[:100].to_csv(tmp_path / "a.csv", index=False)
    TABLE[100:].to_parquet(tmp_path / "b.parquet", index=False)
    out = tmp_path / "s.parquet"
    good("score", place / "model", tmp_path / "a.csv", tmp_path / "b.parquet", "--out", out, *KEEP)
    table = pd.read_parquet(out)
    assert table.id.tolist() == TABLE.id.tolist()
    assert table.number.tolist() == TABLE.number.tolist()


# -- headers ----------------------------------------------------------------------------------------------------------


def test_a_guess_is_printed_in_one_line_and_can_be_stated(tmp_path):
    data, out = tmp_path / "x.csv", tmp_path / "m"
    data.write_text("0,1\n" + "5,6\n7,9\n" * 20)
    words = ("train", data, "--out", out, "--hidden", 1, "--epochs", 2)
    said = "the first line, '0,1', was read as data, not as column names (--header or --no-header states it)"
    ran = good(*words, "--json")
    assert ran.stderr.startswith(f"fastae: {data}: {said}\n")
    assert json.loads(ran.stdout)["rows"] == 41
    assert good("score", out, data).stderr == f"fastae: {data}: {said}\n"
    ran = good(*words, "--header", "--json")
    assert (ran.stderr, json.loads(ran.stdout)["rows"]) == ("", 40)
    assert list(fastae.Autoencoder.load(out).feature_names_in_) == ["0", "1"]
    ran = good("score", out, data)  # the model's names are a header
    assert ran.stdout.count("\n") == 41
    assert "was read as column names" in ran.stderr
    assert good("score", out, data, "--no-header").stdout.count("\n") == 42
    assert "first line" not in good(*words, "--no-header", "--json").stderr


def test_compressed_text_is_trained_on(place, tmp_path):
    with gzip.open(tmp_path / "x.tsv.gz", "wt") as file:
        DATA.data.to_csv(file, sep="\t", index=False)
    DATA.data.to_csv(tmp_path / "x.csv", index=False)
    for name in ("x.tsv.gz", "x.csv"):
        good("train", tmp_path / name, "--epochs", 2, "--hidden", 4, "--out", tmp_path / f"{name}.model")
    assert (tmp_path / "x.tsv.gz.model").read_bytes() == (tmp_path / "x.csv.model").read_bytes()


def test_scores_of_the_training_rows_are_out_of_bag(place, tmp_path):
    data, out, scores = place / "x.csv", tmp_path / "model", tmp_path / "scores.csv"
    words = (
        "train",
        data,
        "--drop",
        "id",
        "--epochs",
        30,
        "--estimators",
        5,
        "--contamination",
        0.05,
        "--out",
        out,
    )
    good(*words, "--scores", scores)
    table = pd.read_csv(scores)
    assert list(table) == ["error", "outlier", "p_value"]
    model = fastae.AutoencoderDetector.load(out)
    np.testing.assert_allclose(table.error, -model.oob_scores_, rtol=1e-12)
    assert np.array_equal(table.outlier, model.oob_scores_ < model.offset_)
    assert table.outlier.sum() == 28
    assert np.array_equal(table.p_value < 0.05, table.error > np.quantile(table.error, 0.953))
    # The same rows, by networks that know them
    output = good("score", out, data, "--drop", "id", "--out", tmp_path / "again.csv").output
    again = pd.read_csv(tmp_path / "again.csv")
    assert again.outlier.sum() < 28
    assert ("Was the model trained on these rows?" in output.replace("\n", " ")) == (
        again.p_value.mean() > 0.6
    )
    assert again.p_value.mean() > 0.6
    one = good(*words[:-4], "--estimators", 1, "--out", out, "--scores", tmp_path / "one.parquet")
    assert one.exit_code == 0
    assert list(pd.read_parquet(tmp_path / "one.parquet")) == ["error", "outlier"]
    for wrong, said in (
        (("--scores", data), "same file as the input"),
        (("--scores", out), "is also the file of --out"),
        (("--scores", tmp_path / "x.npy"), "suffix must be"),
        (("--scores", scores, "--no-detector"), "needs a detector"),
    ):
        ran = call("train", data, "--out", out, *wrong)
        assert ran.exit_code != 0
        assert said in " ".join(ran.output.split()).replace("│ ", "")


@pytest.mark.parametrize(
    "words",
    [("inspect", "x.csv"), ("score", "x.csv", "model"), ("encode", "x.parquet", "x.csv", "--out", "c.npy")],
)
def test_data_in_the_place_of_a_model_is_named(words, place, monkeypatch):
    monkeypatch.chdir(place)
    ran = call(*words)
    assert ran.exit_code == 1
    assert "It seems to be data: the model comes first" in " ".join(ran.output.split())
    assert not (place / "c.npy").exists()
