"""Pictures, by matplotlib (the ``plot`` extra), which is imported when one is drawn."""

from pathlib import Path

import numpy as np


def save_reconstructions(
    path: str | Path, X: np.ndarray, xhat: np.ndarray, *, shape: tuple[int, int], count: int = 10
) -> None:
    """Draw the first `count` rows of `X` as images above their reconstructions, into a file.

    Parameters
    ----------
    path : path
        Its suffix chooses the format.
    X, xhat : arrays of shape (m, n)
    shape : (height, width)
        Of one image: height * width = n.
    count : int, default 10

    Raises
    ------
    ImportError
        matplotlib is not installed.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    count = min(count, len(X))
    figure = Figure(figsize=(count * 0.8, 2.0), layout="constrained")
    axes = figure.subplots(2, count, squeeze=False)
    low, high = float(X[:count].min()), float(X[:count].max())
    for title, row, images in (("original", axes[0], X), ("fastae", axes[1], xhat)):
        row[0].set_ylabel(title)
        for axis, image in zip(row, images, strict=False):
            axis.imshow(np.reshape(image, shape), cmap="gray_r", vmin=low, vmax=high)
            axis.set(xticks=[], yticks=[])
    FigureCanvasAgg(figure).print_figure(str(path), dpi=150)
