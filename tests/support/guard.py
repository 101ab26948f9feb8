"""Arrays that end, or begin, at a page that must not be touched: a kernel that reads or writes past one crashes."""

import ctypes
import mmap
import os

import numpy as np

from fastae.kernels import layout

PAGE = mmap.PAGESIZE


def guarded(array, end=True, align=1):
    """A copy of `array` that ends right before a guard page, or begins right after one.

    With `align`, it begins at a multiple of so many bytes: at its end, up to one less may lie before the page.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    size = -(-array.nbytes // align) * align
    pages = -(-max(size, 1) // PAGE)
    memory = mmap.mmap(-1, (pages + 2) * PAGE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for page in (0, pages + 1):
        address = ctypes.c_void_p(start + page * PAGE)
        assert libc.mprotect(address, ctypes.c_size_t(PAGE), 0) == 0, os.strerror(ctypes.get_errno())
    first = (pages + 1) * PAGE - size if end else PAGE
    copy = np.frombuffer(memory, array.dtype, array.size, first).reshape(array.shape)
    copy[...] = array
    return copy


def guard_buffers(monkeypatch, end=True):
    """From now on, allocate every buffer of engines and parameters against a guard page, by its end or its start."""
    plain = layout.aligned_zeros

    def aligned_zeros(size, dtype):
        return guarded(np.zeros(size, dtype), end, 64) if size else plain(size, dtype)

    monkeypatch.setattr(layout, "aligned_zeros", aligned_zeros)
