"""Training: epochs of gradient steps, or L-BFGS, over an engine.

train.py       the public function: gradient descent on rows of this machine
loop.py        the loop over epochs, whatever takes the steps: rates, stopping, validation, divergence
streaming.py   the steps of an epoch over rows read chunk by chunk
lbfgs.py       L-BFGS on all rows at once
history.py     what training reports
checkpoint.py  the file from which an interrupted run resumes
progress.py    the progress bar
"""

from fastae.training.gradient_descent import train
from fastae.training.history import DivergenceError, Epoch, History

__all__ = ["DivergenceError", "Epoch", "History", "train"]
