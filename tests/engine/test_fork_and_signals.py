"""Forked children and Ctrl-C: the engine works on, and its results stay right."""

import logging
import os
import threading

import numpy as np
import pytest
from engines import autoencoder, bits
from numba.core.compiler_lock import global_compiler_lock
from processes import answer_of_fork, run_python
from threads import pretend_cpus, replace

import fastae
from fastae.engine import thread_pool
from fastae.kernels import compiler, fork, step
from fastae.kernels.compiler import jitted

posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")
forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@forks
def test_works_in_a_forked_child_after_the_parent_used_its_crew():
    engine, parameters, X = autoencoder(m=20_000, n_threads=3)
    wanted = bits(engine.loss_and_gradient(parameters, X))
    assert answer_of_fork(lambda: bits(engine.loss_and_gradient(parameters, X))) == wanted
    assert bits(engine.loss_and_gradient(parameters, X)) == wanted


@forks
def test_works_in_a_child_forked_while_another_thread_uses_the_engine():
    engine, parameters, X = autoencoder(m=60_000)
    wanted = bits(engine.loss_and_gradient(parameters, X))
    stop = threading.Event()

    def use():
        while not stop.is_set():
            engine.loss_and_gradient(parameters, X)

    user = threading.Thread(target=use)
    user.start()
    try:
        for _ in range(3):
            assert answer_of_fork(lambda: bits(engine.loss_and_gradient(parameters, X))) == wanted
    finally:
        stop.set()
        user.join()


@forks
@pytest.mark.parametrize("lock", [fork.importing, global_compiler_lock], ids=["importing", "compiling"])
def test_works_in_a_child_forked_while_another_thread_imports_the_compiler_or_compiles(lock):
    """With the lock's owner gone, the child would wait for it forever; so the fork waits for the owner."""
    locked, forked = threading.Event(), threading.Event()

    def compile_slowly():
        with lock:
            locked.set()
            forked.wait(0.3)  # for nothing, unless the fork does not wait
            logging.getLogger(f"takes the lock of logging {lock}")

    def compile_in_child():
        engine = fastae.Engine(parameters.network, 1)
        return bits(engine.loss_and_gradient(parameters, X)) + bytes([jitted(lambda x: x + 1)(2)])

    engine, parameters, X = autoencoder(m=100)
    wanted = bits(engine.loss_and_gradient(parameters, X)) + b"\3"
    other = threading.Thread(target=compile_slowly)
    other.start()
    assert locked.wait(60)
    try:
        assert answer_of_fork(compile_in_child) == wanted
    finally:
        forked.set()
        other.join()


@forks
def test_a_kernel_can_be_loaded_in_a_child_forked_while_another_thread_loads_one(monkeypatch):
    """Nothing that the other thread held stays held in the child."""
    loading, forked = threading.Event(), threading.Event()

    class Loaded:
        def __init__(self, function, element):
            loading.set()
            forked.wait(60)
            self.call = function

    monkeypatch.setattr(compiler, "_CFunction", Loaded)
    monkeypatch.setattr(compiler, "registry", [])
    first, second = compiler.kernel(lambda: b"first"), compiler.kernel(lambda: b"second")
    other = threading.Thread(target=first.loaded)
    other.start()
    assert loading.wait(60)

    def load_in_child():
        forked.set()
        return second() + first()

    try:
        assert answer_of_fork(load_in_child, seconds=10) == b"secondfirst"
    finally:
        forked.set()
        other.join()


# A job that takes minutes, interrupted while it is under way; then the same engine computes as before.
LONG = """
    import os, signal, threading, time
    import numpy as np, fastae
    signal.signal(signal.SIGINT, signal.default_int_handler)
    network = fastae.Network(({n}, {k}, {n}), ("sigmoid", "identity"))
    engine, parameters = fastae.Engine(network, {n_threads}), fastae.Parameters.random(network)
    rng = np.random.default_rng(0)
    X = np.broadcast_to(rng.normal(size=(1, {n})).astype("f4"), ({m}, {n}))
    small = rng.normal(size=(1000, {n})).astype("f4")
    loss, gradient = engine.loss_and_gradient(parameters, small)

    def interrupt():
        time.sleep(0.3)
        for _ in range({times}):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.005)

    def call():
        try:
            engine.{method}(parameters, X)
            return "finished"
        except KeyboardInterrupt:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # the interrupts that are left
            return "interrupted"

    interrupts = threading.Thread(target=interrupt)
    interrupts.start()
    try:
        outcome = call()
    except KeyboardInterrupt:  # a further one, just before the others were ignored
        outcome = "interrupted"
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    interrupts.join()
    print(outcome)
    for _ in range(3):
        again, same = engine.loss_and_gradient(parameters, small)
        assert again == loss and (same.flat == gradient.flat).all()
"""


@posix
@pytest.mark.parametrize("n_threads", [1, 2])
@pytest.mark.parametrize(
    ("method", "n", "m"), [("loss_and_gradient", 64, 10**10), ("encode", 4096, 40_000_000)]
)
def test_ctrl_c_ends_a_job_that_is_under_way(method, n, m, n_threads):
    out = run_python(LONG.format(n=n, k=1, m=m, n_threads=n_threads, method=method, times=1))
    assert out.split() == ["interrupted"]


@posix
def test_ctrl_c_several_times_over():
    out = run_python(LONG.format(n=64, k=16, m=10**10, n_threads=3, method="loss_and_gradient", times=5))
    assert out.split() == ["interrupted"]


# Steps that signals interrupt again and again, 20 us apart, wherever Python is in the engine: also while it handles an
# interrupt. Then the parameters are those after a whole number of steps, and no helper changes them any more.
STORM = """
    import signal, time
    import numpy as np, fastae
    from fastae.engine import thread_pool, warmup
    from fastae.optimizers import State
    warmup.warm_up()  # Numba itself does not bear interrupts
    thread_pool.available_cpus = lambda: 3
    network = fastae.Network.autoencoder(30, 8)
    engine, start = fastae.Engine(network, {n_threads}), fastae.Parameters.random(network, 0)
    rng = np.random.default_rng(0)
    X, steps = rng.random((1000, 30), np.float32), 200

    def take(steps, params, state):
        rates = np.full(steps, 1e-3)
        gradient = fastae.Parameters(network)
        engine.run_steps(params, X, gradient=gradient, rates=rates, optimizer=fastae.Adam(), state=state)

    def interrupt(number, frame):
        if frame.f_code is interrupt.__code__:  # on a busy machine, it would interrupt itself without end
            return
        while frame is not None:
            if "fastae" in frame.f_code.co_filename:
                raise KeyboardInterrupt
            frame = frame.f_back

    params = start.copy()
    state, whole = State.zeros(params), [start.flat.tobytes()]
    for state.steps in range(steps):
        take(1, params, state)
        whole.append(params.flat.tobytes())
    signal.signal(signal.SIGALRM, interrupt)
    taken = []
    for _ in range(80):
        params = start.copy()
        state, flat = State.zeros(params), params.flat  # fastae's code may still be interrupted by the last signal
        signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-4, 4e-3), 2e-5)
        try:
            take(steps, params, state)
        except KeyboardInterrupt:
            pass
        signal.setitimer(signal.ITIMER_REAL, 0)
        taken.append(whole.index(flat.tobytes()))
        time.sleep(0.002)
        assert flat.tobytes() == whole[taken[-1]], "a helper still takes steps"
    print(sum(0 < count < steps for count in taken))
"""


@posix
@pytest.mark.parametrize("n_threads", [1, 3])
def test_ctrl_c_at_any_time_leaves_whole_steps(n_threads):
    interrupted_within = int(run_python(STORM.format(n_threads=n_threads)))
    assert interrupted_within > 10, "hardly any job was interrupted between its first step and its last"


def interrupted(function, before=False):
    """`function`, with Ctrl-C handled right after it, or right `before`, the first time; and the calls of it."""
    calls = []

    def call(*arguments):
        calls.append(arguments)
        if before and len(calls) == 1:
            raise KeyboardInterrupt
        function(*arguments)
        if len(calls) == 1:
            raise KeyboardInterrupt

    return call, calls


def test_ctrl_c_while_helpers_are_woken_loses_none(monkeypatch):
    pretend_cpus(monkeypatch, 3)
    engine, parameters, X = autoencoder(m=100_000, n_threads=3)  # large: on all threads
    wanted = bits(fastae.Engine(engine.network, 1).loss_and_gradient(parameters, X))
    lend, calls = interrupted(thread_pool.lend, before=True)
    replace(monkeypatch, "lend", lend)
    with pytest.raises(KeyboardInterrupt):
        engine.loss_and_gradient(parameters, X)
    assert bits(engine.loss_and_gradient(parameters, X)) == wanted
    assert len(calls) == 1 + 2


def test_ctrl_c_when_a_job_was_just_opened_does_not_open_it_again(monkeypatch):
    engine, parameters, X = autoencoder(m=20_000, n_threads=2)
    wanted = bits(engine.loss_and_gradient(parameters, X))
    open_job, calls = interrupted(step.open_job)
    monkeypatch.setattr(step, "open_job", open_job)
    with pytest.raises(KeyboardInterrupt):
        engine.loss_and_gradient(parameters, X)
    assert len(calls) == 1
    assert bits(engine.loss_and_gradient(parameters, X)) == wanted


@posix
@pytest.mark.parametrize("method", ["loss_and_gradient", "reconstruct"])
def test_a_signal_handler_that_uses_the_working_engine_gets_an_error(method):
    """It could only wait for the call that it interrupts: forever."""
    out = run_python(f"""
        import os, signal, threading, time
        import numpy as np, fastae
        engine = fastae.Engine(fastae.Network.autoencoder(64, 16), 2)
        parameters, X = fastae.Parameters.random(engine.network), np.zeros((1000, 64), "f4")
        engine.{method}(parameters, X)
        large = np.broadcast_to(X[:1], (10**10, 64)) if {method == "loss_and_gradient"} else np.zeros((10**6, 64), "f4")

        def handle(*_):
            try:
                engine.{method}(parameters, X)
            except RuntimeError as error:
                print(error)
                raise KeyboardInterrupt from None

        signal.signal(signal.SIGALRM, handle)
        signal.setitimer(signal.ITIMER_REAL, 0.005, 0.005)
        try:
            while True:
                engine.{method}(parameters, large)
        except KeyboardInterrupt:
            signal.setitimer(signal.ITIMER_REAL, 0)
        engine.{method}(parameters, X)
        threading.Thread(target=engine.{method}, args=(parameters, X)).run()
        print("works")
    """)
    lines = out.splitlines()
    assert lines[-1] == "works"
    assert lines[0].startswith("this engine is computing in the same thread")


def test_an_index_that_is_changed_during_a_call_is_that_of_its_beginning(monkeypatch):
    engine, parameters, X = autoencoder(m=200_000, n_threads=2)
    index, changes = np.arange(len(X)), []
    wanted = bits(fastae.Engine(engine.network, 1).loss_and_gradient(parameters, X))
    lend = thread_pool.lend

    def change_and_lend(work):  # as another thread might, while the job is open
        index[:] = 10**15
        changes.append(True)
        lend(work)

    replace(monkeypatch, "lend", change_and_lend)
    assert bits(engine.loss_and_gradient(parameters, X, index=index)) == wanted
    assert changes
