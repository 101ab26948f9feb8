"""Network, the shape of a stack of dense layers, and Parameters, its weights in one flat buffer.

Parameters live in the kernels' blocked layout (``kernels/layout.py``); what goes in and comes out by name is dense.
"""

import itertools
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fastae import storage
from fastae.checks import check_count, check_integer, check_real, check_seed
from fastae.kernels import layout

MOST_UNITS = (1 << 31) - 1  # of a layer

Activation = Literal["sigmoid", "tanh", "relu", "identity"]
DType = (
    Literal["float32", "float64"]
    | type[np.float32]
    | type[np.float64]
    | np.dtype[np.float32]
    | np.dtype[np.float64]
)


DRAWN_AT_ONCE = 1 << 18  # weights in ``Parameters.random``


@dataclass(frozen=True)
class Network:
    """A stack of dense layers: ``h_i = g_i(h_{i-1} W_i + b_i)``, with h_0 = x.

    Parameters
    ----------
    widths : tuple of int
        Number of input features, then the number of units of each layer; at least one layer.
    activations : tuple of "sigmoid", "tanh", "relu" or "identity"
        Activation of each layer.
    code_layer : int, default 0
        Number of the layer whose output is the code, counted from 1. 0 selects the first of the narrowest layers.

    Raises
    ------
    TypeError
        A width or `code_layer` is not an integer.
    ValueError
        A width is not positive, an activation is unknown, there is not one activation per layer, or there is no layer
        number `code_layer`.
    """

    widths: tuple[int, ...]
    activations: tuple[Activation, ...]
    code_layer: int = 0

    def __post_init__(self) -> None:
        for i, width in enumerate(self.widths):
            check_count(width, f"widths[{i}]")
            if width > MOST_UNITS:
                raise ValueError(f"widths[{i}] must be at most {MOST_UNITS}, got {width}")
        if len(self.widths) < 2:
            raise ValueError(f"widths must name the input and at least one layer, got {tuple(self.widths)}")
        object.__setattr__(self, "widths", tuple(int(width) for width in self.widths))
        object.__setattr__(self, "activations", tuple(self.activations))
        for name in self.activations:
            if name not in layout.ACTIVATIONS:
                raise ValueError(f"activations must be among {', '.join(layout.ACTIVATIONS)}, got {name!r}")
        if len(self.activations) != len(self.widths) - 1:
            raise ValueError(
                f"activations has {len(self.activations)} names, but widths make {len(self.widths) - 1} layers"
            )

        check_integer(self.code_layer, "code_layer")
        if self.code_layer == 0:
            object.__setattr__(self, "code_layer", 1 + int(np.argmin(self.widths[1:])))
        if not 1 <= self.code_layer <= len(self.activations):
            raise ValueError(f"code_layer must be within 1 .. {len(self.activations)}, got {self.code_layer}")

    @classmethod
    def autoencoder(cls, n: int, k: int) -> "Network":
        """Make the default network n -> k -> n -> n: two sigmoid layers and a linear one.

        Parameters
        ----------
        n : int
            Number of features.
        k : int
            Number of code units.

        Returns
        -------
        Network
            The network; its code is the output of layer 1.
        """
        return cls((n, k, n, n), ("sigmoid", "sigmoid", "identity"), code_layer=1)

    @property
    def n_layers(self) -> int:
        """Number of layers, not counting the input."""
        return len(self.activations)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """List the shape of every parameter.

        Returns
        -------
        dict of str to tuple of int
            Shapes by name, in the order W1, b1, W2, b2, ...
        """
        return dict(_shapes(self.widths))


@lru_cache(64)
def _shapes(widths: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for layer, (fan_in, fan_out) in enumerate(itertools.pairwise(widths), start=1):
        shapes[f"W{layer}"] = (fan_in, fan_out)
        shapes[f"b{layer}"] = (fan_out,)
    return shapes


def _dense_size(widths: tuple[int, ...]) -> int:
    return sum(fan_in * fan_out + fan_out for fan_in, fan_out in itertools.pairwise(widths))


@lru_cache(4)  # 8 bytes per parameter each
def _order(
    widths: tuple[int, ...], activations: tuple[Activation, ...], dtype: "np.dtype[np.floating]"
) -> npt.NDArray[np.intp]:
    """The place in the flat buffer of each element of the dense vector. Callers share it: do not write to it."""
    plan, _, _ = layout.plan(widths, activations, dtype)
    lanes, places = layout.lanes(dtype), []
    for row in plan:
        rows, columns = np.arange(row["fan_in"])[:, np.newaxis], np.arange(row["fan_out"])
        height = layout.blocks(row["fan_in"], dtype) * lanes
        places.append(row["weight"] + (columns // lanes * height + rows) * lanes + columns % lanes)
        places.append(row["bias"] + columns)
    return np.concatenate([place.ravel() for place in places])


class Parameters(Mapping[str, np.ndarray]):
    """The weights and biases of a network, or their gradient, in one flat buffer aligned to 64 bytes.

    ``p["W1"]`` is a new dense array; ``p["W1"] = array`` writes one. The names are W1, b1, W2, b2, ...

    Parameters
    ----------
    network : Network
        The network that the parameters belong to.
    dtype : "float32", "float64" or NumPy dtype, default "float32"
        Type of the elements.

    Attributes
    ----------
    flat : ndarray of shape (size,)
        The buffer, in the kernels' blocked layout. Write into it; it cannot be replaced by another array. Its padding
        is zero and must stay zero: engines refuse parameters with other padding. After adding noise to the whole
        buffer, call ``clear_padding``. For a dense vector, see ``to_vector``.
    """

    def __init__(self, network: Network, dtype: DType = "float32") -> None:
        if not isinstance(network, Network):
            raise TypeError(f"network must be a Network, got {type(network).__name__}")
        self.network = network
        self.dtype = check_dtype(dtype)
        self.plan, size, _ = layout.plan(network.widths, network.activations, self.dtype)
        try:
            self._flat = layout.aligned_zeros(size, self.dtype)
        except MemoryError:
            gib = size * self.dtype.itemsize / 2**30
            raise MemoryError(
                f"a network of widths {network.widths} needs {gib:.3g} GiB for its parameters"
            ) from None
        self._shapes = _shapes(network.widths)

    @property
    def flat(self) -> np.ndarray:
        """The buffer, in the kernels' blocked layout."""
        return self._flat

    @flat.setter
    def flat(self, value: np.ndarray) -> None:
        if value is not self._flat:  # ``params.flat += x`` adds in place, then assigns the same array
            raise AttributeError("flat cannot be replaced, only written: params.flat[:] = array")

    @classmethod
    def random(
        cls, network: Network, seed: int | np.random.Generator = 0, dtype: DType = "float32"
    ) -> "Parameters":
        """Draw random weights: Glorot-uniform, with zero biases (Glorot and Bengio, AISTATS 2010).

        The weights of a layer are drawn from U(-a, a), a = sqrt(6 / (fan_in + fan_out)).

        Parameters
        ----------
        network : Network
            The network that the parameters belong to.
        seed : int or numpy.random.Generator, default 0
            Source of the random numbers. The same seed gives the same weights, in either dtype up to rounding.
        dtype : "float32", "float64" or NumPy dtype, default "float32"
            Type of the elements.

        Returns
        -------
        params : Parameters
            New parameters.
        """
        check_seed(seed)
        params = cls(network, dtype)
        generator = np.random.default_rng(seed)
        for name, shape in network.shapes().items():
            if name.startswith("W"):
                bound = np.sqrt(6.0 / sum(shape))
                blocked, step = params._blocked(name), max(1, DRAWN_AT_ONCE // shape[1])
                for first in range(0, shape[0], step):  # few rows at a time, as they are drawn in float64
                    rows = min(step, shape[0] - first)
                    layout.pack(generator.uniform(-bound, bound, (rows, shape[1])), blocked[:, first:])
        return params

    @classmethod
    def from_arrays(
        cls, network: Network, arrays: Mapping[str, npt.ArrayLike], dtype: DType = "float32"
    ) -> "Parameters":
        """Make parameters from dense arrays.

        Parameters
        ----------
        network : Network
            The network that the parameters belong to.
        arrays : mapping of str to array-like
            An array of the shape in ``network.shapes()`` for each name.
        dtype : "float32", "float64" or NumPy dtype, default "float32"
            Type of the elements.

        Returns
        -------
        params : Parameters
            New parameters.

        Raises
        ------
        ValueError
            An array is missing or has another shape, or a name is unknown.
        TypeError
            An array does not hold real numbers.
        """
        missing = [name for name in network.shapes() if name not in arrays]
        if missing:
            raise ValueError(f"arrays lacks {', '.join(missing)}")
        unknown = [str(name) for name in arrays if name not in network.shapes()]
        if unknown:
            raise ValueError(
                f"arrays has {', '.join(unknown)}, but the network has {', '.join(network.shapes())}"
            )
        params = cls(network, dtype)
        for name in network.shapes():
            params[name] = arrays[name]
        return params

    @classmethod
    def from_vector(cls, network: Network, vector: npt.ArrayLike, dtype: DType | None = None) -> "Parameters":
        """Make parameters from a dense vector, as ``to_vector`` returns it.

        Parameters
        ----------
        network : Network
            The network that the parameters belong to.
        vector : array-like of shape (size,)
            All parameters: W1 row by row, b1, W2, b2, ...
        dtype : "float32", "float64" or NumPy dtype, optional
            Type of the elements. Default: that of `vector` if it is float32 or float64, otherwise float32.

        Returns
        -------
        params : Parameters
            New parameters.

        Raises
        ------
        ValueError
            `vector` has another shape.
        TypeError
            `vector` does not hold real numbers.
        """
        vector = np.asarray(vector)
        if dtype is None:
            dtype = "float64" if vector.dtype.newbyteorder("=") == np.float64 else "float32"
        params = cls(network, dtype)
        params.set_vector(vector)
        return params

    def set_vector(self, vector: npt.ArrayLike) -> None:
        """Overwrite all parameters by those of a dense vector, as ``to_vector`` returns it. Padding becomes zero.

        Parameters
        ----------
        vector : array-like of shape (size,)
            All parameters: W1 row by row, b1, W2, b2, ...

        Raises
        ------
        ValueError
            `vector` has another shape, or ``flat`` is read-only.
        TypeError
            `vector` does not hold real numbers.
        """
        dense = np.asarray(vector)
        size = _dense_size(self.network.widths)
        if dense.shape != (size,):
            raise ValueError(
                f"vector has shape {dense.shape}, but the network has {size} parameters: ({size},)"
            )
        check_real(dense.dtype, "vector")
        if not self.flat.flags.writeable:
            raise ValueError("flat is read-only")
        values = dense.astype(self.dtype)  # a copy, because `vector` may be a view of the buffer
        self.flat.fill(0)
        self.flat[_order(self.network.widths, self.network.activations, self.dtype)] = values

    def to_vector(self, out: np.ndarray | None = None) -> np.ndarray:
        """Copy all parameters into a dense vector, without padding: W1 row by row, b1, W2, b2, ...

        Parameters
        ----------
        out : ndarray of shape (size,), optional
            Written: the vector, in its dtype. Default: a new array of the parameters' dtype.

        Returns
        -------
        ndarray of shape (size,)
            `out`, or the new array. Its size is the sum of the sizes in ``network.shapes()``.

        Raises
        ------
        TypeError, ValueError
            `out` is not a writeable array of floats of this shape.
        """
        order = _order(self.network.widths, self.network.activations, self.dtype)
        if out is None:
            return self.flat.take(order)
        kind: Any = out.dtype if isinstance(out, np.ndarray) else type(out)  # type: ignore[redundant-expr]
        if not isinstance(kind, np.dtype) or kind.kind != "f":
            raise TypeError(f"out must be an array of floats, got {getattr(kind, '__name__', kind)}")
        if out.shape != order.shape:
            raise ValueError(f"out has shape {out.shape}, but {order.shape} is needed")
        if not out.flags.writeable:
            raise ValueError("out is read-only")
        out[...] = self.flat.take(order)
        return out

    @property
    def padding(self) -> np.ndarray:
        """Which elements of ``flat`` are padding: a new array of bool, of shape (size,)."""
        mask = np.ones(self.flat.size, bool)
        mask[_order(self.network.widths, self.network.activations, self.dtype)] = False
        return mask

    def clear_padding(self) -> None:
        """Set the padding of ``flat`` to zero, as after noise was added to the whole buffer."""
        lanes = layout.lanes(self.dtype)
        for name, shape in self._shapes.items():
            blocked, used = self._blocked(name), (shape[-1] - 1) % lanes + 1
            if len(shape) == 1:
                blocked[shape[0] :] = 0
            else:
                blocked[:, shape[0] :] = 0
                blocked[-1, : shape[0], used:] = 0

    def copy(self) -> "Parameters":
        """Copy the parameters.

        Returns
        -------
        params : Parameters
            The same values in a buffer of their own.
        """
        params = Parameters(self.network, self.dtype)
        params.flat[:] = self.flat
        return params

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file that holds the network and the dense, row-major arrays W1, b1, ...

        Parameters
        ----------
        path : path
            File to write. It is replaced only once the new one is complete.

        Raises
        ------
        OSError
            The file cannot be written; an existing file stays as it was.
        """
        storage.write(path, "Parameters", {"network": asdict(self.network)}, self)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Parameters":
        """Load parameters from a file that ``Parameters.save`` or an estimator's ``save`` wrote.

        Parameters
        ----------
        path : path
            File to read.

        Returns
        -------
        params : Parameters
            Parameters with the same bits as those that were saved.

        Raises
        ------
        OSError
            The file does not exist or cannot be read.
        ValueError
            The file is incomplete, has a format that this version does not know, holds no parameters, lacks some, or
            holds some of the wrong shape.
        """
        return cls.from_stored(storage.read(path))

    @classmethod
    def from_stored(cls, stored: storage.Stored) -> "Parameters":
        """The parameters in what has been read of a file."""
        if "network" not in stored.about:
            raise ValueError(f"{stored.path} is a file of {stored.kind}, not of Parameters")
        with stored.blamed():
            network, dtype = Network(**stored.about["network"]), check_dtype(stored.tensors["W1"].dtype)
            # before memory is allocated for the network, which may be damaged
            arrays = {name: stored.tensor(name, shape, dtype) for name, shape in network.shapes().items()}
            return cls.from_arrays(network, arrays, dtype)

    def __getstate__(self) -> dict[str, Any]:
        return {"network": self.network, "dtype": self.dtype, "arrays": dict(self)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Allocate a buffer anew, as one that was read need not be aligned."""
        self.__init__(state["network"], state["dtype"])  # type: ignore[misc]
        if "flat" in state:  # written by skops and an earlier fastae
            self._flat[:] = state["flat"]
            return
        for name, array in state["arrays"].items():
            self[name] = array

    def _blocked(self, name: str) -> np.ndarray:
        """The (blocks, rows, lanes) view of a weight matrix, or the flat view of a bias, padding included."""
        if name not in self._shapes:
            raise KeyError(f"{name!r} is no parameter of this network; they are {', '.join(self._shapes)}")
        row = self.plan[int(name[1:]) - 1]
        lanes = layout.lanes(self.dtype)
        blocks = layout.blocks(row["fan_out"], self.dtype)
        if name.startswith("b"):
            return self.flat[row["bias"] : row["bias"] + blocks * lanes]
        return self.flat[row["weight"] : row["bias"]].reshape(blocks, -1, lanes)

    def __getitem__(self, name: str) -> np.ndarray:
        blocked = self._blocked(name)
        shape = self._shapes[name]
        return blocked[: shape[0]].copy() if len(shape) == 1 else layout.unpack(blocked, (shape[0], shape[1]))

    def __setitem__(self, name: str, value: npt.ArrayLike) -> None:
        blocked = self._blocked(name)
        dense = np.asarray(value)
        if dense.shape != self._shapes[name]:
            raise ValueError(f"{name} has shape {dense.shape}, but the network needs {self._shapes[name]}")
        check_real(dense.dtype, name)
        if dense.ndim == 1:
            blocked[: dense.size] = dense
        else:
            layout.pack(dense, blocked)

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)

    def __repr__(self) -> str:
        return f"Parameters({self.network!r}, dtype={self.dtype.name!r})"


def check_dtype(dtype: npt.DTypeLike | None) -> "np.dtype[np.floating]":
    """float32 or float64 as a dtype; anything else, None too, is an error that names it."""
    known: tuple[np.dtype[np.floating], ...] = (np.dtype(np.float32), np.dtype(np.float64))
    try:
        return known[known.index(np.dtype("V" if dtype is None else dtype))]  # NumPy takes None for float64
    except (TypeError, ValueError):
        raise ValueError(f"dtype must be float32 or float64, got {dtype!r}") from None
