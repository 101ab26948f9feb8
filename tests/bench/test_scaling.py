"""The scaling curve: what follows from the times, and that it is measured, printed and drawn."""

import sys

import pytest

from fastae.bench import curve, machine, scaling
from fastae.bench.cases import Case
from fastae.bench.curve import Curve

CURVE = Curve(Case(64, 32, 100), {1: 8e-3, 2: 5e-3, 4: 4e-3}, {1: 100.0, 2: 160.0, 4: 250.0})


def test_the_figures_follow_from_the_times():
    assert [CURVE.speedup(count) for count in (1, 2, 4)] == pytest.approx([1, 1.6, 2])
    assert [CURVE.share_of_growth(count) for count in (1, 2, 4)] == pytest.approx([1, 1, 0.8])


@pytest.mark.parametrize(
    ("most", "counts"),
    [(1, [1]), (2, [1, 2]), (6, [1, 2, 4, 6]), (16, [1, 2, 4, 8, 16]), (24, [1, 2, 4, 8, 16, 24])],
)
def test_one_thread_powers_of_two_and_all_are_timed(most, counts):
    assert curve.thread_counts(most) == counts


def test_the_table_states_the_thread_counts_and_the_machine():
    text = "\n".join(scaling.lines([CURVE], machine.describe()))
    assert "1 thread    2 threads   4 threads" in text
    assert "8.00        5.00        4.00" in text
    assert "100%        100%         80%" in text
    assert "threads, load" in text


def test_a_measured_curve_is_printed_and_drawn(monkeypatch, capsys, tmp_path):
    pytest.importorskip("matplotlib")
    for name in ("REST", "WARM", "TURN"):
        monkeypatch.setattr(f"fastae.bench.rounds.{name}", 1e-3)
    path = tmp_path / "curve.png"
    monkeypatch.setattr(sys, "argv", ["scaling", "--size", "20,5,300", "--threads", "1", "--plot", str(path)])
    scaling.main()
    assert "20, 5, 300" in capsys.readouterr().out
    assert path.read_bytes().startswith(b"\x89PNG")


def test_more_threads_than_cpus_are_refused(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["scaling", "--threads", "100000"])
    with pytest.raises(SystemExit):
        scaling.main()
    assert "--threads must be from 1 to" in capsys.readouterr().err
