"""Jitted kernels: arrays in, arrays out. Nothing here imports the Python side of fastae.

A map, from the call down:

    step.py         gradient steps by a crew of threads: the one jitted call that each makes; the loops of a step
    partition.py    which rows a shard has, which weights a stretch has
    shard.py        a shard of rows, tile after tile
    stretch.py      a stretch of the flat buffers: shards added up, the optimizer, W'
    optimizer.py    fused parameter updates
    infer.py        rows through a range of layers and out

    load.py         rows become tiles: loaded, scaled, corrupted, converted
    tile.py         a tile through the layers and back; the map of its memory
    cost.py         deltas and errors of the cost, and a step's loss
    noise.py        corrupted input, and missing cells
    activations.py  sigmoid with derivative, tanh, relu, identity

    products.py     the contract of products, which three forms implement:
    gemm.py         blocks of columns: register tiles and the loops around them
    rowlanes.py     rows in the lanes, for networks of few columns
    bfloat16.py     blocks of columns in bfloat16

    job.py          the records that threads are told and share
    layout.py       the one data layout: column blocks of one cache line
    rows.py         rows of any dtype and stride into lines, and back out
    simd.py         the vector words; the only file that writes LLVM IR
    target.py       which CPU Numba compiles for, and the tile sizes that follow
    compiler.py     the one decorator, ``kernel``, and its cache on disk
    dense_layer.py  for users: one layer at a time on arrays of the caller; nothing else calls it
"""

if __name__ != "fastae.kernels":
    raise ImportError("import fastae.kernels: another package owns the top-level name 'kernels'")

import importlib
from typing import TYPE_CHECKING, Any

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
        value = getattr(importlib.import_module(f"fastae.kernels.{_HOME[name]}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
