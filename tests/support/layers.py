"""What tests of layer kernels share: operands on buffers at a guard page, and how close a result has to be."""

import numpy as np
from guard import guarded

from fastae import reference
from fastae.kernels import layout

TOLERANCE = {"float32": 3e-6, "float64": 1e-14}


def blocked(dense, height=None, end=True):
    """`dense` in blocks, on a buffer that ends (or begins) at a guard page."""
    lanes = layout.lanes(dense.dtype)
    rows = height or -(-dense.shape[0] // lanes) * lanes
    out = np.zeros((layout.blocks(dense.shape[1], dense.dtype), rows, lanes), dense.dtype)
    layout.pack(dense, out)
    return guarded(out, end)


def vector(dense, end=True):
    out = np.zeros(layout.blocks(dense.size, dense.dtype) * layout.lanes(dense.dtype), dense.dtype)
    out[: dense.size] = dense
    return guarded(out, end)


def draw(fan_in, fan_out, rows, dtype, activation="sigmoid"):
    rng = np.random.default_rng(fan_in * 1000 + fan_out * 10 + rows)
    g, _ = reference.ACTIVATIONS[activation]
    a = g(rng.normal(size=(rows, fan_in))).astype(dtype)
    W, b = rng.normal(size=(fan_in, fan_out)).astype(dtype), rng.normal(size=fan_out).astype(dtype)
    delta = rng.normal(size=(rows, fan_out)).astype(dtype)
    return a, W, b, delta


def close(computed, wanted, dtype, depth, what):
    scale = np.abs(wanted).max() + np.sqrt(depth)
    assert np.abs(computed - wanted).max() <= TOLERANCE[dtype] * scale, what
