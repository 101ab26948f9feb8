"""Plots in scikit-learn's Display style: ``XDisplay.from_estimator(...)`` computes and draws, ``plot`` draws again.

    loss.py            LossCurveDisplay: the loss by epoch
    reconstruction.py  ReconstructionDisplay: rows beside their reconstructions; save_reconstructions, to a file
    code.py            CodeDisplay: codes as points in the plane
    errors.py          ErrorHistogramDisplay and WorstRowsDisplay: the rows' errors, and the features that cause them
    display.py         what they share: axes, colours, checks of arguments

matplotlib (the extra ``plot``) is imported when a plot is drawn. Every ``plot`` takes the axes to draw on; without
them it makes a figure with pyplot, as scikit-learn does. To write a file without a display and without pyplot, pass
axes of a figure that you made:

    figure = matplotlib.figure.Figure(layout="constrained")
    LossCurveDisplay.from_estimator(model, ax=figure.subplots())
    figure.savefig("loss.png")

Colours are those of Okabe and Ito, which colour-blind readers can tell apart; classes also differ in shape or
hatching.
"""

from fastae.plots.code import CodeDisplay
from fastae.plots.errors import ErrorHistogramDisplay, WorstRowsDisplay
from fastae.plots.loss import LossCurveDisplay
from fastae.plots.reconstruction import ReconstructionDisplay, save_reconstructions

__all__ = [
    "CodeDisplay",
    "ErrorHistogramDisplay",
    "LossCurveDisplay",
    "ReconstructionDisplay",
    "WorstRowsDisplay",
    "save_reconstructions",
]
