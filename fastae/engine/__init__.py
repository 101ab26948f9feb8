"""One machine, one batch: losses, gradients, codes and reconstructions, computed by threads in jitted kernels.

engine.py        Engine: the public calls
runner.py        the kernels, memory and threads of an engine: cuts a job into items, chooses its threads, runs it
activations.py   activations and deltas of chosen layers, by name
prepared.py      a call that is prepared once and made many times
jobs.py          describes a call to the kernels: fills a job's record from arrays, optimizer and objective
crew.py          the threads that work on a job: wakes them, times them, handles Ctrl-C
turn.py          one call of an engine at a time
thread_count.py  how many threads are fastest for one kind of step, found by trying
thread_pool.py   the idle threads of the process, and how many CPUs it may use
nearest.py       the nearest of many points to each row, as units of a linear layer
many.py          errors and reconstructions of many networks; checks of arguments that are one per network
side_by_side.py  tasks that one thread each does, such as training one of many networks
warmup.py        compiles all kernels ahead of use
"""

from fastae.engine.engine import Engine
from fastae.engine.many import errors_many, reconstruct_many
from fastae.engine.prepared import PreparedCall

__all__ = ["Engine", "PreparedCall", "errors_many", "reconstruct_many"]
