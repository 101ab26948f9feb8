"""Training: epochs of gradient steps, or L-BFGS, over an engine.

gradient_descent.py  train, the public function; train_on, for any RowSource
many.py              train_many: many networks on the same rows, side by side
options.py           TrainingOptions: the options that every kind of training has
loop.py              the loop over epochs, whatever takes the steps: learning rates, checkpoints, divergence
watch.py             after each epoch: validation, the best parameters, when to stop
streaming.py         the steps of an epoch over an array, or over rows read chunk by chunk
step_by_step.py      steps that Python takes one by one: tied weights, optimizers of the user's own
lbfgs.py             L-BFGS on all rows at once
pca.py               principal components, and the parameters at which a network does what PCA does
history.py           what training reports
checkpoint.py        the file from which an interrupted run resumes
progress.py          the progress bar
"""

from fastae.training.gradient_descent import train
from fastae.training.history import DivergenceError, Epoch, History
from fastae.training.many import train_many

__all__ = ["DivergenceError", "Epoch", "History", "train", "train_many"]
