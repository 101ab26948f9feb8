"""One machine, one batch: losses, gradients, codes and reconstructions, computed by threads in jitted kernels.

engine.py        Engine: the public calls, and the memory that they share
jobs.py          what the kernels are told: a job's record, filled from arrays, optimizer and objective
crew.py          the threads that work on a job: opened, woken, timed, interrupted
thread_count.py  how many threads are fastest for one kind of step, found by trying
thread_pool.py   the process's idle threads, and how many CPUs it may use
warmup.py        compiling all kernels ahead of use
"""

from fastae.engine.engine import Engine

__all__ = ["Engine"]
