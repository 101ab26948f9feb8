"""Benchmarks of fastae, each beside its peers or the NumPy reference: pytest-benchmark suites, and ``fastae bench``.

A map, from the command down:

    report.py       every case, as tables, Markdown and JSON; pictures.py draws it, baseline.py holds it to its past
    compare.py      one case: our step and the peers', checked, then timed in turn under two ceilings
    rounds.py       contenders in turn, A B A B, rested and on their own threads (pools.py)
    step_peers.py   one loss and gradient by NumPy, scikit-learn, torch and JAX; epoch_peers.py: an epoch of Adam
    cases.py        the nine networks, their data, the check of a gradient
    probe.py        the ceilings: FMA peak and sigmoids
    machine.py      what a figure depends on: CPU, threads, load, versions
    bench_*.py      ``pytest bench``: kernels, step, epoch, fit, startup, scaling
    stages.py       where a step's time goes: ``python -m fastae.bench.stages``

There is no guard against the name ``bench``, as in kernels/, for pytest loads this folder by it.
"""
