"""CSV: the numbers of Python's float, whatever the blocks that are read; what is guessed; errors name the line."""

import csv as python_csv
import gzip
import io
import os
import random
import sys
import textwrap

import numpy as np
import pytest
from processes import run

from fastae import Autoencoder, open_rows
from fastae.data import csv

WORDS = {"": np.nan, "na": np.nan, "nan": np.nan, "null": np.nan, "true": 1.0, "false": 0.0}


@pytest.fixture(params=[40, 300, 1 << 22], ids=lambda size: f"blocks of {size}")
def block(request, monkeypatch):
    monkeypatch.setattr(csv, "BLOCK_BYTES", request.param)


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(csv, "BLOCK_BYTES", 40)


def written(tmp_path, text, name="x.csv"):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8", newline="")
    return path


def expected(text, delimiter):
    """The header and the rows as Python's own reader and float read them, cell by cell."""
    header, *rows = python_csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    rows = [row for row in rows if len(row) == len(header)]
    numbers = [
        [WORDS[c.strip().lower()] if c.strip().lower() in WORDS else float(c) for c in row] for row in rows
    ]
    return tuple(header), np.array(numbers).reshape(-1, len(header))


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"], ids=repr)
@pytest.mark.parametrize("delimiter", [",", ";", "\t"], ids=repr)
def test_numbers_are_those_of_python_whatever_the_blocks(delimiter, newline, block, tmp_path):
    draw = random.Random(0)
    cells = ["1", "-2.5", "1e3", "", "NA", "nan", "true", "FALSE", " 3 ", "+4", "inf", '"5"', '" 6"', '""']
    cells += ['"NULL"', "1e400", "0.1", "123456789.123456789", "2.2250738585072011e-308", "Na", "TRUE", "1."]
    for _ in range(40):
        names = [draw.choice(["a", "b c", f'"d{delimiter}e"', '"f""g"', '"h\ni"', '5" j']) for _ in range(3)]
        names = [f'"{i}{name[1:]}' if name[0] == '"' else f"{i}{name}" for i, name in enumerate(names)]
        lines = [delimiter.join(draw.choices(cells, k=3)) for _ in range(draw.choice([0, 1, 50]))]
        lines += [""] * draw.choice([0, 1])
        text = newline.join([delimiter.join(names), *lines]) + newline * draw.choice([0, 1])
        rows = open_rows(written(tmp_path, text), chunk_bytes=draw.choice([1, 100, 1 << 20]))
        header, numbers = expected(text, delimiter)
        assert rows.feature_names == header
        np.testing.assert_array_equal(np.asarray(rows), numbers)


@pytest.mark.parametrize("compressed", [False, True], ids=["plain", "gzip"])
def test_a_file_larger_than_a_chunk_is_a_stream_of_the_same_numbers(compressed, tmp_path):
    X = np.random.default_rng(0).normal(size=(5000, 3))
    text = "a,b,c\n" + "".join(",".join(map(repr, row)) + "\n" for row in X.tolist())
    path = written(tmp_path, text)
    if compressed:
        path = tmp_path / "x.csv.gz"
        with open(path, "wb") as file:  # of two members, as cat makes
            file.write(gzip.compress(text[:50_000].encode()) + gzip.compress(text[50_000:].encode()))
    rows = open_rows(path, chunk_bytes=30_000)
    assert (rows.shape, rows.feature_names, rows.in_memory) == (X.shape, ("a", "b", "c"), False)
    assert max(chunk.rows.nbytes for chunk in rows.chunks()) <= 30_000
    np.testing.assert_array_equal(np.asarray(rows), X)
    drawn = np.concatenate([chunk.rows[chunk.order] for chunk in rows.chunks(np.random.default_rng(1))])
    np.testing.assert_array_equal(np.sort(drawn, axis=0), np.sort(X, axis=0))
    assert open_rows(path).in_memory
    rows = open_rows([path, path], chunk_bytes=X.nbytes + 1)  # one in memory, the other not
    assert not rows.in_memory
    np.testing.assert_array_equal(np.asarray(rows), np.vstack((X, X)))


def test_a_model_fitted_to_a_stream_of_csv_is_that_of_the_numbers(tmp_path):
    X = np.random.default_rng(0).normal(size=(3000, 4)).round(3)
    np.savetxt(tmp_path / "x.csv", X, delimiter=",", header="a,b,c,d", comments="")
    np.save(tmp_path / "x.npy", X)
    models = [
        Autoencoder(2, max_iter=3, random_state=0).fit(open_rows(tmp_path / name, chunk_bytes=20_000))
        for name in ("x.csv", "x.npy")
    ]
    assert np.array_equal(models[0].params_.flat, models[1].params_.flat)


READ_AND_MEASURE = """
    import resource, sys
    import numpy as np
    import fastae
    def peak():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    fastae.open_rows(sys.argv[2])  # loads pyarrow
    before = peak()
    rows = fastae.open_rows(sys.argv[1], chunk_bytes=1 << 20)
    total = sum(float(chunk.sum()) for chunk in rows)
    print(peak() - before, rows.shape[0], total)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs Linux")
@pytest.mark.parametrize("suffix", [".csv", ".csv.gz"])
def test_reading_takes_the_memory_of_a_few_blocks(suffix, tmp_path):
    lines = b"1.25,2.5,3.75,4.125\n" * 20_000
    with (gzip.open if suffix.endswith("gz") else open)(tmp_path / f"x{suffix}", "wb") as file:
        file.write(b"a,b,c,d\n")
        for _ in range(250):  # 100 MB
            file.write(lines)
    small = written(tmp_path, "a\n1\n", "small.csv")
    script = [sys.executable, "-c", textwrap.dedent(READ_AND_MEASURE), tmp_path / f"x{suffix}", small]
    ran = run(script)
    grown, rows, total = ran.stdout.split()
    assert (int(rows), float(total)) == (5_000_000, 5_000_000 * 11.625)
    assert int(grown) < 60 << 20, "the numbers are 160 MB, the text 100 MB"


def test_a_temporary_file_leaves_nothing_behind(tmp_path, monkeypatch):
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    rows = open_rows(written(tmp_path, "a,b\n" + "1,2\n" * 1000), chunk_bytes=100)
    assert np.asarray(rows).sum() == 3000
    if sys.platform != "win32":
        assert not os.listdir(tmp_path / "tmp")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="has no full device")
def test_a_full_disk_of_temporary_files_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.TemporaryFile", lambda **options: open("/dev/full", "wb", buffering=0))
    monkeypatch.setattr("tempfile.tempdir", "/where")
    with pytest.raises(OSError, match="No space left on device: '/where'"):
        open_rows(written(tmp_path, "a,b\n" + "1,2\n" * 1000), chunk_bytes=100)


# -- what is guessed --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "names", "guessed"),
    [
        ("a,b\n1,2\n", ("a", "b"), ""),
        ("1.5,2\n3,4\n", None, "data"),
        ("0,1\n0.5,-1.2\n2.25,\n", ("0", "1"), "column names"),  # a frame without names, as pandas writes it
        (",0,1\n0,0.5,-1.2\n1,2.25,0.5\n", ("", "0", "1"), "column names"),
        ("0,1\n5,6\n", None, "data"),
        ("0,1\n0.1,0.99\n0.2,1\n", None, "data"),
        ("0,1,2\n5,6,7\n", ("0", "1", "2"), "column names"),
        ("2019,2020,2021\n120,340,200\n", ("2019", "2020", "2021"), "column names"),
        ("2019,2020\n1.5,2000.5\n", ("2019", "2020"), "column names"),
        ("2019,2020\n2020,2021\n2021,2022\n", None, "data"),  # from, to
        ("2019,2020\n", None, "data"),
        ("7,8\n1.5,2.5\n", None, "data"),
        ("x1,2\n1,2\n", ("x1", "2"), "column names"),
        (",\n1,2\n", None, ""),
    ],
)
def test_what_the_first_line_is_taken_for(text, names, guessed, tmp_path):
    path = written(tmp_path, text)
    rows = open_rows(path, drop=[""] if names and "" in names else [])
    assert rows.feature_names == (names and tuple(name for name in names if name))
    if guessed:
        assert f"{path}: the first line, '" in rows.guess
        assert f"was read as {guessed}" in rows.guess
    else:
        assert not rows.guess


def test_a_header_can_be_stated(tmp_path):
    path = written(tmp_path, "0,1\n5,6\n")
    rows = open_rows(path, header=True)
    assert (rows.feature_names, np.asarray(rows).tolist(), rows.guess) == (("0", "1"), [[5, 6]], "")
    path = written(tmp_path, "0,1,2\n5,6,7\n")
    rows = open_rows(path, header=False, feature_names="abc")
    assert (rows.feature_names, np.asarray(rows).tolist()) == (tuple("abc"), [[0, 1, 2], [5, 6, 7]])
    with pytest.raises(TypeError, match=r"not numeric: columns 'number 1' \('a'\), 'number 2' \('b'\)"):
        open_rows(written(tmp_path, "a,b\n1,2\n"), header=False)


def test_a_literal_of_python_is_not_a_number(tmp_path):
    for cell in ("1_000", "\u0661", "0x10", "1e"):
        with pytest.raises(TypeError, match=rf"not numeric: column 'a' \('{cell}'\)"):
            open_rows(written(tmp_path, f"a,b\n1,2\n{cell},2\n"))
    assert open_rows(written(tmp_path, "1_000,2\n1,2\n")).feature_names == ("1_000", "2")


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"], ids=repr)
def test_an_empty_cell_of_a_single_column_is_a_missing_one(newline, block, tmp_path):
    numbers = [1, np.nan, 3, np.nan, np.nan, 6]
    for empty in ("", '""', "NA"):
        lines = ["a", *(empty if np.isnan(number) else str(number) for number in numbers)]
        path = written(tmp_path, newline.join(lines) + newline)
        np.testing.assert_array_equal(np.asarray(open_rows(path))[:, 0], numbers)
        path = written(tmp_path, newline.join([empty, *lines[1:]]) + newline)
        np.testing.assert_array_equal(np.asarray(open_rows(path))[:, 0], [np.nan, *numbers])


# -- errors -----------------------------------------------------------------------------------------------------------


def test_errors_name_the_line_in_any_block(block, tmp_path):
    head, lines = "a,b\n", '1,"2"\n\n' * 40 + '"3",4\n' * 20  # 100 lines
    for line, message in (
        ("1,2,3", r"x\.csv: line 102 has 3 cells, the first line 2"),
        ("1", r"x\.csv: line 102 has 1 cells, the first line 2"),
        (f'1,2,"{"x" * 140_000}"', r"x\.csv: line 102: field larger than field limit"),
    ):
        with pytest.raises(ValueError, match=message):
            open_rows(written(tmp_path, head + lines + line + "\n1,2\n" * 30))
    with pytest.raises(TypeError, match=r"not numeric: columns 'a' \('x\\ny'\), 'b' \('5. z'\)"):
        open_rows(written(tmp_path, head + lines + '"x\ny",5" z\n1,2\n'))
    with pytest.raises(TypeError, match=r"not numeric: column 'b' \('x{60}\.\.\.'\)$"):
        open_rows(written(tmp_path, head + lines + f"1,{'x' * 10_000}\n"))
    with pytest.raises(TypeError, match=r"not numeric: column 'number 2' \('three'\)"):
        open_rows(written(tmp_path, "1,2\n" * 40 + "2,three\n"))


def test_a_quote_that_is_never_closed_is_found_early(small_blocks, tmp_path):
    path = written(tmp_path, 'a,b\n1,2\n1,"2\n' + "1,2\n" * 100_000)
    with pytest.raises(ValueError, match=r"x\.csv: line 3: field larger than field limit"):
        open_rows(path)


def test_damaged_gzip_files_are_named(tmp_path):
    whole = gzip.compress(b"a,b\n" + b"1,2\n" * 1000)
    for content in (whole[:-20], whole[:40] + b"\xff" * 9 + whole[49:], b"a,b\n1,2\n", whole[:5]):
        (tmp_path / "x.csv.gz").write_bytes(content)
        with pytest.raises(ValueError, match=r"x\.csv\.gz is not a complete gzip file"):
            open_rows(tmp_path / "x.csv.gz")
    with pytest.raises(FileNotFoundError, match=r"no\.csv\.gz"):
        open_rows(tmp_path / "no.csv.gz")
