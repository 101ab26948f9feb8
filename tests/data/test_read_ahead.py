"""Reading ahead: the next chunk is read while one is in use, and nothing else changes."""

import threading

import numpy as np
import pandas as pd
import pytest

import fastae
from fastae import open_rows
from fastae.data.parquet import ParquetRows
from fastae.data.read_ahead import ahead

X = np.random.default_rng(0).normal(size=(3000, 5))
CHUNK = 5 * 8 * 500


def opened(tmp_path):
    path = tmp_path / "x.parquet"
    if not path.exists():
        pd.DataFrame(X, columns=list("abcde")).to_parquet(path, row_group_size=100)
    return open_rows(path, chunk_bytes=CHUNK)


def threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("fastae-read-ahead")]


@pytest.mark.parametrize("several", [False, True], ids=["a file", "files"])
def test_the_next_chunk_is_read_while_one_is_in_use(several, tmp_path, monkeypatch):
    rows, done, read = opened(tmp_path), threading.Semaphore(0), ParquetRows.read
    if several:
        pd.DataFrame(X, columns=list("abcde")).to_csv(tmp_path / "x.csv", index=False)
        rows = open_rows([tmp_path / "x.parquet", tmp_path / "x.csv"], chunk_bytes=CHUNK)
    monkeypatch.setattr(ParquetRows, "read", lambda *arguments: (read(*arguments), done.release()))
    chunks = rows.chunks()
    for count in (10, 5, 5, 5):  # pieces: those of the first chunk and the second, then of one more each
        next(chunks)
        for _ in range(count):
            assert done.acquire(timeout=60)
    chunks.close()
    assert not threads()


def test_rows_that_are_split_are_read_ahead_too(tmp_path):
    for part in opened(tmp_path).split(0.4, seed=0):
        chunks = part.chunks()
        next(chunks)
        assert threads()
        chunks.close()
        assert not threads()


def test_chunks_are_those_that_are_not_read_ahead(tmp_path, monkeypatch):
    def drawn():
        chunks = opened(tmp_path).chunks(np.random.default_rng(1), multiple=64)
        return [chunk.rows[chunk.order].copy() for chunk in chunks]

    read_ahead = drawn()
    monkeypatch.setattr(ParquetRows, "reads_ahead", False)
    for first, second in zip(read_ahead, drawn(), strict=True):
        np.testing.assert_array_equal(first, second)


def test_training_has_the_same_bits(tmp_path, monkeypatch):
    network = fastae.Network.autoencoder(5, 2)

    def trained():
        params = fastae.Parameters.random(network)
        fastae.train(
            params, opened(tmp_path), epochs=3, batch_size=64, objective=fastae.Objective(noise="swap")
        )
        return params.flat

    read_ahead = trained()
    monkeypatch.setattr(ParquetRows, "reads_ahead", False)
    assert np.array_equal(read_ahead, trained())


def test_an_error_of_the_reader_is_raised_and_ends_the_thread():
    def items():
        yield 1
        raise ValueError("damaged")

    taken = ahead(items())
    assert next(taken) == 1
    with pytest.raises(ValueError, match="damaged"):
        next(taken)
    assert not threads()
    assert list(ahead(iter([]))) == []
    assert list(ahead(iter([1, 2, 3]))) == [1, 2, 3]


def test_where_no_thread_can_be_started_chunks_are_read_when_they_are_asked_for(tmp_path, monkeypatch):
    wanted = [chunk.rows.copy() for chunk in opened(tmp_path).chunks()]

    def refuse(_):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    read = [chunk.rows.copy() for chunk in opened(tmp_path).chunks()]
    assert len(read) == len(wanted) > 2
    assert all((one == other).all() for one, other in zip(read, wanted, strict=True))
