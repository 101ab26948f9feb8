"""The machine's two ceilings, as the total rate of all threads.

FMA: independent accumulators in registers, without memory accesses. Sigmoid: the kernels' own, over an array that stays
in L1. ``python -m fastae.bench.probe`` prints both by dtype and thread count.
"""

import statistics
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np

from fastae.engine import thread_pool
from fastae.kernels import activations, elementary
from fastae.kernels.compiler import jitted
from fastae.kernels.layout import LINE
from fastae.kernels.simd import vector_kernel
from fastae.kernels.target import TARGET

# Lines of accumulators that fit in registers beside two operands: 24 zmm, 12 ymm, 24 NEON q or 12 xmm registers. Two
# FMA pipes of latency 4 or 5 need 8 to 10.
ACCUMULATORS = {"avx512": 24, "avx2": 6, "neon": 6, "generic": 3}[TARGET.isa]
TURN = 3e-3  # seconds per reading
STEADY = 1.15  # largest ratio of readings on undisturbed cores


def _write_spin(words, out, count):
    """Repeat acc = acc x + y `count` times in every accumulator; x = 1/2 and y = 1 are read from `out`."""
    x, y = words.broadcast(out), words.broadcast(words.offset(out, words.itemsize))

    def one(*accumulators):
        return [words.fma(accumulator, x, y) for accumulator in accumulators]

    start = [words.load(words.offset(out, (i + 1) * LINE)) for i in range(ACCUMULATORS)]
    for i, accumulator in enumerate(words.loop(count, start, one)):
        words.store(accumulator, words.offset(out, (i + 1) * LINE))


_spin_words = vector_kernel(_write_spin)


@jitted
def _spin(out, count):
    _spin_words(out, (out.ctypes.data, count))


_sigmoid_words = activations._elementwise(lambda words, z: (elementary.sigmoid(words, z),))


@jitted
def _sigmoid(z, h, count):
    for _ in range(count):
        _sigmoid_words(z, (h.ctypes.data, z.ctypes.data, z.size))


def _spinner(dtype: str) -> tuple[Callable[[int], Any], float]:
    """One thread's rounds of FMAs, and the FLOPs per round."""
    lanes = LINE // np.dtype(dtype).itemsize
    array = np.zeros((ACCUMULATORS + 2) * lanes, dtype)
    skip = -array.ctypes.data % LINE // array.itemsize
    array = array[skip : skip + (ACCUMULATORS + 1) * lanes]
    array[:2] = 0.5, 1.0
    return partial(_spin, array), 2.0 * lanes * ACCUMULATORS


def _sigmoid_spinner(dtype: str) -> tuple[Callable[[int], Any], float]:
    """One thread's rounds over 4 kB of sigmoids, and the sigmoids per round."""
    z = np.linspace(-8, 8, 4096 // np.dtype(dtype).itemsize).astype(dtype)
    return partial(_sigmoid, z, np.empty_like(z)), float(z.size)


_SPINNERS = {"fma": _spinner, "sigmoid": _sigmoid_spinner}


class Probe:
    """Readings of a ceiling for `n_threads` threads in `dtype`: `of` is "fma" (GF/s) or "sigmoid" (1e9 sigmoids/s).

    A call takes a reading, ``probe(times)`` one that lasts so many times as long; `work` is what a short one does, in
    1e9 operations. ``median`` is the median of all readings so far.
    """

    def __init__(
        self,
        n_threads: int = 1,
        dtype: Literal["float32", "float64"] = "float32",
        of: Literal["fma", "sigmoid"] = "fma",
    ) -> None:
        self.n_threads, self.readings = n_threads, list[float]()
        spinners = [_SPINNERS[of](dtype) for _ in range(n_threads)]
        self._spins, work = [spin for spin, _ in spinners], spinners[0][1]
        self._spins[0](1)
        start = time.perf_counter()
        self._spins[0](2000)
        self._count = max(100, int(2000 * TURN / (time.perf_counter() - start)))
        self.work = n_threads * self._count * work / 1e9

    def __call__(self, times: int = 1) -> float:
        spans: list[tuple[float, float]] = []
        together = threading.Barrier(self.n_threads)

        def work(member: int) -> None:
            together.wait()
            start = time.perf_counter()
            self._spins[member](self._count * times)
            spans.append((start, time.perf_counter()))
            together.wait()

        for member in range(1, self.n_threads):
            thread_pool.lend(partial(work, member))
        work(0)
        seconds = max(end for _, end in spans) - min(start for start, _ in spans)
        self.readings.append(times * self.work / seconds)
        return self.readings[-1]

    @property
    def median(self) -> float:
        return statistics.median(self.readings)

    @property
    def disturbed(self) -> bool:
        """Whether other work shared the cores, so that shares of the median are too high; see ``disturbed``."""
        return disturbed(self.readings)


def disturbed(rates: Sequence[float]) -> bool:
    """Whether the best of these readings, or the 90th percentile, is over 15% above their median or 10th percentile."""
    tenths = statistics.quantiles(rates, n=10, method="inclusive") if len(rates) > 1 else rates
    return max(rates) > STEADY * statistics.median(rates) or tenths[-1] > STEADY * tenths[0]


def against_peak(benchmark: Any, run: Callable[[], Any], flops: float, probe: Probe, rounds: int = 25) -> Any:
    """Time `run` in turn with readings of the peak, A B A B; GF/s and share go to the benchmark's extra_info.

    Returns the last result of `run`.
    """
    if benchmark.enabled:
        for _ in range(3):
            run()
    else:
        rounds = 1
    result = benchmark.pedantic(run, setup=lambda: probe() and None, rounds=rounds)
    if benchmark.enabled:
        median = benchmark.stats.stats.median
        rate = flops / median / 1e9
        benchmark.extra_info.update(
            threads=probe.n_threads,
            gflops=rate,
            peak_gflops=probe.median,
            disturbed=probe.disturbed,
            share_of_peak=rate / probe.median,
        )
    return result


if __name__ == "__main__":
    for dtype in ("float32", "float64"):
        for n_threads in range(1, thread_pool.available_cpus() + 1):
            for probe, unit in (
                (Probe(n_threads, dtype, "fma"), "GF/s"),
                (Probe(n_threads, dtype, "sigmoid"), "billion sigmoids/s"),
            ):
                for _ in range(50):
                    probe()
                print(
                    f"{dtype}  {n_threads} threads  {probe.median:7.2f} {unit}  (best {max(probe.readings):.2f}"
                    f"{', disturbed' * probe.disturbed})"
                )
