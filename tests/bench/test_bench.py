"""Each bench runs once, untimed, and checks its own result first; how it is timed, reported and held to a baseline."""

import json
import os
import re
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from processes import run

from fastae import bench
from fastae.bench import baseline, compare, peer, pools, probe, report, rounds
from fastae.bench import peers as tables
from fastae.bench.cases import CASES, Case, chosen
from fastae.bench.compare import Comparison
from fastae.bench.probe import Probe
from fastae.bench.rounds import Contender, Timing

ROOT = Path(__file__).parents[2]


SMALL = "kernels or inference or 30011"  # the others take most of the time


@pytest.mark.parametrize(
    ("which", "least"), [(SMALL, 30), pytest.param(f"not ({SMALL})", 30, marks=pytest.mark.exhaustive)]
)
def test_every_bench_runs_and_is_right(which, least):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "bench", "--benchmark-disable"]
    done = run([*command, "-k", which], cwd=ROOT, timeout=1800)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed
    assert int(passed.group(1)) >= least
    assert "skipped" not in done.stdout


# -- the rounds -------------------------------------------------------------------------------------------------------


class Clock:
    """Stands in for the module `time`: it moves when something sleeps, and when a test says so."""

    def __init__(self):
        self.now, self.rests = 0.0, []

    def perf_counter(self):
        return self.now

    def sleep(self, seconds):
        self.rests.append(seconds)
        self.now += seconds

    def pass_by(self, seconds):
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    """A clock of its own for the rounds, and binary fractions of seconds: none is rounded."""
    made_up = Clock()
    monkeypatch.setattr(rounds, "time", made_up)
    for name, seconds in (("REST", 0.5), ("WARM", 5 / 512), ("TURN", 15 / 512)):
        monkeypatch.setattr(rounds, name, seconds)
    return made_up


def test_contenders_take_turns_rested_and_on_their_own_threads(monkeypatch, clock):
    monkeypatch.setattr(rounds, "WARM", 0)
    seen = []
    monkeypatch.setattr(rounds, "set_threads", lambda count: seen.append(("threads", count)))

    def contender(name, threads):
        def take_turn(times):
            seen.append(name)
            clock.pass_by(1.0)

        return Contender(take_turn, threads)

    timings = rounds.in_turn({"A": contender("A", 3), "B": contender("B", 4)}, rounds=4)
    one_round = [("threads", 3), "A", ("threads", 4), "B"]
    assert seen == one_round * 5  # the first to see how long each takes
    assert clock.rests == [0.5] * 10
    assert timings["A"].rounds == 4


def test_a_turn_is_warmed_up_and_gives_the_time_of_one(clock):
    asked = []

    def take_turn(times):
        clock.pass_by(times / 512 if asked else 1.0)  # what is compiled in its first call
        asked.append(times)

    timing = rounds.in_turn({"A": Contender(take_turn, 1)}, rounds=3)["A"]
    assert asked == [1, 1] + 3 * [*5 * [1], 15]
    assert timing == Timing(1 / 512, 1 / 512, 1 / 512, 3)


def test_percentiles():
    timing = Timing.of([float(i) for i in range(11)])
    assert timing == (5, 1, 9, 11)


def test_the_faster_setting_is_kept(clock):
    slow, fast = (Contender(lambda times, each=each: clock.pass_by(each * times), 1) for each in (2.0, 1.0))
    assert rounds.fastest([slow, fast]) is fast
    assert rounds.fastest([fast, slow]) is fast


def test_threads_are_set_in_the_libraries():
    from threadpoolctl import threadpool_info

    for count in (1, 2):
        pools.set_threads(count)
        blas = [info["num_threads"] for info in threadpool_info() if info["user_api"] == "blas"]
        assert blas
        assert set(blas) == {count}
    assert pools.blas_libraries()


# -- what is compared -------------------------------------------------------------------------------------------------

SMALL = Case(12, 5, 300)


EVERY_KIND = [
    SMALL,
    Case(12, 5, 300, hidden=(8, 5, 8), activation="tanh"),
    Case(12, 5, 300, batch=100),
    Case(12, 5, 300, batch=100, networks=3),
]


@pytest.mark.parametrize(
    ("case", "name"),
    [(case, name) for case in EVERY_KIND for name in tables.peers_of(case)],
    ids=lambda value: value if isinstance(value, str) else value.id,
)
def test_a_peer_with_another_result_is_refused(case, name):
    peer = tables.peers_of(case)[name]
    if why := peer.why_not(case):
        pytest.skip(why)
    makers = [make for make in peer.forms.values() if make(case, 1)]
    assert makers
    for make in makers:

        def broken(case, threads, make=make):
            working = make(case, threads)

            def answer(result):
                return {
                    key: np.roll(value, 1, axis=-1) if np.ndim(value) else value
                    for key, value in working.answer(result).items()
                }

            return working._replace(answer=answer)

        compare.checked(peer, make, case, 1).run(2)
        with pytest.raises(AssertionError, match=r"^broken: "):
            compare.checked(peer, broken, case, 1)


@pytest.mark.parametrize("rows", [64, 100, 128, 299])
def test_blocks_and_scans_of_any_size_give_the_same_gradient(rows):
    from fastae.bench import step_peers

    makers = [step_peers.by_numpy]
    if find_spec("jax"):
        makers.append(step_peers.by_jax)
    for make in makers:
        work = make(SMALL, 1, rows=rows)
        SMALL.check(work.answer(work.run(1)))
        assert make(SMALL, 1, rows=300) is None


def test_the_work_of_a_case_is_counted():
    usual = Case(30, 8, 1000)
    assert usual.flops == 1000 * (10 * 30 * 8 + 6 * 30 * 30)
    assert usual.sigmoids == 1000 * 38
    several = Case(30, 8, 1000, batch=200, epochs=3, networks=7)
    assert several.flops == 21 * usual.flops
    assert several.sigmoids == 21 * usual.sigmoids
    assert several.steps == 15
    assert (several.label, several.heads) == ("30, 8, 1000, 200, 7", "n, k, m, batch, networks")
    deep = Case(30, 8, 10, hidden=(20, 8, 20), activation="relu")
    assert deep.flops == 10 * (6 * 2 * (30 * 20 + 20 * 8) - 2 * 30 * 20)
    assert deep.sigmoids == 0
    assert (deep.label, deep.heads) == ("30-20-8-20-30 relu, 10", "widths, m")


def test_peers_that_are_missing_are_named(monkeypatch):
    monkeypatch.setattr(peer, "find_spec", lambda module: module in ("numpy", "sklearn") or None)
    names, missing = tables.available(SMALL)
    assert {"numpy", "sklearn"} <= set(names)
    assert missing["jax"] == "jax is not installed"
    assert tables.available(SMALL, ["numpy"]) == (["numpy"], {})
    assert tables.available(Case(12, 5, 300, dtype="float64"), ["torch bf16"])[0] == []


def test_ceilings_are_work_by_time(monkeypatch):
    """On a clock that is a second later each time it is read, of a hundred rounds."""
    seconds = iter(range(1000))
    monkeypatch.setattr(probe, "time", SimpleNamespace(perf_counter=lambda: float(next(seconds))))
    flops = 2 * 16 * probe.ACCUMULATORS  # a fused multiply-add is two
    assert Probe(1)() == pytest.approx(100 * flops / 1e9)
    assert Probe(1, "float64")() == pytest.approx(100 * flops / 2 / 1e9)
    assert Probe(1, of="sigmoid")() == pytest.approx(100 * 1024 / 1e9)


def test_readings_are_judged_raw():
    ceiling = Probe(2)
    assert ceiling() > 0
    assert ceiling(3) > 0
    ceiling.readings[:] = [100.0, 98.0, 96.0, 50.0, 49.0]  # two threads on one core read half the peak
    assert ceiling.median == 96
    assert ceiling.disturbed
    ceiling.readings[:] = [288.0] * 8 + [503.0] * 3
    assert ceiling.median == 288
    assert ceiling.disturbed
    ceiling.readings[:] = [100.0, 98.0, 96.0, 95.0, 99.0]
    assert not ceiling.disturbed


def test_figures_of_shared_cores_are_not_quoted():
    quiet = comparison(fastae=1, numpy=4)
    assert quiet.quotable
    assert replace(quiet, others=0.2).shared_cores
    slowed = replace(quiet, peak=Timing(60.0, 59.0, 61.0, 15))
    assert slowed.shared_cores, "in the whole case, but not in the whole run"
    shared = replace(quiet, peak=Timing(288.0, 250.0, 503.0, 15), peak_best=503.0)
    assert shared.shared_cores
    assert not shared.quotable
    told = report.Report(a_report(fastae=1, numpy=4).machine, [quiet, shared], {})
    assert "DO NOT QUOTE 12, 5, 300" in "\n".join(told.notes())
    assert "over 1 sizes" in "\n".join(told.notes())
    assert told.markdown().count("**4.0x** numpy") == 1
    assert set(baseline.ratios_of(report.Report(told.machine, [shared], {}))) == set()


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="needs /proc/stat")
def test_work_of_other_processes_is_seen():
    """A process that computes for a second takes at most one CPU, and most of it."""
    from fastae.bench.machine import OtherWork

    def taken(seconds):
        watch = OtherWork()
        run([sys.executable, "-c", f"import time\nwhile time.process_time() < {seconds}: pass"])
        total = watch._readings()[0] - watch._start[0]
        return watch.share() * total

    assert taken(1.0) >= 0.9


def test_own_work_is_not_that_of_others(monkeypatch):
    from fastae.bench.machine import OtherWork

    readings = iter([(100.0, 10.0, 5.0), (120.0, 28.0, 22.0)])
    monkeypatch.setattr(OtherWork, "_readings", staticmethod(lambda: next(readings)))
    assert OtherWork().share() == pytest.approx((18 - 17) / 20)


def test_a_peer_whose_times_vary_counts_with_its_10th_percentile():
    of = comparison(fastae=1, numpy=4, torch=3)
    jumpy = replace(of, timings=of.timings | {"torch": Timing(0.4, 0.093, 0.749, 15)})
    assert jumpy.ratios == pytest.approx({"numpy": 4, "torch": 93})
    assert jumpy.best_peer == "numpy", "torch was never as fast"
    perhaps = replace(of, timings=of.timings | {"torch": Timing(0.005, 0.002, 0.02, 15)})
    assert perhaps.best_peer == "torch", "it may be faster than numpy"
    told = report.Report(a_report(fastae=1, numpy=4).machine, [perhaps], {})
    assert "| 4.00 | 2.00 to 20.00 | **≥2.0x** torch |" in told.markdown()
    assert "p90 over 1.5 times p10: torch at 12, 5, 300" in "\n".join(told.notes())
    assert set(baseline.ratios_of(told)[perhaps.case.id]) == {"numpy", "peak"}
    ours = replace(of, timings=of.timings | {"fastae": Timing(0.001, 0.001, 0.002, 15)})
    assert not ours.quotable
    assert "**" not in report.Report(told.machine, [ours], {}).markdown()


def test_every_setting_takes_its_turn_and_the_fastest_counts(monkeypatch):
    """Also if it was the slower one in the first rounds."""
    monkeypatch.setattr(compare.thread_pool, "available_cpus", lambda: 2)
    seen = {}

    def in_turn(contenders, *, rounds):
        seen.update(contenders)
        seconds = {key: [3.0] * 3 + [1.0] * 4 if key == ("numpy", "2") else [2.0] * 7 for key in contenders}
        return {key: Timing.of(values) for key, values in seconds.items()}

    monkeypatch.setattr(compare, "in_turn", in_turn)
    measured = compare.measure(Case(12, 5, 1100), ["numpy"], rounds=7)
    blocks = {("numpy", f"{threads}, blocks") for threads in (1, 2)}
    assert (
        set(seen)
        == {("fma", ""), ("sigmoid", ""), ("numpy", "1"), ("numpy", "2")}
        | {("fastae", "2"), ("fastae", "2, prepared")}
        | blocks
    )
    assert measured.settings == {"fastae": "2", "numpy": "2"}
    assert measured.timings["numpy"].median == 1


def test_a_process_is_limited_to_some_of_its_cpus():
    if not hasattr(os, "sched_setaffinity") or len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs two CPUs")
    before = os.sched_getaffinity(0)
    with pools.limited_to(1):
        assert compare.thread_pool.available_cpus() == 1
    assert os.sched_getaffinity(0) == before
    with pytest.raises(pools.CpuError, match=r"is not within 1 \.\. "), pools.limited_to(1000):
        pass


def comparison(case=SMALL, **milliseconds):
    """One of made-up times, with a peak of 100 GF/s and 1e9 sigmoids a second."""
    timings = {
        name.replace("_", " "): Timing(ms / 1e3, ms / 1e3, ms / 1e3, 15) for name, ms in milliseconds.items()
    }
    return Comparison(
        case, timings, dict.fromkeys(timings, "2"), Timing(100.0, 99.0, 101.0, 15), 1.0, 101.0, 0.0
    )


def test_the_figures_follow_from_the_times():
    case = Case(100, 10, 1000)  # 70 MFLOP, 110,000 sigmoids: 0.7 ms and 0.11 ms
    figures = comparison(case, fastae=1, numpy=4, torch=3, torch_bf16=0.5)
    assert figures.gflops() == pytest.approx(70)
    assert figures.gflops("numpy") == pytest.approx(17.5)
    assert figures.share_of_peak() == pytest.approx(0.7)
    assert figures.ceiling == pytest.approx(0.7 / 0.81)
    assert figures.share_of_ceiling() == pytest.approx(0.81)
    assert figures.ratios == pytest.approx({"numpy": 4, "torch": 3, "torch bf16": 0.5})
    assert figures.best_peer == "torch", "bfloat16 is of lower precision"


def a_report(**milliseconds):
    machine = {
        "cpu": "A CPU", "target": "znver5", "features": "avx512", "threads": 2, "load": 0.1, "python": "3.13",
        "system": "Linux", "versions": {"numpy": "2.0"}, "blas": ["openblas"], "environment": {},
    }  # fmt: skip
    return report.Report(machine, [comparison(**milliseconds)], {"jax": "jax is not installed"})


@pytest.fixture
def roofline():
    """Draws our shares of the peak and those of the peer; gives the boxes of all words, and the place of a share."""
    pytest.importorskip("matplotlib")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from fastae.bench import pictures

    def draw(shares, peers):
        axis = Figure(figsize=(10, 3.8), layout="constrained").subplots()
        case = Case(100, 10, 1000)  # 70 MFLOP: 0.7 ms at the peak
        cases = [comparison(case, fastae=0.7 / s, numpy=0.7 / p) for s, p in zip(shares, peers, strict=True)]
        pictures._draw_roofline(axis, cases)
        FigureCanvasAgg(axis.figure).draw()
        boxes = {text.get_text(): text.get_window_extent() for text in axis.texts}
        assert {f"{share:.0%}" for share in shares} < set(boxes)
        return boxes.values(), axis.transData.transform

    return draw


def test_no_share_in_the_picture_is_struck_through_by_the_line_of_the_peak(roofline):
    shares = (0.03, 0.5, 0.88, 0.9, 0.94, 0.97, 0.999)
    boxes, place = roofline(shares, [0.02] * len(shares))
    peak = place((0, 1))[1]
    assert not any(box.y0 <= peak <= box.y1 for box in boxes)


def test_no_share_in_the_picture_lies_on_the_point_of_a_peer(roofline):
    peers = (0.07, 0.15, 0.43, 0.8)
    boxes, place = roofline([peer + 0.06 for peer in peers], peers)
    points = [place(point) for point in enumerate(peers)]
    assert not any(box.contains(*point) for box in boxes for point in points)


def test_a_report_survives_json_and_says_what_was_left_out():
    first = a_report(fastae=1, numpy=8, torch_bf16=2)
    again = report.Report.from_json(first.to_json())
    assert again == first
    assert again.mean_ratio == pytest.approx(8)
    notes = "\n".join(again.notes())
    assert "jax is not installed" in notes
    assert "another precision" in notes
    assert "**8.0x** numpy" in again.markdown()
    assert json.loads(first.to_json())["cases"][0]["ratios"]["numpy"] == pytest.approx(8)


def test_the_table_goes_between_its_marks():
    text = "before\n" + report.MARKS[0] + "old\n" + report.MARKS[1] + "after\n"
    done = report.splice(text, "new\n")
    assert done == text.replace("old", "new")
    with pytest.raises(ValueError, match="no lines <!-- fastae bench -->"):
        report.splice("no marks", "new\n")


# -- the baseline -----------------------------------------------------------------------------------------------------


def test_a_ratio_that_falls_by_more_than_allowed_is_reported():
    ratios = baseline.ratios_of(a_report(fastae=1, numpy=8, torch=4))
    assert not baseline.fallen(a_report(fastae=1.1, numpy=8, torch=4), ratios)
    assert not baseline.fallen(a_report(fastae=1, numpy=7), ratios), "12% less; torch was not measured"
    (line,) = baseline.fallen(a_report(fastae=1, numpy=6.7, torch=4), ratios).values()
    assert "numpy" in line
    assert "6.70, was 8.00" in line
    assert len(baseline.fallen(a_report(fastae=1.2, numpy=8, torch=4), ratios)) == 3, (
        "both peers and the peak"
    )


def test_a_fall_counts_only_when_it_is_measured_twice(monkeypatch, tmp_path):
    monkeypatch.setattr(baseline, "FILE", tmp_path / "baseline.json")
    baseline.FILE.write_text("{}")
    assert baseline.check([SMALL]) is None, "no baseline of this machine"
    earlier = a_report(fastae=1, numpy=8)
    earlier.machine.update({name: baseline.describe()[name] for name in ("target", "features", "threads")})
    baseline.keep(earlier)
    for second, wanted in ((8.0, 0), (5.0, 2)):
        measured = iter([a_report(fastae=1, numpy=5), a_report(fastae=1, numpy=second)])
        monkeypatch.setattr(baseline.Report, "run", lambda cases, tell, measured=measured: next(measured))
        lines = baseline.check([SMALL])
        assert len(lines) == wanted, "the ratio, and that versions changed"
    assert "numpy 2.0 -> " in lines[-1]


def test_arguments_choose_cases():
    assert chosen(CASES, []) == CASES
    assert [case.n for case in chosen(CASES, ["n=30-", "n=784-k=64"])] == [30, 784]
    with pytest.raises(
        ValueError, match="no case 'n=31-': an argument is part of one of m=200000-n=10-k=3-f32"
    ):
        chosen(CASES, ["n=30-", "n=31-"])


@pytest.mark.parametrize("module", ["stages", "baseline"])
def test_an_unknown_case_is_refused(module):
    done = run([sys.executable, "-m", f"fastae.bench.{module}", "n=31-"])
    assert done.returncode != 0
    assert "no case 'n=31-'" in done.stderr
    assert not done.stdout


def test_the_baseline_ships_and_is_of_the_cases():
    assert baseline.FILE.parent == Path(bench.__file__).parent
    stored = baseline.stored()
    assert stored
    for entry in stored.values():
        assert set(entry["ratios"]) == {case.id for case in CASES}
        for ratios in entry["ratios"].values():
            assert set(ratios) >= {"peak", "torch"}
            assert min(ratios.values()) > 0
            assert ratios["peak"] < 1


def test_the_cost_model_of_several_machines_is_fitted():
    from fastae.bench import distributed

    a, b, out, c, back = 2e-4, 5e-4, 1 / 1.2e9, 1e-5, 1 / 4e9
    measured = {}
    for name, size in distributed.SIZES.items():
        for workers in (1, 2, 4):
            traffic = workers * distributed.size_in_bytes(*size)
            without = a + b * workers + out * traffic
            rounds = -(-workers // distributed.available_cpus())
            whole = without + c * workers + back * traffic + rounds * 3e-3
            measured[workers, name] = {"no rows": without, "whole": whole, "one thread": 3e-3}
    fitted = distributed.fit(measured)
    assert fitted[0] == pytest.approx([a, b, out], rel=1e-6)
    assert fitted[1] == pytest.approx([c, back], rel=1e-6)
