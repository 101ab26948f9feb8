"""Jitted kernels: arrays in, arrays out. Nothing here imports the Python side of fastae.

A map, from the call down:

    step.py         gradient steps by a team of threads: the one jitted call that each makes
    infer.py        rows through the layers and out
    shard.py        a shard of rows, tile after tile, through all layers and back
    stretch.py      a stretch of the flat buffers: shards added up, the optimizer, W'
    partition.py    which rows a shard has, which weights a stretch
    job.py          the places in the vectors of int64 that say what is to be done
    layer.py        one layer's forward step and backward step on a tile of rows, in place
    gemm.py         the register tile, in its three forms
    rowlanes.py     layer.py and gemm.py for layers of few columns: rows in the lanes
    bfloat16.py     layer.py and gemm.py for products of bfloat16 pairs
    activations.py  sigmoid with derivative, tanh, relu, identity
    optimizer.py    fused parameter updates
    noise.py        corrupted input, and cells that are missing
    rows.py         rows of any dtype and stride into a tile, and back out
    layout.py       the one data layout: column blocks of one cache line
    target.py       which CPU Numba compiles for, and the tile sizes that follow
    simd.py         the vector words; the only file that writes LLVM IR
    compiler.py     the one decorator, ``kernel``, and its cache on disk
"""

if __name__ != "fastae.kernels":
    raise ImportError("import fastae.kernels: another package owns the top-level name 'kernels'")

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what type checkers see; at run time __getattr__ loads each name when it is first used
    from fastae.kernels.activations import exp as exp
    from fastae.kernels.activations import sigmoid_with_derivative as sigmoid_with_derivative
    from fastae.kernels.layer import layer_backward as layer_backward
    from fastae.kernels.layer import layer_forward as layer_forward

_HOME = {
    "sigmoid_with_derivative": "activations",
    "exp": "activations",
    "layer_forward": "layer",
    "layer_backward": "layer",
}
__all__ = sorted(_HOME)


if not TYPE_CHECKING:  # which would take it to have every name

    def __getattr__(name: str) -> Any:
        if name not in _HOME:
            raise AttributeError(f"module 'fastae.kernels' has no attribute {name!r}")
        value = getattr(importlib.import_module(f"fastae.kernels.{_HOME[name]}"), name)
        globals()[name] = value
        return value
