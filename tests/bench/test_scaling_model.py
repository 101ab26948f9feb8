"""The model of steps on many threads: the kernels' items, each processed once; and measured times come out."""

import pytest

from fastae.bench import scaling_model
from fastae.bench.scaling_model import (
    Caches,
    Machine,
    Workload,
    calibration,
    division,
    simulate,
    step_seconds,
)
from fastae.kernels import job as fields
from fastae.kernels import split

SMALL = (40, 12, 40, 40)
LARGE = (300, 150, 300, 300)
PRIVATE = Machine(private_cache=1000, shared_cache=4000, cores=1)


@pytest.fixture(scope="module")
def works():
    """Two batches and a shorter one: by rows and by weights, in several slabs."""
    return [
        Workload(SMALL, 1100, rows=2500, adam=True, steps=3),
        Workload(LARGE, 1500, rows=3300, adam=True, steps=3),
        Workload(LARGE, 1500),
    ]


@pytest.mark.parametrize("threads", [1, 2, 5, 16, 192])
def test_every_item_of_every_phase_is_claimed_by_one_thread(works, threads):
    for work in works:
        done = simulate(work, threads)
        assert [(phase.round, phase.phase, len(phase.claimed_by)) for phase in done] == list(work.phases())
        for phase in done:
            assert all(0 <= thread < threads for thread in phase.claimed_by)
            assert len(set(phase.claimed_by)) <= threads
            assert phase.seconds > 0


def test_the_phases_are_those_of_the_kernels(works):
    assert [work.by_weights for work in works] == [False, True, True]
    by_rows, by_weights, _ = works
    shards = [
        split.shards_of(rows, by_rows.job.n_parameters, by_rows.job.row_multiple)
        for rows in (1100, 1100, 300)
    ]
    wanted = [(step, fields.ROWS, count) for step, count in enumerate(shards)]
    assert [phase for phase in by_rows.phases() if phase[1] == fields.ROWS] == wanted
    rows = [
        sum(split.rows_of_item(by_weights.job, round_, fields.ROWS, item)[1] for item in range(items))
        for round_, phase, items in by_weights.phases()
        if phase == fields.ROWS
    ]
    assert sum(rows) == 3300


@pytest.mark.parametrize("threads", [2, 4, 8])
def test_a_thread_claims_its_own_share_first_and_equal_items_are_shared_evenly(threads):
    rows = simulate(Workload(LARGE, 256, steps=3), threads)[
        -2
    ]  # in the first step, some read the weights from memory
    assert rows.phase == fields.ROWS
    assert rows.claimed_by == [thread for thread in range(threads) for _ in range(16 // threads)]


def test_others_do_the_items_of_a_thread_that_is_late_and_it_delays_nothing():
    work = Workload(LARGE, 512, steps=1)
    on_time, late = simulate(work, 4), simulate(work, 4, late={3: 1.0})
    for phase in late:
        assert set(phase.claimed_by) == {0, 1, 2}
    three = sum(phase.seconds for phase in simulate(work, 3))
    assert sum(phase.seconds for phase in on_time) < sum(phase.seconds for phase in late) < 1.1 * three


def test_the_same_job_gives_the_same_figures(works):
    for work in works:
        assert simulate(work, 7) == simulate(work, 7)


def test_one_thread_takes_as_long_as_its_arithmetic_and_its_memory():
    work = Workload(SMALL, 1024, rate=1e9, steps=2)
    arithmetic = 1024 * (work.flops / 1e9 + (40 + 12) * Machine().sigmoid)
    assert arithmetic < step_seconds(work, 1) < 1.05 * arithmetic


def test_a_private_cache_keeps_what_was_used_last_until_another_core_writes_it():
    caches = Caches(PRIVATE, 2)

    def moved(thread, data, size, write=False):
        before = caches.cached, caches.from_memory
        caches.use(thread, data, size, write=write)
        return caches.cached - before[0], caches.from_memory - before[1]

    assert moved(0, ("a",), 600) == (0, 600)
    assert moved(0, ("a",), 600) == (0, 0)
    assert moved(1, ("a",), 600) == (600, 0)
    assert moved(1, ("a",), 600, write=True) == (0, 0)
    assert moved(0, ("a",), 600) == (600, 0)
    assert moved(0, ("b",), 600) == (0, 600)  # a leaves the private cache
    assert moved(0, ("a",), 600) == (600, 0)
    for name in range(10):  # and then the shared one
        moved(0, (name,), 900)
    assert moved(0, ("a",), 600) == (0, 600)


def test_a_large_batch_moves_as_many_bytes_as_its_kept_rows_and_weights_ask_for():
    """By weights, all bands read W and W', and each patch reads its columns of all rows."""
    work = Workload(LARGE, 512, steps=2)
    machine = Machine(private_cache=1)  # nothing is kept
    items, cached, from_memory = division(work, 4, machine)
    bands, patches = items
    read = sum(elements * (2 if layer else 1) for layer, elements, *_ in work.parts) * bands
    read += 512 * (300 + sum(columns for _, _, _, columns in work.kept))
    read += sum(512 * (down + across) + elements for _, elements, _, down, _, across in work.parts)
    assert patches == len(work.parts)
    assert cached + from_memory == pytest.approx(4 * read, rel=1e-3)


def test_the_measured_times_come_out():
    ratios = [modelled / measured for _, threads, modelled, measured in calibration() if threads > 1]
    assert len(ratios) == 12
    assert all(0.7 < ratio < 1.2 for ratio in ratios)
    assert sum(0.87 < ratio < 1.13 for ratio in ratios) >= 10
    alone = [modelled / measured for _, threads, modelled, measured in calibration() if threads == 1]
    assert alone == pytest.approx([1] * len(alone), rel=0.02)


def test_the_report_says_that_its_figures_are_predictions(monkeypatch, capsys):
    monkeypatch.setattr(scaling_model, "MEASURED", scaling_model.MEASURED[-1:])
    monkeypatch.setattr(scaling_model, "PREDICTED", scaling_model.PREDICTED[-1:])
    monkeypatch.setattr("sys.argv", ["scaling_model", "--threads", "1", "16"])
    scaling_model.main()
    out = capsys.readouterr().out
    assert "Predictions, not measurements" in out
    assert "epoch of 500, 50, 300" in out
    assert "hand-overs; items" in out
