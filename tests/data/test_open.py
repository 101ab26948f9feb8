"""Rows: every kind of file and frame gives the same numbers; files larger than a chunk, the same training."""

import io
import os
import struct
import sys
import textwrap
from functools import partial

import numpy as np
import pandas as pd
import pytest
from processes import run
from sklearn.datasets import load_breast_cancer
from threads import pretend_cpus

import fastae
from fastae import Autoencoder, AutoencoderDetector, open_rows
from fastae.data.npy import NpyRows
from fastae.optimizers import State

DATA = load_breast_cancer()
NAMES = tuple(DATA.feature_names[:6])
X = DATA.data[:, :6]
FRAME = pd.DataFrame(X, columns=NAMES)
BIG = np.random.default_rng(0).normal(size=(5000, 12)).cumsum(axis=0).astype("f4") / 10
CHUNK = 12 * 4 * 700  # bytes: more than seven chunks


def whole(rows):
    return np.concatenate([part.copy() for part in rows]) if len(rows) else np.empty(rows.shape)


def saved(tmp_path, array, name="x.npy"):
    path = tmp_path / name
    np.save(path, array)
    return path


def parquet(path, frame, **options):
    pytest.importorskip("pyarrow")
    frame.to_parquet(path, index=False, **options)
    return path


# -- kinds of source --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind", ["npy", "npz", "csv", "tsv", "parquet", "pandas", "polars", "pyarrow", "array"]
)
def test_every_source_gives_the_same_rows_and_its_names(kind, tmp_path):
    path = tmp_path / f"x.{kind}"
    if kind == "npy":
        np.save(path, X)
    elif kind == "npz":
        np.savez(path, X=X, other=np.arange(3))
    elif kind in ("csv", "tsv"):
        FRAME.to_csv(path, index=False, sep=",\t"[kind == "tsv"])
    elif kind == "parquet":
        parquet(path, FRAME)
    source = path
    if kind == "array":
        source = X
    elif kind in ("pandas", "polars", "pyarrow"):
        source = FRAME
        if kind == "polars":
            source = pytest.importorskip("polars").DataFrame({name: FRAME[name].to_numpy() for name in NAMES})
        if kind == "pyarrow":
            source = pytest.importorskip("pyarrow").Table.from_pandas(FRAME)
    rows = open_rows(source)
    assert rows.shape == X.shape
    assert len(rows) == len(X)
    assert rows.dtype == np.float64
    assert rows.feature_names == (None if kind in ("npy", "npz", "array") else NAMES)
    np.testing.assert_array_equal(whole(rows), X)
    np.testing.assert_array_equal(rows.resident(), X)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["f2", "f4", ">f4", "f8", "u1", ">i2", "i8", "?"])
def test_an_npy_file_in_any_order_and_dtype_is_read_in_pieces(order, dtype, tmp_path):
    array = np.asarray(np.random.default_rng(0).integers(0, 2, (999, 7)).astype(dtype), order=order)
    rows = open_rows(saved(tmp_path, array), chunk_bytes=2000)
    assert len(list(rows)) > 3
    assert rows.dtype == np.dtype(dtype).newbyteorder("=")
    np.testing.assert_array_equal(whole(rows), array)
    assert all(chunk.rows.nbytes <= 2000 for chunk in rows.chunks())


def test_cells_that_are_missing_true_or_false_become_numbers(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text('a,"b ""x""",c\n1,true,\n"2.5",False,NA\n-1e3,TRUE,7\n\n')
    rows = open_rows(path)
    assert rows.feature_names == ("a", 'b "x"', "c")
    expected = [[1, 1, np.nan], [2.5, 0, np.nan], [-1000, 1, 7]]
    np.testing.assert_array_equal(rows.resident(), expected)
    frame = pd.DataFrame(
        {"a": [1, 2.5, -1000], "b": [True, False, True], "c": pd.array([None, None, 7], "Int64")}
    )
    np.testing.assert_array_equal(open_rows(frame).resident(), expected)
    polars = pytest.importorskip("polars")
    table = polars.DataFrame({"a": [1.0, 2.5, -1000.0], "b": [True, False, True], "c": [None, None, 7]})
    np.testing.assert_array_equal(open_rows(table).resident(), expected)
    np.testing.assert_array_equal(open_rows(parquet(tmp_path / "x.parquet", frame)).resident(), expected)


def test_csv_without_a_header_with_semicolons_or_a_byte_order_mark(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("1,2\n3,4\n")
    rows = open_rows(path)
    assert (rows.feature_names, rows.resident().tolist()) == (None, [[1, 2], [3, 4]])
    assert open_rows(path, feature_names=["a", "b"]).feature_names == ("a", "b")
    path.write_bytes("\ufeffa;b\r\n1;2\r\n".encode())
    rows = open_rows(path)
    assert (rows.feature_names, rows.resident().tolist()) == (("a", "b"), [[1, 2]])
    path.write_text("1,\n3,4\n")
    np.testing.assert_array_equal(open_rows(path).resident(), [[1, np.nan], [3, 4]])
    path.write_text("a,b\n")
    assert open_rows(path).shape == (0, 2)


def test_csv_headers_that_are_numbers_or_span_lines(tmp_path):
    path = tmp_path / "x.csv"
    for text, names, rows in (
        ("0,1,2\n5,6,7\n", ("0", "1", "2"), [[5, 6, 7]]),
        ("0,1,3\n5,6,7\n", None, [[0, 1, 3], [5, 6, 7]]),
        ("0,1\n5,6\n", None, [[0, 1], [5, 6]]),
        ("\n  \na,b\n\n1,2\n", ("a", "b"), [[1, 2]]),
        ("\n  \na,b\n\ntrue,2\n \n", ("a", "b"), [[1, 2]]),
        ('"a\nb",c\n1,2\n', ("a\nb", "c"), [[1, 2]]),
        ('"a, b",c\n"1",2\n', ("a, b", "c"), [[1, 2]]),
    ):
        path.write_text(text)
        opened = open_rows(path)
        assert (opened.feature_names, opened.resident().tolist()) == (names, rows)


@pytest.mark.parametrize("names", [NAMES, range(6)])
def test_an_index_without_a_name_is_refused_until_it_is_dropped(names, tmp_path):
    path = tmp_path / "x.csv"
    FRAME.set_axis(list(names), axis=1).to_csv(path)
    with pytest.raises(
        ValueError, match=r"x\.csv: column 1 has no name, like an index: drop '' to leave it out"
    ):
        open_rows(path)
    rows = open_rows(path, drop=[""])
    assert rows.feature_names == tuple(map(str, names))
    np.testing.assert_array_equal(rows.resident(), X)


def test_a_name_that_stands_twice_can_be_dropped(tmp_path):
    (tmp_path / "x.csv").write_text("a,b,a\n1,2,3\n")
    assert open_rows(tmp_path / "x.csv", drop=["a"]).resident().tolist() == [[2]]


def test_csv_on_standard_input(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("a,b\n1,2\n"))
    rows = open_rows("-")
    assert (rows.feature_names, rows.resident().tolist()) == (("a", "b"), [[1, 2]])


def test_parquet_files_one_after_another(tmp_path):
    parquet(tmp_path / "part-1.parquet", FRAME[:200], row_group_size=60)
    parquet(tmp_path / "part-2.parquet", FRAME[200:][list(reversed(NAMES))])
    rows = open_rows(tmp_path / "part-*.parquet", chunk_bytes=100 * 48)
    assert rows.feature_names == NAMES
    np.testing.assert_array_equal(whole(rows), X)
    narrow = open_rows(parquet(tmp_path / "narrow.parquet", FRAME.astype("f4")))
    assert narrow.dtype == np.float32
    np.testing.assert_array_equal(narrow.resident(), X.astype("f4"))


def test_files_of_any_kind_one_after_another(tmp_path):
    FRAME[:100].to_csv(tmp_path / "a.csv", index=False)
    FRAME[100:200][list(reversed(NAMES))].to_csv(tmp_path / "b.csv", index=False)
    parquet(tmp_path / "c.parquet", FRAME[200:].astype("f4"), row_group_size=60)
    rows = open_rows([tmp_path / "[ab].csv", str(tmp_path / "c.parquet")], chunk_bytes=48)
    assert (rows.shape, rows.dtype, rows.feature_names) == (X.shape, np.float64, NAMES)
    assert rows.name == f"{tmp_path / 'a.csv'} and 2 more"
    np.testing.assert_array_equal(whole(rows), np.vstack((X[:200], X[200:].astype("f4"))))
    counts = np.round(X).astype("i2")
    saved(tmp_path, counts[:100], "a.npy")
    saved(tmp_path, np.asfortranarray(X[100:]), "b.npy")
    rows = open_rows(tmp_path / "*.npy", feature_names=NAMES, chunk_bytes=3000)
    assert rows.feature_names == NAMES
    np.testing.assert_array_equal(whole(rows), np.vstack((counts[:100], X[100:])))


def test_files_that_do_not_go_together_are_named(tmp_path):
    FRAME.to_csv(tmp_path / "a.csv", index=False)
    saved(tmp_path, X, "b.npy")
    saved(tmp_path, X[:, :3], "c.npy")
    a, b, c = (tmp_path / name for name in ("a.csv", "b.npy", "c.npy"))
    for files in ([a, b], [b, a]):
        with pytest.raises(ValueError, match=r"a\.csv has column names, but .*b\.npy has none"):
            open_rows(files)
    with pytest.raises(ValueError, match=r"c\.npy has 3 columns, but .*b\.npy has 6"):
        open_rows([b, c])
    with pytest.raises(FileNotFoundError, match=r"no\.npy"):
        open_rows([b, tmp_path / "no.npy"])


def test_the_index_of_a_frame_is_no_column_of_its_parquet_file(tmp_path):
    shuffled = FRAME.sample(frac=1, random_state=0)
    for frame in (shuffled, shuffled.rename_axis("id")):
        path = tmp_path / "x.parquet"
        frame.to_parquet(path)
        assert open_rows(path).feature_names == NAMES
        np.testing.assert_array_equal(open_rows(path, drop=NAMES[:1]).resident(), frame.to_numpy()[:, 1:])
        table = pytest.importorskip("pyarrow").Table.from_pandas(frame)
        assert len(table.column_names) == 1 + len(NAMES)
        assert open_rows(table).feature_names == NAMES


def test_a_frame_without_names_has_numbered_columns():
    for frame in (pd.DataFrame(X), pd.DataFrame(X, columns=[("a", i) for i in range(6)])):
        rows = open_rows(frame)
        assert rows.feature_names is None
        np.testing.assert_array_equal(rows.resident(), X)
    assert open_rows(pd.DataFrame(X).rename(columns={0: "a"})).feature_names == ("a", *"12345")


def test_nullable_columns_have_nan_for_missing_cells():
    pl, pa = pytest.importorskip("polars"), pytest.importorskip("pyarrow")
    cells = {"a": [1, None], "b": [True, None]}
    frame = pd.DataFrame({"a": pd.array([1, None], "Int64"), "b": pd.array([True, None], "boolean")})
    for source in (
        frame,
        frame.convert_dtypes(dtype_backend="pyarrow"),
        pl.DataFrame(cells),
        pa.table(cells),
    ):
        np.testing.assert_array_equal(open_rows(source).resident(), [[1, 1], [np.nan, np.nan]])


def test_what_is_no_matrix_of_numbers_is_refused():
    lazy = pytest.importorskip("polars").LazyFrame({"a": [1.0]})
    for source, error, message in (
        (lazy, TypeError, "X must be a frame in memory, got a LazyFrame"),
        (np.ma.array(X, mask=X > 1), TypeError, "X is a masked array"),
        (pd.DataFrame([[1, 2]], columns=["a", "a"]), ValueError, "X has more than one column 'a'"),
        (pd.DataFrame({"a": pd.Categorical(["x"])}), TypeError, "X: not numeric: column 'a'"),
        (pd.DataFrame({0: pd.arrays.SparseArray([1, 0])}), TypeError, r"column 0 \(Sparse\[int64, 0\]\)"),
    ):
        with pytest.raises(error, match=message):
            open_rows(source)


def test_large_integers_of_a_parquet_file_are_rounded(tmp_path):
    frame = pd.DataFrame({"id": np.array([2**63 - 1, 2**53 + 1]), "u": np.array([2**64 - 1, 1], "u8")})
    rows = open_rows(parquet(tmp_path / "x.parquet", frame))
    np.testing.assert_array_equal(rows.resident(), frame.to_numpy(np.float64))


def test_columns_can_be_left_out(tmp_path):
    frame = FRAME.assign(name="Ann")[["name", *NAMES]]
    csv = tmp_path / "x.csv"
    frame.to_csv(csv, index=False)
    for source in (frame, csv, parquet(tmp_path / "x.parquet", frame)):
        assert open_rows(source, drop="name").feature_names == NAMES
        rows = open_rows(source, drop=["name", NAMES[2]])
        assert rows.feature_names == NAMES[:2] + NAMES[3:]
        np.testing.assert_array_equal(rows.resident(), np.delete(X, 2, axis=1))
        with pytest.raises(ValueError, match="has no column 'nowhere' to drop"):
            open_rows(source, drop=["nowhere"])
    with pytest.raises(ValueError, match="has no column names: 'a' cannot be dropped"):
        open_rows(X, drop=["a"])


def test_columns_that_are_not_numeric_are_refused_by_name(tmp_path):
    frame = FRAME[:3].assign(name=["Ann", "Bob", "Eve"], day=pd.Timestamp("2026-01-01"))
    csv = tmp_path / "x.csv"
    frame.to_csv(csv, index=False)
    polars = pytest.importorskip("polars").DataFrame({"x": [1.0], "name": ["Ann"], "day": ["2026"]})
    for source in (frame, csv, parquet(tmp_path / "x.parquet", frame), polars):
        with pytest.raises(TypeError, match=r"not numeric: columns 'name' \(.*\), 'day' \("):
            open_rows(source)
    for source in (frame, polars):
        with pytest.raises(TypeError, match="X: not numeric: columns 'name'"):
            Autoencoder((2,)).fit(source)
    with pytest.raises(TypeError, match="X_val: not numeric: columns 'name'"):
        Autoencoder((2,), max_iter=1).fit(FRAME, X_val=frame)


def test_errors_name_the_file_and_what_is_wrong(tmp_path):
    def broken(name, content):
        path = tmp_path / name
        path.write_bytes(content)
        return path

    good = saved(tmp_path, X).read_bytes()
    np.savez(tmp_path / "good.npz", X)
    shifted = bytearray((tmp_path / "good.npz").read_bytes())
    shifted[-6] ^= 0xFF  # where the directory of the archive begins: its members then begin before the file
    for path, error, message in (
        (tmp_path / "no.npy", FileNotFoundError, "no.npy"),
        (tmp_path / "no.csv", FileNotFoundError, "no.csv"),
        (tmp_path / "no-*.parquet", FileNotFoundError, r"no such file: .*no-\*.parquet"),
        (tmp_path / "x.txt", ValueError, r"the suffix must be .npy, .*\.tsv\.gz or .parquet, got '.txt'"),
        (broken("cut.npy", good[:-1]), ValueError, "cut.npy ends early"),
        (broken("bad.npy", b"abc"), ValueError, "bad.npy is not a readable .npy file"),
        (broken("bad.npz", b"abc"), ValueError, "bad.npz is not a readable .npz file"),
        (
            broken("shifted.npz", shifted),
            ValueError,
            "shifted.npz is not a readable .npz file: .*Invalid argument",
        ),
        (broken("bad.parquet", b"abc"), ValueError, "bad.parquet is not a readable Parquet file"),
        (parquet(tmp_path / "none.parquet", FRAME[[]]), ValueError, "none.parquet has no columns"),
        (broken("empty.csv", b"\n"), ValueError, "empty.csv is empty"),
        (broken("open.csv", b'"a\n\n'), ValueError, "open.csv has no first row: .* its quote is not closed"),
        (broken("blank.csv", "\u00a0\n".encode()), ValueError, "blank.csv has no first row: it is blank"),
        (broken("utf.csv", b"a,\xff\n1,2\n"), ValueError, "utf.csv is not a CSV file in UTF-8"),
        (broken("ragged.csv", b"a,b\n1,2\n1,2,3\n"), ValueError, "line 3 has 3 cells, the first line 2"),
        (broken("long.csv", b'a,b\n1,"' + b"x" * 140_000), ValueError, "long.csv: line 2: field larger than"),
        (broken("head.csv", b'a,"' + b"x" * 140_000), ValueError, "head.csv: line 1: field larger than"),
        (broken("narrow.csv", b"a,b\n1\n1\n"), ValueError, "line 2 has 1 cells, the first line 2"),
        (broken("twice.csv", b"a,a\n1,2\n"), ValueError, "more than one column 'a'"),
        (
            saved(tmp_path, X[0], "flat.npy"),
            ValueError,
            r"flat.npy must be two-dimensional .*, got shape \(6,\)",
        ),
        (saved(tmp_path, np.array([["a"]]), "text.npy"), TypeError, "text.npy has dtype <U1"),
        (saved(tmp_path, np.empty((3, 0)), "none.npy"), ValueError, "none.npy has no columns"),
    ):
        with pytest.raises(error, match=message):
            open_rows(path)
    np.savez(tmp_path / "two.npz", a=X, b=X)
    with pytest.raises(ValueError, match="must hold a single array, or one named X, but it holds a, b"):
        open_rows(tmp_path / "two.npz")
    with pytest.raises(ValueError, match="feature_names has 2 names, but X has 6 columns"):
        open_rows(X, feature_names=["a", "b"])
    with pytest.raises(ValueError, match="feature_names cannot be given"):
        open_rows(FRAME, feature_names=NAMES)
    with pytest.raises(TypeError, match=r"chunk_bytes must be an integer, got 1000000000.0"):
        open_rows(X, chunk_bytes=1e9)
    with pytest.raises(ValueError, match="chunk_bytes must be at least 1, got 0"):
        open_rows(X, chunk_bytes=0)
    parquet(tmp_path / "part-1.parquet", FRAME)
    parquet(tmp_path / "part-2.parquet", FRAME.rename(columns={NAMES[0]: "other"}))
    with pytest.raises(ValueError, match=rf"part-2.* missing column '{NAMES[0]}'; unexpected column 'other'"):
        open_rows(tmp_path / "part-*.parquet")
    rows = open_rows(good_path := saved(tmp_path, BIG), chunk_bytes=CHUNK)
    os.truncate(good_path, 1000)
    with pytest.raises(ValueError, match="ends early: it was changed"):
        list(rows)


def test_the_former_name_of_chunk_bytes_still_works(tmp_path):
    path = saved(tmp_path, BIG)
    with pytest.warns(DeprecationWarning, match="block_bytes is now called chunk_bytes"):
        rows = open_rows(path, block_bytes=CHUNK)
    assert rows.chunk_bytes == CHUNK


def npy(header, version=(1, 0), content=bytes(60)):
    text = header.encode("latin1")
    return (
        b"\x93NUMPY"
        + bytes(version)
        + struct.pack("<H" if version[0] == 1 else "<I", len(text))
        + text
        + content
    )


GOOD = "{'descr': '<f4', 'fortran_order': False, 'shape': (3, 5), }\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (npy(GOOD.replace("(3", "(-3")), r"its shape is \(-3, 5\)"),
        (npy(GOOD.replace("5)", "-5)")), r"its shape is \(3, -5\)"),
        (npy(GOOD.replace("(3", "(True")), r"its shape is \(True, 5\)"),
        (npy(GOOD.replace("(3, 5", f"(0, {2**63}")), "its shape is"),
        (npy(GOOD.replace("5), }", "(")), "EOF in multi-line statement"),
        (npy("(" * 5000), ""),
        (npy("{'descr': '<f4\n"), ""),
        (npy("  {'descr':\n '<f4'\n  x"), ""),
        (npy(GOOD.replace("'descr'", "'d\0scr'")), ""),
        (npy(GOOD, (4, 0)), "version 4.0 of the format is not known"),
        (npy(GOOD)[:40], ""),
        (npy(GOOD)[:7], ""),
        (b"", ""),
    ],
)
def test_a_damaged_npy_file_is_named(content, message, tmp_path):
    (tmp_path / "x.npy").write_bytes(content)
    with pytest.raises(ValueError, match=rf"x\.npy is not a readable \.npy file: .*{message}"):
        open_rows(tmp_path / "x.npy")


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_every_version_of_npy_is_read(version, tmp_path):
    (tmp_path / "x.npy").write_bytes(npy(GOOD, version, np.arange(15, dtype="<f4").tobytes()))
    np.testing.assert_array_equal(np.asarray(open_rows(tmp_path / "x.npy")), np.arange(15).reshape(3, 5))


@pytest.mark.parametrize("seed", range(4))
def test_a_damaged_parquet_file_is_named(seed, tmp_path):
    path, draw = parquet(tmp_path / "x.parquet", FRAME, row_group_size=60), np.random.default_rng(seed)
    whole, messages = path.read_bytes(), []
    for _ in range(60):
        damaged = bytearray(whole)
        if draw.random() < 0.2:
            damaged = damaged[: draw.integers(len(damaged))]
        else:
            first = len(damaged) - 3000 if draw.random() < 0.8 else 0  # the footer, above all
            for place in draw.integers(first, len(damaged), draw.integers(1, 5)):
                damaged[place] = draw.integers(256)
        path.write_bytes(damaged)
        try:
            np.asarray(open_rows(path))
        except (ValueError, TypeError) as error:
            messages.append(str(error))
    assert len(messages) > 20
    assert all(str(path) in message and "\n" not in message for message in messages), messages


def test_a_parquet_file_that_holds_other_rows_than_it_says_is_refused(tmp_path):
    path = parquet(tmp_path / "x.parquet", FRAME, row_group_size=60)
    for size, words in ((61, "fewer"), (59, "more")):
        rows = open_rows(path)
        rows.bounds = np.arange(0, 600, size)
        with pytest.raises(ValueError, match=rf"x\.parquet is not .*: row group 1 has {words} rows than"):
            rows.read_pieces(0, 1)
    whole = path.read_bytes()
    first = (
        len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    )  # of the footer, which has the file's rows early
    count, other = (bytes([n << 1 & 127 | 128, n >> 6]) for n in (len(FRAME), len(FRAME) + 1))
    assert count in whole[first:]
    path.write_bytes(whole[:first] + whole[first:].replace(count, other, 1))
    with pytest.raises(ValueError, match=r"x\.parquet is not .*: its row groups have"):
        open_rows(path)


# -- chunks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("multiple", [1, 64, 700])
def test_shuffled_chunks_hold_each_row_once_in_whole_batches(multiple, tmp_path):
    numbered = np.arange(5000.0).repeat(4).reshape(5000, 4)
    rows = open_rows(saved(tmp_path, numbered), chunk_bytes=32 * 700)

    def drawn(seed):
        chunks = [chunk.rows[chunk.order, 0] for chunk in rows.chunks(np.random.default_rng(seed), multiple)]
        assert all(len(chunk) % multiple == 0 for chunk in chunks[:-1])
        return chunks

    chunks = drawn(0)
    assert len(chunks) > 5
    assert np.array_equal(np.sort(np.concatenate(chunks)), np.arange(5000))
    assert np.ptp(chunks[0]) > 3500  # a chunk holds rows from all over the file
    assert np.abs(np.diff(chunks[0])).min() >= 1
    assert np.mean(np.diff(chunks[0]) == 1) < 0.05
    assert np.array_equal(np.concatenate(chunks), np.concatenate(drawn(0)))
    assert not np.array_equal(np.concatenate(chunks), np.concatenate(drawn(1)))
    in_order = list(np.concatenate([chunk.rows[:, 0].copy() for chunk in rows.chunks(None, multiple)]))
    assert in_order == list(range(5000))


def test_parts_are_the_chunks_with_their_names(tmp_path):
    frame = pd.DataFrame(BIG, columns=list("abcdefghijkl"))
    rows = open_rows(parquet(tmp_path / "x.parquet", frame, row_group_size=300), chunk_bytes=CHUNK)
    parts = [(part.name, part.feature_names, part.resident().copy()) for part in rows.parts()]
    assert len(parts) > 5
    assert {part[:2] for part in parts} == {(str(tmp_path / "x.parquet"), tuple("abcdefghijkl"))}
    np.testing.assert_array_equal(np.concatenate([part[2] for part in parts]), BIG)


def test_rows_are_taken_by_number_and_made_an_array(tmp_path):
    rows = open_rows(saved(tmp_path, BIG), chunk_bytes=CHUNK)
    numbers = np.array([4999, 3, 3, 2500])
    np.testing.assert_array_equal(rows.take(numbers).resident(), BIG[numbers])
    np.testing.assert_array_equal(np.asarray(rows), BIG)
    np.testing.assert_array_equal(np.asarray(open_rows(X)), X)
    assert np.asarray(rows, np.float64).dtype == np.float64


def test_pictures_of_a_stream_are_those_of_the_array(tmp_path):
    plots = pytest.importorskip("fastae.plots")
    rows = open_rows(saved(tmp_path, BIG), chunk_bytes=CHUNK)
    model = AutoencoderDetector(**QUICK, n_estimators=1).fit(BIG)
    axes = pytest.importorskip("matplotlib.figure").Figure().subplots(2)
    for kind, names in (
        (plots.WorstRowsDisplay, ("rows", "shares")),
        (plots.ReconstructionDisplay, ("X", "xhat")),
    ):
        ours, theirs = (
            kind.from_estimator(model, source, ax=ax) for source, ax in zip((rows, BIG), axes, strict=True)
        )
        for name in names:
            np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))


def test_a_split_is_of_all_rows_at_random(tmp_path):
    numbered = np.arange(5000.0).repeat(4).reshape(5000, 4)
    rows = open_rows(saved(tmp_path, numbered), chunk_bytes=32 * 700)
    most, less = rows.split(0.1, seed=3)
    assert most.shape == (5000 - len(less), 4)
    assert 400 < len(less) < 600
    assert np.array_equal(np.sort(np.concatenate([whole(most)[:, 0], whole(less)[:, 0]])), np.arange(5000))
    assert np.array_equal(whole(less), whole(rows.split(0.1, seed=3)[1]))
    assert not np.array_equal(whole(less)[:100], whole(rows.split(0.1, seed=4)[1])[:100])
    with pytest.raises(ValueError, match="too few rows"):
        open_rows(numbered[:1]).split(0.1, seed=0)


# -- training ---------------------------------------------------------------------------------------------------------

NETWORK = fastae.Network.autoencoder(12, 5)


def trained(source, dtype="float64", **options):
    params = fastae.Parameters.random(NETWORK, 1, dtype)
    options = {
        "optimizer": fastae.Adam(learning_rate=0.01),
        "epochs": 4,
        "scale": np.full(12, 0.1),
        **options,
    }
    history = fastae.train(params, source, **options)
    return params, history


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"optimizer": fastae.SGD(learning_rate=0.1, momentum=0.5)},
        {"objective": fastae.Objective(alpha=5.0, noise="gaussian")},
        {"batch_size": 200, "shuffle": False},
        {"batch_size": 3000, "shuffle": False, "objective": fastae.Objective(alpha=5.0)},
        {
            "batch_size": 190,
            "shuffle": False,
            "objective": fastae.Objective(noise="mask", sparsity_weight=0.1),
        },
    ],
)
def test_in_order_the_stream_takes_the_steps_of_the_array(options, order, tmp_path):
    rows = open_rows(saved(tmp_path, np.asarray(BIG, order=order)), chunk_bytes=CHUNK)
    ours, history = trained(rows, **options)
    theirs, expected = trained(BIG, **options)
    np.testing.assert_allclose(history.loss, expected.loss, rtol=1e-11)
    for name in theirs:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=0, atol=1e-9, err_msg=name)
    assert history.state.steps == expected.state.steps
    assert history.rows == expected.rows


@pytest.mark.parametrize("batch_size", [64, 1500])
def test_shuffled_mini_batches_are_seeded_and_train_as_well_as_the_array(batch_size, tmp_path):
    rows = open_rows(saved(tmp_path, BIG), chunk_bytes=CHUNK)
    options = {"batch_size": batch_size, "epochs": 12, "dtype": "float32"}
    first, history = trained(rows, **options)
    again, _ = trained(rows, **options)
    other, _ = trained(rows, seed=1, **options)
    _, expected = trained(BIG, **options)
    assert np.array_equal(first.flat, again.flat)
    assert not np.array_equal(first.flat, other.flat)
    assert history.state.steps == expected.state.steps
    assert history.loss[-1] == pytest.approx(expected.loss[-1], rel=0.1)
    assert history.loss[-1] < 0.5 * history.loss[0]


def test_same_bits_for_any_thread_count(tmp_path, monkeypatch):
    pretend_cpus(monkeypatch, 2)
    rows = open_rows(saved(tmp_path, BIG), chunk_bytes=CHUNK * 4)
    flats = [
        trained(rows, engine=fastae.Engine(NETWORK, threads, "float64"), batch_size=batch)[0].flat
        for batch in (None, 2000)
        for threads in (1, 2)
    ]
    assert np.array_equal(flats[0], flats[1])
    assert np.array_equal(flats[2], flats[3])


def test_parquet_trains_as_the_array_does(tmp_path):
    frame = pd.DataFrame(BIG, columns=[f"f{i}" for i in range(12)])
    rows = open_rows(parquet(tmp_path / "x.parquet", frame, row_group_size=300), chunk_bytes=CHUNK)
    _, history = trained(rows)
    _, expected = trained(BIG)
    np.testing.assert_allclose(history.loss, expected.loss, rtol=1e-11)


def test_a_stream_goes_on_from_a_state_and_stops_where_told(tmp_path):
    rows = open_rows(saved(tmp_path, BIG), chunk_bytes=CHUNK)
    params = fastae.Parameters.random(NETWORK, 1)
    state = State.zeros(params)
    for epochs in (2, 3):
        fastae.train(params, rows, epochs=epochs, batch_size=256, state=state, shuffle=False)
    straight = fastae.Parameters.random(NETWORK, 1)
    fastae.train(straight, rows, epochs=5, batch_size=256, shuffle=False)
    assert np.array_equal(params.flat, straight.flat)
    stopped = fastae.train(straight, rows, batch_size=256, callback=lambda epoch: epoch.number == 2)
    assert (stopped.stop_reason, len(stopped.loss)) == ("callback", 2)


def test_what_a_stream_cannot_do_is_said(tmp_path):
    rows = open_rows(saved(tmp_path, BIG), chunk_bytes=CHUNK)
    for options in ({"index": [0]}, {"sample_weight": np.ones(5000)}):
        with pytest.raises(ValueError, match="index and sample_weight need X in memory"):
            trained(rows, **options)
    with pytest.raises(ValueError, match="sparsity_weight needs the mean code of a batch, which must fit"):
        trained(rows, objective=fastae.Objective(sparsity_weight=1.0))
    with pytest.raises(ValueError, match="X has 12 features, but the network takes 3"):
        fastae.train(fastae.Parameters.random(fastae.Network.autoencoder(3, 2)), rows)


def test_a_stream_resumed_from_a_checkpoint_has_the_same_bits(tmp_path):
    rows = open_rows(saved(tmp_path, BIG), chunk_bytes=CHUNK)
    options = {"batch_size": 128, "checkpoint": tmp_path / "c"}
    straight, _ = trained(rows, epochs=6, batch_size=128)
    trained(rows, epochs=2, **options)
    seen = []
    params, history = trained(
        rows, epochs=6, resume=True, callback=lambda epoch: seen.append(epoch.number), **options
    )
    assert len(history.loss) == 6
    assert seen == [3, 4, 5, 6]
    assert np.array_equal(params.flat, straight.flat)
    with pytest.raises(ValueError, match=r"X.block_bytes was"):
        trained(open_rows(tmp_path / "x.npy", chunk_bytes=2 * CHUNK), resume=True, **options)


@pytest.mark.parametrize("batch_size", [None, 64])
def test_a_stream_with_nan_is_an_error_and_leaves_the_parameters(batch_size, tmp_path):
    holed = BIG.copy()
    holed[4900, 3] = np.nan
    rows = open_rows(saved(tmp_path, holed), chunk_bytes=CHUNK)
    params = fastae.Parameters.random(NETWORK, 1)
    before = params.flat.copy()
    with pytest.raises(fastae.DivergenceError, match="X holds NaN or infinity"):
        fastae.train(params, rows, batch_size=batch_size)
    assert np.array_equal(params.flat, before)


# -- estimators -------------------------------------------------------------------------------------------------------

QUICK = {"hidden_layer_sizes": (4,), "max_iter": 5, "random_state": 0}


def test_a_small_file_is_an_array_to_an_estimator(tmp_path):
    path = tmp_path / "x.csv"
    FRAME.to_csv(path, index=False)
    ours, theirs = Autoencoder(**QUICK).fit(open_rows(path)), Autoencoder(**QUICK).fit(FRAME)
    np.testing.assert_allclose(ours.params_.flat, theirs.params_.flat, rtol=0, atol=1e-13)
    assert list(ours.feature_names_in_) == list(theirs.feature_names_in_) == list(NAMES)
    assert np.array_equal(ours.transform(open_rows(path)), ours.transform(FRAME))
    nameless = Autoencoder(**QUICK).fit(open_rows(X))
    assert not hasattr(nameless.fit(open_rows(FRAME)).fit(open_rows(X)), "feature_names_in_")


@pytest.mark.parametrize("scale", ["standard", "minmax", None])
def test_an_estimator_fits_a_stream_as_it_fits_the_array(scale, tmp_path):
    rows = open_rows(saved(tmp_path, BIG), chunk_bytes=CHUNK)
    options = {**QUICK, "batch_size": 5000, "scale": scale, "dtype": "float64"}
    ours, theirs = Autoencoder(**options).fit(rows), Autoencoder(**options).fit(BIG)
    if scale:
        np.testing.assert_allclose(ours.shift_, theirs.shift_, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(ours.scale_, theirs.scale_, rtol=1e-12)
    np.testing.assert_allclose(ours.loss_curve_, theirs.loss_curve_, rtol=1e-10)
    for method in ("transform", "reconstruct", "reconstruction_error"):
        ours_made, theirs_made = getattr(theirs, method)(rows), getattr(theirs, method)(BIG)
        assert ours_made.dtype == theirs_made.dtype
        np.testing.assert_array_equal(ours_made, theirs_made)
    assert theirs.score(rows) == pytest.approx(theirs.score(BIG), rel=1e-12)


def test_a_stream_of_holes_is_scaled_and_scored_as_the_array(tmp_path):
    holed = np.where(np.random.default_rng(2).random(BIG.shape) < 0.1, np.nan, BIG)
    rows = open_rows(saved(tmp_path, holed), chunk_bytes=2 * CHUNK)
    options = {**QUICK, "batch_size": 5000, "missing": "mask", "dtype": "float64"}
    ours, theirs = Autoencoder(**options).fit(rows), Autoencoder(**options).fit(holed)
    np.testing.assert_allclose(ours.loss_curve_, theirs.loss_curve_, rtol=1e-10)
    np.testing.assert_array_equal(theirs.reconstruction_error(rows), theirs.reconstruction_error(holed))
    assert theirs.score(rows) == pytest.approx(theirs.score(holed), rel=1e-12)
    said = r"x\.npy contains NaN in column 1: missing='mask' allows missing cells$"
    for settings in (
        {},
        {"scale": None},
        {"scale": None, "solver": "lbfgs"},
    ):  # without scale, training meets it
        with pytest.raises(ValueError, match=said):
            Autoencoder(**QUICK | settings).fit(rows)
    model = Autoencoder(**QUICK).partial_fit(np.nan_to_num(holed))
    for call in (model.partial_fit, model.transform, model.score):
        with pytest.raises(ValueError, match=said):
            call(rows)


@pytest.mark.parametrize("chunk_bytes", [1 << 26, CHUNK], ids=["array", "stream"])
def test_no_rows_and_what_is_not_finite_are_named_with_the_file(chunk_bytes, tmp_path):
    path, frame = tmp_path / "x.parquet", pd.DataFrame(BIG[:, :6], columns=NAMES)
    model, asked = Autoencoder((2,), max_iter=1, batch_size=500), {"chunk_bytes": chunk_bytes}
    for value, missing, said, hint in (
        (np.nan, None, "contains NaN", ": missing='mask' allows missing cells"),
        (-np.inf, None, "contains infinity", ""),
        (np.inf, "mask", "contains infinity", ""),
    ):
        frame.iloc[1000, 3] = value
        rows = open_rows(parquet(path, frame, row_group_size=300), **asked)
        with pytest.raises(ValueError, match=rf"x\.parquet {said} in column '{NAMES[3]}'{hint}$"):
            model.set_params(missing=missing).fit(rows)
    with pytest.raises(ValueError, match=r"x\.parquet has no rows$"):
        model.fit(open_rows(parquet(path, frame[:0]), **asked))


def test_a_detector_on_a_stream_with_rows_set_aside(tmp_path):
    rows = open_rows(saved(tmp_path, BIG), chunk_bytes=CHUNK)
    detector = AutoencoderDetector(**QUICK, n_estimators=1, early_stopping=True, contamination=0.05).fit(rows)
    assert len(detector.validation_loss_curve_) == detector.n_iter_
    assert detector.validation_loss_curve_[-1] < detector.validation_loss_curve_[0]
    assert (detector.predict(rows) == -1).sum() == 250
    np.testing.assert_array_equal(detector.score_samples(rows), detector.score_samples(BIG))
    for ours, theirs in zip(detector.explain(rows, top=2), detector.explain(BIG, top=2), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("early_stopping", [False, True])
def test_a_detector_reads_a_file_no_more_often_than_an_autoencoder(tmp_path, monkeypatch, early_stopping):
    reads = []
    read = NpyRows.read
    monkeypatch.setattr(NpyRows, "read", lambda self, *rest: (reads.append(1), read(self, *rest)))
    path, counts, models = saved(tmp_path, BIG), [], []
    for kind in (Autoencoder, partial(AutoencoderDetector, n_estimators=1)):
        reads.clear()
        models.append(kind(**QUICK, early_stopping=early_stopping).fit(open_rows(path, chunk_bytes=CHUNK)))
        counts.append(len(reads))
    assert counts[0] == counts[1] > 0
    assert models[0].error_over_pca_ == pytest.approx(models[1].error_over_pca_, rel=1e-12)
    assert models[1].offset_ == np.percentile(models[1].score_samples(BIG), 10)


def test_lbfgs_and_partial_fit_take_streams(tmp_path):
    rows = open_rows(saved(tmp_path, BIG), chunk_bytes=CHUNK)
    options = {**QUICK, "solver": "lbfgs", "dtype": "float64"}
    ours, theirs = Autoencoder(**options).fit(rows), Autoencoder(**options).fit(BIG)
    np.testing.assert_allclose(ours.loss_curve_, theirs.loss_curve_, rtol=1e-6)
    model = Autoencoder(learning_rate_init=1e-3, **QUICK).partial_fit(rows)
    assert model.partial_fit(rows).loss_curve_[1] < model.loss_curve_[0]


def test_other_columns_than_the_models_are_refused_by_name(tmp_path):
    model = Autoencoder(**QUICK).fit(open_rows(FRAME))
    swapped = FRAME[[NAMES[1], NAMES[0], *NAMES[2:]]]
    with pytest.raises(ValueError, match=f"column 1 is '{NAMES[1]}', not '{NAMES[0]}'"):
        model.transform(open_rows(swapped))
    with pytest.raises(ValueError, match=f"missing column '{NAMES[0]}'; unexpected column 'other'"):
        model.transform(open_rows(FRAME.rename(columns={NAMES[0]: "other"})))
    with pytest.raises(ValueError, match="X has 5 features, but the model was fitted with 6"):
        model.transform(open_rows(X[:, :5]))
    with pytest.raises(ValueError, match=r"x.npy has 5 features, but the model was fitted with 6"):
        model.transform(open_rows(saved(tmp_path, X[:, :5])))
    with pytest.raises(ValueError, match="X_val has 5 features"):
        Autoencoder(**QUICK).fit(X, X_val=open_rows(X[:, :5]))


# -- memory -----------------------------------------------------------------------------------------------------------

TRAIN_AND_MEASURE = """
    import resource
    import sys
    import numpy as np
    import fastae

    def peak():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    network = fastae.Network((1024, 8, 1024), ("sigmoid", "identity"))
    params = fastae.Parameters.random(network)
    engine = fastae.Engine(network, 2)
    fastae.train(params, np.zeros((4096, 1024), "f4"), engine=engine, epochs=1, batch_size=1024)
    rows = fastae.open_rows(sys.argv[1], chunk_bytes=1 << 24)
    used = int(next(line for line in open("/proc/self/status") if line.startswith("VmData")).split()[1]) << 10
    resource.setrlimit(resource.RLIMIT_DATA, (used + (1 << 27), used + (1 << 27)))
    before = peak()
    history = fastae.train(params, rows, engine=engine, epochs=1, batch_size=eval(sys.argv[2]))
    assert history.rows == len(rows), history
    print(peak() - before, history.loss[0])
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs Linux's /proc")
@pytest.mark.parametrize(("batch_size", "rows"), [(1000, 1 << 20), (None, 1 << 18)])
def test_four_gigabytes_train_in_the_memory_of_a_chunk(batch_size, rows, tmp_path):
    path = tmp_path / "sparse.npy"
    np.lib.format.open_memmap(path, "w+", np.float32, (rows, 1024))[-1] = 1  # a hole but for its last row
    assert path.stat().st_size > rows << 12
    script = [sys.executable, "-c", textwrap.dedent(TRAIN_AND_MEASURE), path, repr(batch_size)]
    ran = run(script)
    path.unlink()
    assert ran.returncode == 0, ran.stderr
    grown, loss = ran.stdout.split()
    assert int(grown) < (1 << 24) + (1 << 23)  # a chunk of 16 MB, and half as much for all else
    assert float(loss) > 0
