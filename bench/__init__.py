"""Benchmarks of fastae beside other libraries or the NumPy reference: ``fastae bench`` and pytest-benchmark suites.

A map, from the command down:

    report.py       all cases as tables, Markdown and JSON; as a picture: pictures.py; against earlier runs: baseline.py
    compare.py      one case: fastae and the peers, checked, then timed in turn with two ceilings
    rounds.py       timing in turn, A B A B, after a rest; pools.py sets thread counts
    cases.py        what is timed: networks, data, the check of a result
    peer.py         what a peer is; peers.py: the peers of each kind of case, from
    step_peers.py   one loss and gradient in NumPy, scikit-learn, torch and JAX; mkl.py: NumPy's products by MKL;
                    libtorch.py: a C++ program
    epoch_peers.py  epochs of Adam, also in Keras; many_peers.py: of many networks at once
    quality_report.py  ``fastae bench --quality``: seconds to a good model, as tables, Markdown and JSON
    quality.py      one data set: error against seconds for fastae and the peers, in turn; compilation in new processes
    quality_peers.py   whole trainings in each library; quality_cases.py: the data sets, and their best known errors
    scaling.py      the scaling curve, time against threads: ``python -m fastae.bench.scaling``; measured by curve.py
    scaling_model.py  predicted times on 1 to 192 threads: ``python -m fastae.bench.scaling_model``
    detection.py    AUROC of detectors on labelled sets: ``python -m fastae.bench.detection``
    distributed.py  the cost of a step over Dask workers: ``python -m fastae.bench.distributed``
    probe.py        the ceilings: FMA peak and sigmoid rate
    machine.py      what figures depend on: CPU, threads, load, versions
    stages.py       where a step's time goes: ``python -m fastae.bench.stages``
    suite/          ``pytest bench``: kernels, step, epoch, fit, startup, scaling; in the checkout and the sdist only

Unlike kernels/, this package may be imported as ``bench``: pytest loads the folder under that name.
"""
