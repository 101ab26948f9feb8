"""Memory: results are the caller's own, no more is used for more rows, and an engine is freed with all of it."""

import gc
import sys
import time
import weakref

import numpy as np
import pytest
from engines import autoencoder
from processes import run_python

from fastae.kernels import layout


def test_results_are_the_callers_own():
    engine, parameters, X = autoencoder()
    first, (_, gradient) = engine.reconstruct(parameters, X), engine.loss_and_gradient(parameters, X)
    before, flat = first.copy(), gradient.flat.copy()
    engine.reconstruct(parameters, -X)
    engine.loss_and_gradient(parameters, -X)
    np.testing.assert_array_equal(first, before)
    np.testing.assert_array_equal(gradient.flat, flat)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")
def test_peak_extra_memory_does_not_grow_with_the_rows(tmp_path):
    """A sparse file of float64 rows, mapped: its own pages are counted apart, as shared ones."""
    out = run_python(
        f"""
        import numpy as np, fastae
        network = fastae.Network.autoencoder(256, 2)
        engine, parameters = fastae.Engine(network, 2), fastae.Parameters.random(network)
        X = np.memmap({str(tmp_path / "x")!r}, "f8", "w+", shape=(400_000, 256))  # 819 MB, none of it written

        def own():  # kB of anonymous memory
            with open("/proc/self/status") as status:
                return int(next(line for line in status if line.startswith("RssAnon")).split()[1])

        import threading, time
        engine.loss_and_gradient(parameters, X[:40_000])
        before = peak = own()
        done = threading.Event()

        def watch():
            global peak
            while not done.wait(0.005):
                peak = max(peak, own())

        watcher = threading.Thread(target=watch)
        watcher.start()
        engine.loss_and_gradient(parameters, X[:100_000])
        engine.loss_and_gradient(parameters, X[:100_000, ::-1])
        engine.encode(parameters, X)  # 3.2 MB of codes
        done.set()
        watcher.join()
        print(peak - before)
        """
    )
    assert int(out) < 10_000, f"{out.strip()} kB more for 205 MB of rows"


def test_engine_is_freed_with_its_memory(monkeypatch):
    buffers, plain = [], layout.aligned_zeros

    def aligned_zeros(size, dtype):
        array = plain(size, dtype)
        buffers.append(weakref.ref(array.base))  # the memory that all views are of
        return array

    monkeypatch.setattr(layout, "aligned_zeros", aligned_zeros)
    engine, parameters, X = autoencoder(m=9000, n_threads=3)
    engine.loss_and_gradient(parameters, X)
    buffers.append(weakref.ref(engine))
    del engine, parameters
    until = time.monotonic() + 60  # helpers may still be at work
    while any(buffer() is not None for buffer in buffers) and time.monotonic() < until:
        gc.collect()
        time.sleep(0.01)
    assert len(buffers) > 3
    assert sum(buffer() is not None for buffer in buffers) == 0


def test_import_loads_neither_numba_nor_scikit_learn():
    out = run_python(
        """
        import sys, fastae
        fastae.Parameters.random(fastae.Network.autoencoder(4, 2))
        fastae.reference, fastae.Engine, fastae.check_gradients
        print(sorted({"numba", "llvmlite", "sklearn", "matplotlib", "pandas"} & set(sys.modules)))
        """
    )
    assert out.strip() == "[]"


def test_import_and_a_first_step_load_no_module_of_python_and_numpy_that_takes_long():
    out = run_python(
        """
        import sys, fastae
        early = {"importlib.abc", "importlib.resources", "numpy"} & set(sys.modules)
        import numpy as np
        known = set(sys.modules)
        from fastae.checks import check_matrix
        check_matrix(np.ones((9, 4)), 4, "X")
        print(sorted(early), "numpy.ma" in set(sys.modules) - known)
        """
    )
    assert out.strip() == "[] False"
