"""A disk that is full, and what is on it."""

import os
from contextlib import contextmanager

import pytest


def names(directory):
    return sorted(os.listdir(directory))


@contextmanager
def full_disk(size=200):
    """No file may grow beyond `size` bytes: what a full disk does, from this process on. Skips where that cannot be."""
    resource = pytest.importorskip("resource", reason="needs POSIX's limits on files")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
