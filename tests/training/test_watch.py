"""Watch: the best parameters, the epochs without improvement, and when training stops."""

import pytest

import fastae
from fastae.optimizers import State
from fastae.training.history import History
from fastae.training.options import TrainingOptions
from fastae.training.watch import Watch


def watched(losses, rate=0.1, **options):
    """Watch and history after the epochs of these losses, up to the one after which training stops."""
    params = fastae.Parameters(fastae.Network.autoencoder(3, 2))
    history = History(State.zeros(params))
    remaining = iter(losses)
    if options.pop("validated", False):
        options["validate"] = lambda params: next(remaining)
    watch = Watch(TrainingOptions(epochs=99, **options), params, history, lambda epoch: None)
    for number, loss in enumerate(losses, start=1):
        params.flat[:] = number
        history.loss.append(5.0 if watch.options.validate else loss)
        history.learning_rate.append(rate)
        if watch.stops_after_epoch():
            break
    return watch, history


def test_training_stops_after_patience_epochs_without_improvement():
    _, history = watched([3.0, 2.0, 2.0, 2.5, 2.5, 2.5, 1.0], patience=2)
    assert (len(history.loss), history.stop_reason) == (6, "tol")
    _, history = watched([3.0, 2.0, 1.5, 1.2, 1.1], patience=2, tol=1.0)
    assert (len(history.loss), history.stop_reason) == (5, "tol")


def test_adaptive_rates_are_divided_before_training_stops():
    watch, history = watched([1.0, *[2.0] * 6], patience=1, adaptive=True)
    assert (watch.factor, history.stop_reason) == (pytest.approx(1 / 125), "epochs")
    _, history = watched([1.0, *[2.0] * 6], patience=1, adaptive=True, rate=1e-7)
    assert (len(history.loss), history.stop_reason) == (3, "tol")


def test_the_parameters_of_the_least_validation_loss_are_kept():
    watch, history = watched([3.0, 1.0, 2.0], validated=True)
    watch.keep_best()
    assert (watch.params.flat == 2).all()
    assert (history.best_epoch, history.validation_loss) == (2, [3.0, 1.0, 2.0])


def test_without_validation_the_last_parameters_stay():
    watch, _ = watched([1.0, 2.0, 3.0], patience=9)
    watch.keep_best()
    assert (watch.params.flat == 3).all()


def test_a_callback_stops_before_patience_does():
    _, history = watched([1.0, 2.0, 2.0], patience=1, callback=lambda epoch: epoch.number == 3)
    assert (len(history.loss), history.stop_reason) == (3, "callback")
