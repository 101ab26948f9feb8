"""Runner: the kernels, the memory and the threads of an engine, which runs jobs with them.

What a job is told is in ``jobs.py``, how a crew of threads works on it in ``crew.py``. No arithmetic is here.
"""

import ctypes
import os
import warnings
import weakref
from functools import cache
from typing import Any, Literal

import numpy as np

from fastae.engine import jobs, thread_pool
from fastae.engine.crew import Crew
from fastae.engine.thread_count import ThreadCount
from fastae.engine.turn import Turn
from fastae.kernels import fork, layout
from fastae.kernels import job as fields
from fastae.kernels.job import Job
from fastae.kernels.layout import address
from fastae.kernels.rounding import round_up
from fastae.network import DType, Network, Parameters, check_dtype

SMALL_JOB = 4e6  # FLOPs up to which a job stays on the calling thread
LARGE_STEP = 100e6  # FLOPs of a step per thread above which all threads are used, unless they lack CPUs
KINDS_MOST = 100  # kinds of jobs for which an engine keeps a thread count
FIRST_CALL = 2e7  # rows times weights that a job's first jitted call processes, before its speed is known


class Runner:
    """Makes jobs for one network and runs them, one at a time. The parameters are those of ``Engine``.

    Methods that run a job or cut one into items are called in ``with runner.turn.take()``.

    Attributes
    ----------
    network, n_threads, dtype
        As of ``Engine``.
    most_threads : int
        Threads that take part in a job at most: `n_threads`, or the CPUs of this process if these are fewer.
    plan : ndarray of LAYER (layers,)
        The network's layers, as kernels see them (kernels/layout.py).
    size : int
        Elements of a flat buffer.
    forms : list of Form
        The forms of products that the dtype has. The first of them supports every job.
    blanks : dict of Form to Job
        For each form, the fields that all its jobs share; ``job_for`` adds the addresses of functions.
    turn : Turn
        Lets one call at a time pass.
    crew : Crew
        The threads.
    is_dirty : callable
        is_dirty(flat, plan): whether the padding of a flat buffer is not zero.
    kept, deltas : ndarray
        What a job that is cut by weights leaves of its last slab: see the fields of these names in kernels/job.py.
    memory_version : int
        Changes whenever memory that ``cut`` gave to a job is replaced: that job has to be cut again.
    """

    def __init__(
        self, network: Network, n_threads: int | None = None, dtype: DType | Literal["bfloat16"] = "float32"
    ) -> None:
        if not isinstance(network, Network):
            raise TypeError(f"network must be a Network, got {type(network).__name__}")
        if n_threads is None:
            n_threads = thread_pool.available_cpus()
        if isinstance(n_threads, bool) or not isinstance(n_threads, (int, np.integer)):
            raise TypeError(f"n_threads must be an integer or None, got {n_threads!r}")
        if n_threads < 1:
            raise ValueError(f"n_threads must be at least 1, got {n_threads}")
        in_bfloat16 = isinstance(dtype, str) and dtype == "bfloat16"
        self.network, self.n_threads = network, int(n_threads)
        # More threads than CPUs are never faster: a thread that others wait for may itself wait for a CPU.
        self.most_threads = min(self.n_threads, thread_pool.available_cpus())
        self.dtype = check_dtype("float32" if in_bfloat16 else dtype)

        with fork.importing:  # here, not above: LLVM is loaded when the first engine is created
            from fastae.kernels import forms, padding, split, step, stretch, tile
            from fastae.kernels.target import TARGET

        self.forms = forms.forms_of("bfloat16" if in_bfloat16 else self.dtype.name)
        if not self.forms:
            raise RuntimeError(
                f"dtype bfloat16 requires a CPU with AVX512_BF16, but kernels are compiled for {TARGET.cpu}"
            )
        if in_bfloat16 and not TARGET.bfloat16_pays:
            kind = network.widths, 1, 0, self.dtype
            if not forms.choose(self.forms, *kind, linear=True, codes=False).on_tile_registers:
                _warn_of_slow_bfloat16(TARGET.cpu)
        self._split, self._all_forms, self.is_dirty = split, forms, padding.checker()
        self._addresses, self._prepare_weights = step.addresses, stretch.prepare_weights
        self._tile_map = tile.tile_map
        widths, dtype, lanes = network.widths, self.dtype, layout.lanes(self.dtype)
        self.plan, size, transposed = layout.plan(widths, network.activations, dtype)
        code, last = widths[network.code_layer], self.plan[-1]
        height = max((form.most_height or form.height)(widths, dtype) for form in self.forms)
        elements = self._tile_elements(height)
        work = [layout.aligned_zeros(elements, dtype) for _ in range(self.most_threads)]
        self.size, self._shape = size, (size,)
        self._weights = None  # W as products read it, where that is not W itself
        if self.forms[0].own_weights:
            self._weights = layout.aligned_zeros(size, dtype)
        self._transposed = layout.aligned_zeros(transposed, dtype)
        sums = int(last["column_sums"]) + layout.blocks(int(last["fan_out"]), dtype) * lanes
        self._ones = layout.aligned_zeros(sums, dtype)
        for layer in self.plan:
            start = layer["column_sums"]
            self._ones[start : start + layer["fan_out"]] = 1
        self._gradients = layout.aligned_zeros(0, dtype).reshape(0, size)
        self._totals = np.zeros((split.ROWS_ITEMS_MOST + 1, 2))
        stretches, patches = int(split.stretches(self.plan, lanes)), int(split.patches(self.plan, lanes))
        self._weight_squares = layout.aligned_zeros(8 * max(stretches, patches), np.float64)
        self._gradient_squares = layout.aligned_zeros(8 * (1 + max(stretches, patches)), np.float64)
        self._codes = np.zeros((split.SHARDS_MOST, code))
        self._slopes = jobs.padded(0.0, code, dtype)
        self.kept = self.deltas = self._band_sums = layout.aligned_zeros(0, dtype)
        self.memory_version = 0
        self.blanks = {form: self._blank(form, transposed, stretches, patches) for form in self.forms}
        self.crew = Crew(work, max(stretches, patches, split.ROWS_ITEMS_MOST))
        self._thread_counts: dict[tuple[Any, ...], ThreadCount] = {}
        self.turn = Turn()
        _runners.add(self)

    def _blank(self, form: Any, transposed: int, stretches: int, patches: int) -> Job:
        """The fields that all jobs in one form of products share; ``job_for`` adds the addresses of functions."""
        return Job(
            plan=address(self.plan),
            layers=len(self.plan),
            code_layer=self.network.code_layer - 1,
            n_parameters=self.size,
            stretches=stretches,
            patches=patches,
            slabs=1,
            stored_row=form.stored_row or 0,
            transposed=address(self._transposed),
            transposed_size=transposed,
            orders=1,
            ones=address(self._ones),
            totals=address(self._totals),
            weight_squares=address(self._weight_squares),
            gradient_squares=address(self._gradient_squares),
            codes=address(self._codes),
            slopes=address(self._slopes),
            height=form.height(self.network.widths, self.dtype),
            row_multiple=form.row_multiple(self.network.widths, self.dtype),
            target_in_form=form.target_in_form,
        )

    def steps_job(self, form: Any, batch: int) -> Job:
        """A job of steps on `batch` rows, in a form of products."""
        job = self.job_for(form)
        job.batch = batch
        if form.tile_of_steps is not None:
            tile = form.tile_of_steps(self.network.widths, batch, self.size, self.dtype)
            job.height, job.row_multiple = tile
        return job

    def is_small(self, batch: int, steps: int) -> bool:
        """Whether a job of steps takes so little time that the calling thread does it alone."""
        return 6.0 * batch * self.size * steps <= SMALL_JOB

    def cut(self, job: Job, form: Any, batch: int) -> int:
        """Have a job's steps cut into items; returns the most items of rows that any step has."""
        if form.stored_row is not None and self._split.by_weights(self.size):
            return self.cut_by_weights(job, batch)
        return self._cut_by_rows(job, job.rows, batch)

    def take_steps(self, job: Job, form: Any, batch: int, steps: int) -> tuple[int, bool]:
        """Run a job of steps, once all about it is set except how it is cut; returns as ``Crew.run``."""
        items, flops = self.cut(job, form, batch), 6.0 * batch * self.size
        # One item of rows: other threads would find almost nothing to do, however many steps there are
        alone = items == 1 and flops < SMALL_JOB
        return self._share(job, fields.TRANSPOSE, flops, steps, batch, alone=alone)

    def form_for_steps(self, batch: int, *, codes: bool) -> Any:
        """The form of products in which steps on `batch` rows are fastest, of the forms that support them.

        `codes`: the code has a delta of its own.
        """
        return self._all_forms.choose(
            self.forms,
            self.network.widths,
            batch,
            self.size,
            self.dtype,
            linear=self.network.activations[-1] == "identity",
            codes=codes,
        )

    def _cut_by_rows(self, job: Job, rows: int, batch: int) -> int:
        """Have a job's steps cut by rows, in memory for their gradients; returns the most shards of any step."""
        shards = self._split.most_shards(rows, batch, self.size, job.row_multiple)
        if self._gradients.shape[0] < shards:
            self.memory_version += 1
            self._gradients = layout.aligned_zeros(shards * self.size, self.dtype).reshape(shards, -1)
        job.gradients = address(self._gradients)
        return shards

    def cut_by_weights(self, job: Job, batch: int) -> int:
        """Have a job's steps cut by weights, in memory for a slab; returns the most bands of any slab."""
        split = self._split
        job.cut, job.slabs = fields.BY_WEIGHTS, -(-batch // split.SLAB)
        job.slab = round_up(-(-batch // job.slabs), job.row_multiple)
        job.slab_height = split.slab_height(job.slab, job.row_multiple)
        bands = int(split.bands_of(job.slab, job.row_multiple))
        kept, deltas = self._tile_elements(job.slab_height), job.slab_height * int(self.plan[-1].output)
        if self.kept.size < kept:
            self.memory_version += 1  # before: an error or a signal may end this call anywhere
            memory = layout.aligned_zeros(deltas, self.dtype), layout.aligned_zeros(kept, self.dtype)
            self.deltas, self.kept = memory
        if self._band_sums.size < bands * self._ones.size:
            self.memory_version += 1
            self._band_sums = layout.aligned_zeros(bands * self._ones.size, self.dtype)
        job.kept, job.deltas, job.band_sums = map(address, (self.kept, self.deltas, self._band_sums))
        return bands

    def _tile_elements(self, height: int) -> int:
        """Elements of memory that TileMap (kernels/tile.py) maps, for tiles of so many rows.

        It ends with three tiles of the input or, if that is wider, the output; the last one is as wide as the code if
        that is wider still. Where they are not needed they are not touched, and so take no physical memory.
        """
        inputs, code, outputs = (
            layout.blocks(self.network.widths[layer], self.dtype) * layout.lanes(self.dtype)
            for layer in (0, self.network.code_layer, -1)
        )
        widest = max(inputs, outputs)
        before = int(self._tile_map(self.plan, height, 0, self.dtype.itemsize).clean) // self.dtype.itemsize
        return before + height * (2 * widest + max(widest, code))

    def weights_at(self, params: Parameters) -> int:
        """The address of W as products read it: that of the parameters, or of a W that a form has of its own."""
        return address(params.flat if self._weights is None else self._weights)

    def form_for_inference(self, rows: int, first: int, last: int) -> Any:
        """The form of products in which these rows pass fastest through layers first .. last - 1."""
        widths = self.network.widths
        if widths[first] > widths[0]:  # a converted input needs memory, which there is for a row of X
            return self.forms[0]
        return self._all_forms.choose_for_inference(self.forms, widths[first : last + 1], rows, self.dtype)

    def job_for(self, form: Any) -> Job:
        """A job with the fields that all jobs in this form share; the first one loads or compiles what they call."""
        blank = self.blanks[form]
        if not blank.forward_at:
            blank = Job.from_buffer_copy(blank)
            for name, place in self._addresses(form, self.dtype).items():
                setattr(blank, name, place)
            self.blanks[form] = blank  # whole: another thread may be here too
        return Job.from_buffer_copy(blank)

    def run_inference(self, job: Job, rows: int) -> None:
        """Run a job of inference on `rows` rows, on as many threads as are fastest."""
        if self._weights is not None:
            self._prepare_weights(ctypes.addressof(job), self.dtype.itemsize)
        self._share(job, 0, 2.0 * rows * self.size, 1, rows)

    def _share(
        self, job: Job, claim: int, flops: float, steps: int, rows: int, *, alone: bool = False
    ) -> tuple[int, bool]:
        """Run the job on as many threads as are fastest, given the FLOPs and rows of each step; or on one, `alone`."""
        if flops * steps <= SMALL_JOB:  # as ``is_small``
            return self.crew.run_alone(job, claim)
        if alone or self.most_threads == 1:
            return self.run(job, claim, 1)
        kind = jobs.kind_of(job, steps, rows)
        if kind not in self._thread_counts:
            if len(self._thread_counts) == KINDS_MOST:
                self._thread_counts.clear()
            large = flops > LARGE_STEP * self.most_threads
            self._thread_counts[kind] = ThreadCount(self.most_threads, large=large)
        return self.run(job, claim, self.most_threads, self._thread_counts[kind])

    def run(
        self, job: Job, claim: int, n_threads: int, thread_count: ThreadCount | None = None
    ) -> tuple[int, bool]:
        """See ``Crew.run``."""
        quota = max(1, int(FIRST_CALL * self.network.widths[0] // max(self.size, 1)))
        return self.crew.run(job, claim, n_threads if thread_count is None else thread_count, quota)

    def check_params(self, params: Parameters, name: str = "params", *, written: bool = False) -> None:
        """Raise an error unless kernels may read and, where they are `written`, write these parameters."""
        if not isinstance(params, Parameters):
            raise TypeError(f"{name} must be Parameters, got {type(params).__name__}")
        if params.network is not self.network and params.network != self.network:
            raise ValueError(f"{name} are of {params.network}, but the engine is for {self.network}")
        if params.dtype is not self.dtype and params.dtype != self.dtype:
            raise ValueError(f"{name} are {params.dtype}, but the engine computes in {self.dtype}")
        flat = params.flat
        flags = flat.flags
        if flat.dtype != self.dtype or flat.shape != self._shape or not flags.c_contiguous:
            raise ValueError(
                f"{name}.flat has shape {flat.shape} and dtype {flat.dtype}, but {name} were made with shape "
                f"({self.size},) and dtype {self.dtype}"
            )
        if written and not flags.writeable:
            raise ValueError(f"{name}.flat is read-only, but the engine writes it")
        if name == "params" and self.is_dirty(flat, self.plan):
            raise ValueError("params.flat is not zero in its padding: call params.clear_padding()")


_runners: "weakref.WeakSet[Runner]" = weakref.WeakSet()


@cache
def _warn_of_slow_bfloat16(cpu: str) -> None:
    """Once per process."""
    text = (
        f"dtype bfloat16 is slower than float32 on {cpu}: its AVX512_BF16 gains nothing, and AMX is not used "
        "(the CPU lacks AMX_BF16, the system does not grant it, or the network is too narrow)"
    )
    warnings.warn(text, RuntimeWarning, stacklevel=4)


def _forget_threads() -> None:
    """In a forked child, which has no thread but this one: none holds a lock, works on a job or listens for one."""
    for runner in _runners:
        runner.turn = Turn()
        runner.crew.forget_helpers()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_threads)
