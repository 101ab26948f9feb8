"""The cost of a step over Dask workers, compared with the same step on one machine, and a prediction for more workers.

``python -m fastae.bench.distributed`` measures worker processes of this machine, each with one thread, with parameters
of 24 KB and 2.8 MB, and fits this model:

    broadcast(w, S) = a + b w + S w / out      send parameters of S bytes to w workers: a step without rows
    reduce(w, S)    =     c w + S w / back     return one sum per worker and add them up: the rest of the overhead
    compute(w)      = rows / (w rate)          at the rate of one thread of this machine

The last table is a prediction of this model, not a measurement. It assumes links of --gbits at most.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.optimize import nnls

import fastae
from fastae.distributed.partitions import LocalEngine, StepRequest
from fastae.engine.thread_pool import available_cpus

SIZES = {"24 KB": (64, 16), "2.8 MB": (784, 64)}  # n and k
PREDICTED = {**SIZES, "80 MB": (4096, 512)}
ROWS = 1024  # per worker
NO_ROWS = StepRequest(0, 10**9)


def measure(workers: int, n: int, k: int, seconds: float) -> dict[str, float]:
    """Seconds of a step without rows, over Dask, on this machine, and on one thread with the rows of one worker."""
    import dask.array as da
    from dask.distributed import Client, LocalCluster

    from fastae.distributed import DistributedEngine

    X = np.random.default_rng(0).random((workers * ROWS, n), dtype=np.float32)
    network = fastae.Network.autoencoder(n, k)
    params = fastae.Parameters.random(network)
    alone = LocalEngine(network, [X[:ROWS]], n_threads=1)
    together = LocalEngine(network, np.split(X, workers), n_threads=min(workers, available_cpus()))
    quiet = {"dashboard_address": None, "silence_logs": 50}
    with (
        LocalCluster(n_workers=workers, threads_per_worker=1, **quiet) as cluster,
        Client(cluster, direct_to_workers=True) as client,
    ):
        engine = DistributedEngine(client, network, da.from_array(X, chunks=(ROWS, -1)))
        ours, wanted = (each.sums(params.flat, StepRequest()) for each in (engine, together))
        assert ours is not None
        assert wanted is not None
        assert ours.gradient.tobytes() == wanted.gradient.tobytes()
        steps = {
            "no rows": lambda: engine._ask(engine._held, params.flat, NO_ROWS),
            "whole": lambda: engine._ask(engine._held, params.flat, StepRequest()),
            "one machine": lambda: together.sums(params.flat, StepRequest()),
            "one thread": lambda: alone.sums(params.flat, StepRequest()),
        }
        return _in_turn(steps, seconds)


def _in_turn(steps: dict[str, Callable[[], Any]], seconds: float) -> dict[str, float]:
    spent: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        step()
    start = time.perf_counter()
    while time.perf_counter() - start < seconds or len(spent["whole"]) < 10:
        for name, step in steps.items():
            began = time.perf_counter()
            step()
            spent[name].append(time.perf_counter() - began)
    return {name: statistics.median(taken) for name, taken in spent.items()}


def size_in_bytes(n: int, k: int) -> int:
    """Size of the flat parameter buffer, in float32."""
    return int(fastae.Parameters(fastae.Network.autoencoder(n, k)).flat.nbytes)


def fit(measured: dict[tuple[int, str], dict[str, float]]) -> tuple[np.ndarray, np.ndarray]:
    """(a, b, 1/out) and (c, 1/back), all non-negative, by least squares of the relative errors."""
    out, back = [], []
    for (workers, name), took in measured.items():
        traffic = workers * size_in_bytes(*SIZES[name])
        out.append(([1.0, workers, traffic], took["no rows"]))
        rounds = -(-workers // available_cpus())  # workers share the CPUs of this machine
        back.append(
            ([workers, traffic], max(took["whole"] - took["no rows"] - rounds * took["one thread"], 1e-6))
        )
    coefficients = []
    for rows in (out, back):
        design = np.array([np.array(columns) / seconds for columns, seconds in rows])
        scale = np.abs(design).max(axis=0)
        coefficients.append(nnls(design / scale, np.ones(len(rows)))[0] / scale)
    return coefficients[0], coefficients[1]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="worker counts to measure")
    parser.add_argument("--seconds", type=float, default=4.0, help="seconds per measurement")
    parser.add_argument(
        "--gbits", type=float, default=10.0, help="speed of the cluster's links in Gbit/s, for the prediction"
    )
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows per step, for the prediction")
    asked = parser.parse_args()

    print(f"measured on {available_cpus()} CPUs: {ROWS} rows and one thread per worker; median ms per step")
    print(f"{'parameters':>10} {'workers':>8} {'Dask':>8} {'here':>8} {'overhead':>9} {'without rows':>13}")
    measured, rates = {}, {}
    for name, (n, k) in SIZES.items():
        for workers in asked.workers:
            took = measured[workers, name] = measure(workers, n, k, asked.seconds)
            rates[name] = ROWS * (10 * n * k + 6 * n * n) / took["one thread"]
            ms = {key: 1e3 * value for key, value in took.items()}
            print(
                f"{name:>10} {workers:8} {ms['whole']:8.2f} {ms['one machine']:8.2f}"
                f" {ms['whole'] - ms['one machine']:9.2f} {ms['no rows']:13.2f}"
            )
    (a, b, out), (c, back) = fit(measured)
    print(
        f"\nfitted: broadcast = {a * 1e3:.2f} ms + {b * 1e3:.2f} ms w + S w / {1e-9 / max(out, 1e-15):.2g} GB/s"
    )
    print(f"        reduce    = {c * 1e3:.2f} ms w + S w / {1e-9 / max(back, 1e-15):.2g} GB/s")
    link = 8e-9 / asked.gbits
    print(
        f"\npredicted, not measured: a step of {asked.rows:,} rows over links of {asked.gbits:g} Gbit/s, one thread "
        "per worker\nms per step: compute + broadcast + reduce (speed relative to one thread)"
    )
    print(f"{'workers':>8}" + "".join(f"{name:>38}" for name in PREDICTED))
    rate = max(rates.values())
    for workers in (2**i for i in range(1, 9)):
        line = f"{workers:8}"
        for name, (n, k) in PREDICTED.items():
            size, flops = size_in_bytes(n, k), asked.rows * (10 * n * k + 6 * n * n)
            whole = flops / rates.get(name, rate)
            parts = (
                whole / workers,
                a + b * workers + size * workers * max(out, link),
                c * workers + size * workers * max(back, link),
            )
            text = " + ".join(f"{1e3 * part:.1f}" for part in parts)
            line += f"{text + f' ({whole / sum(parts):.1f}x)':>38}"
        print(line)


if __name__ == "__main__":
    main()
