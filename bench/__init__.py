"""Benchmarks of fastae, each beside its peers or the NumPy reference: pytest-benchmark suites and their report.

Run from a clone with ``pytest bench``; its modules are imported as ``fastae.bench``. There is no guard against the
name ``bench``, as in kernels/, for pytest loads this folder by it.
"""
