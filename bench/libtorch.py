"""The peer "libtorch": a C++ program on the libtorch in torch's wheel (``libtorch_step.cpp``), compiled when needed."""

import ctypes
import shutil
import subprocess
import tempfile
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from fastae.bench.cases import Case
from fastae.bench.peer import Work

SOURCE = Path(__file__).with_name("libtorch_step.cpp")
ACTIVATIONS = ("identity", "sigmoid", "tanh", "relu")


def why_not() -> str:
    """Why the program cannot be compiled; "" if it can."""
    if not shutil.which("g++"):
        return "needs g++"
    spec = find_spec("torch")
    if not spec or not (Path(str(spec.origin)).parent / "include" / "ATen").is_dir():
        return "torch has no C++ headers"
    return ""


@cache
def _library() -> Any:
    """Compiled anew in each process, in about 15 s."""
    import torch

    root = Path(torch.__file__).parent
    abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "step.so"
        command = [
            "g++",
            "-O3",
            "-march=native",
            "-std=c++20",
            "-shared",
            "-fPIC",
            abi,
            f"-I{root / 'include'}",
        ]
        command += [str(SOURCE), "-o", str(out), f"-L{root / 'lib'}", "-ltorch_cpu", "-lc10"]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{SOURCE.name} was not compiled: {done.stderr[-2000:]}")
        library = ctypes.CDLL(str(out))
    library.prepare.restype, library.step.restype = ctypes.c_void_p, ctypes.c_double
    library.step.argtypes = (ctypes.c_void_p,)
    return library


class Program:
    """The program of a case; its arrays, which C++ holds by address, live as long as it does."""

    def __init__(self, case: Case) -> None:
        self.names = [f"{kind}{i}" for i in range(1, len(case.widths)) for kind in "Wb"]
        self.X = case.X
        self.parameters = [np.ascontiguousarray(case.dense[name]) for name in self.names]
        self.gradients = [np.empty_like(array) for array in self.parameters]
        widths = np.array(case.widths, np.int64)
        library = _library()
        self._step = library.step
        self._prepared = library.prepare(
            ctypes.c_int64(len(widths) - 1), ctypes.c_void_p(widths.ctypes.data),
            ctypes.c_int(ACTIVATIONS.index(case.activation)), ctypes.c_int(case.array_dtype == "float64"),
            ctypes.c_int64(case.m), ctypes.c_void_p(self.X.ctypes.data),
            _addresses(self.parameters), _addresses(self.gradients),
        )  # fmt: skip

    def run(self, times: int) -> float:
        """Take so many steps; return the loss."""
        for _ in range(times):
            loss = float(self._step(self._prepared))
        return loss

    def answer(self, loss: float) -> dict[str, Any]:
        return {"loss": loss, **dict(zip(self.names, self.gradients, strict=True))}


def _addresses(arrays: list[np.ndarray]) -> Any:
    return (ctypes.c_void_p * len(arrays))(*(array.ctypes.data for array in arrays))


def by_libtorch(case: Case, threads: int) -> Work:
    """libtorch in C++: in place, with the gradient written out by hand; its threads are those of torch."""
    program = Program(case)
    return Work(program.run, program.answer)
