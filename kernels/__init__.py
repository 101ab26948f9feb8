"""Jitted kernels, which compute on arrays. They import nothing of the rest of fastae.

A map, from the call down:

    step.py         gradient steps by a crew of threads: the jitted call that each thread makes; the loops of a step
    split.py        how a step is divided into items: shards and stretches, or bands and patches
    shard.py        the loss and gradient of a shard of rows, tile by tile
    stretch.py      a stretch of the weights: adds the shards' gradients, updates, transposes
    band.py         a band of rows, through the network and back, with all activations and deltas kept
    patch.py        a patch of the weights: its gradient over the rows of all bands, and its update
    optimizer.py    the updates of SGD and Adam
    infer.py        outputs or reconstruction errors of rows
    nearest.py      the nearest of many points to each row

    load.py         turns rows into tiles: reads, scales, corrupts and converts them
    tile.py         takes a tile through the layers, forwards and backwards; the map of a thread's memory
    cost.py         deltas and errors of the cost, and the loss of a step
    noise.py        noise and missing cells in the input
    shuffle.py      random orders of rows
    activations.py  sigmoid, tanh, relu and identity, with derivatives

    products.py     the contract of products, and how to add a form of them
    forms.py        the forms, and the choice among them:
    gemm.py         column blocks: register tiles, and the loops around them
    rowlanes.py     rows in lanes, for networks of few columns
    bfloat16.py     column blocks in bfloat16
    amx.py          the same on the tile registers of AMX

    job.py          the records that describe a job to its threads
    layout.py       the data layout: column blocks, each one cache line wide
    padding.py      whether the padding of a flat buffer is zero
    rounding.py     numbers rounded up to whole blocks
    rows.py         reads rows of any dtype and stride into lines, and writes them back
    lines.py        sets lines to zero, adds lines to others
    transpose.py    transposes W
    simd.py         vector operations, the words that vector kernels are written in
    elementary.py   exp, sigmoid, tanh and log of a line
    intrinsics.py   for jitted code: memory at an address, atomic operations, the state of the processor
    tile_unit.py    the tile registers of AMX, their emulation, and permission to use them
    target.py       the CPU that kernels are compiled for, and its register tiles
    compiler.py     the decorators of jitted functions, and the boundary through which Python calls them
    prebuilt.py     loads the kernels that the package was built with
    in_place.py     compiles kernels when they are first needed, and keeps them on disk
    build.py        compiles all kernels for all targets of a platform, ahead of use
    setup_commands.py  has setuptools do so when it builds a wheel
    sources.py      the hash of these files, and whether they changed since they were imported
    fork.py         a fork waits for threads that import the compiler or compile
    private_files.py  files with digests, in directories that only this user can write to
    dense_layer.py  for users: one layer at a time on the caller's arrays; nothing else calls it
    array_header.py for users: kernels that Python calls with arrays themselves, for calls that take 50 ns
    in_njit.py      for users: the public kernels inside jitted functions of their own
"""

if __name__ != "fastae.kernels":
    raise ImportError("import fastae.kernels: another package owns the top-level name 'kernels'")

import importlib
import sys
from typing import TYPE_CHECKING, Any

from fastae.kernels import sources as sources  # before all others: it looks at the files as they are imported

from fastae.kernels import fork as fork  # isort: skip

if TYPE_CHECKING:  # what type checkers see; at run time __getattr__ loads each name when it is first used
    from fastae.kernels.activations import exp as exp
    from fastae.kernels.activations import sigmoid_with_derivative as sigmoid_with_derivative
    from fastae.kernels.dense_layer import empty_bias as empty_bias
    from fastae.kernels.dense_layer import empty_rows as empty_rows
    from fastae.kernels.dense_layer import empty_weights as empty_weights
    from fastae.kernels.dense_layer import layer_backward as layer_backward
    from fastae.kernels.dense_layer import layer_forward as layer_forward
    from fastae.kernels.dense_layer import layer_gradient as layer_gradient
    from fastae.kernels.dense_layer import pack as pack
    from fastae.kernels.dense_layer import unpack as unpack

_HOME = {
    "sigmoid_with_derivative": "activations",
    "exp": "activations",
    "empty_bias": "dense_layer",
    "empty_rows": "dense_layer",
    "empty_weights": "dense_layer",
    "layer_backward": "dense_layer",
    "layer_forward": "dense_layer",
    "layer_gradient": "dense_layer",
    "pack": "dense_layer",
    "unpack": "dense_layer",
}
__all__ = sorted(_HOME)  # pyright: ignore[reportUnsupportedDunderAll]


if not TYPE_CHECKING:  # which would take it to have every name

    def __getattr__(name: str) -> Any:
        if name not in _HOME:
            raise AttributeError(f"module 'fastae.kernels' has no attribute {name!r}")
        with fork.importing:
            value = getattr(importlib.import_module(f"fastae.kernels.{_HOME[name]}"), name)
        globals()[name] = value
        if "numba" in sys.modules:
            extend_numba()
        return value


def extend_numba() -> None:
    """Let jitted functions of the user call the public kernels, if any of them has been loaded.

    Numba calls this when it first compiles a function: the entry point ``numba_extensions``.
    """
    if any(name in globals() for name in _HOME):
        with fork.importing:
            importlib.import_module("fastae.kernels.in_njit")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
