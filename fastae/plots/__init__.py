"""Pictures in scikit-learn's Display style: ``XDisplay.from_estimator(...)`` computes and draws, ``plot`` draws again.

matplotlib (the ``plot`` extra) is imported when one is drawn. Every ``plot`` takes the axes to draw on; without them
it makes a figure with pyplot, as scikit-learn does. To write a file from a program, give it axes of its own, which
need no display and leave pyplot alone:

    figure = matplotlib.figure.Figure(layout="constrained")
    LossCurveDisplay.from_estimator(model, ax=figure.subplots())
    figure.savefig("loss.png")

Colours are those of Okabe and Ito, which the colour-blind can tell apart; classes differ in shape or hatching too.
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
