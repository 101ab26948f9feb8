"""Benchmarks of fastae, each beside its peers or the NumPy reference: pytest-benchmark suites and their report.

Run from a clone with ``pytest fastae/bench --benchmark-enable``; importable only as ``fastae.bench``.
"""

if __name__ != "fastae.bench":
    raise ImportError("import fastae.bench: this package has no top-level name 'bench'")
