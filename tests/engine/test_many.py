"""fastae.errors_many and reconstruct_many: each network's results as if computed alone, for any number of threads."""

import numpy as np
import pytest
from threads import pretend_cpus

import fastae

X = np.random.default_rng(0).normal(size=(5000, 12)).astype(np.float32)


def networks(wide=False):
    codes = 3, 20, 3, 700 if wide else 7
    widths = [(12, code, 600 if code == 700 else 12, 12) for code in codes]
    return [
        fastae.Parameters.random(
            fastae.Network(each, ("sigmoid", "sigmoid", "identity")),
            seed=i,
            dtype="float64" if i == 1 else "float32",
        )
        for i, each in enumerate(widths)
    ]


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("n_threads", [1, 2, 3, 5])
@pytest.mark.parametrize("m", [1, 5000])
def test_results_have_the_bits_of_an_engine_alone(wide, n_threads, m, monkeypatch):
    pretend_cpus(monkeypatch, 5)
    params = networks(wide)
    options = {"shift": X.mean(0), "scale": 1 / X.std(0)}
    errors = fastae.errors_many(params, X[:m], n_threads=n_threads, **options)
    outputs = fastae.reconstruct_many(params, X[:m], n_threads=n_threads, **options)
    assert errors.shape == (4, m)
    assert outputs.shape == (4, m, 12)
    assert outputs.dtype == np.float64
    for i, each in enumerate(params):
        engine = fastae.Engine(each.network, 1, each.dtype)
        assert (errors[i] == engine.errors(each, X[:m], **options)).all()
        assert (outputs[i] == engine.reconstruct(each, X[:m], **options)).all()


@pytest.mark.parametrize("wide", [False, True])
def test_the_mean_is_added_up_in_the_order_of_the_networks(wide, monkeypatch):
    pretend_cpus(monkeypatch, 3)
    params = networks(wide)
    e, r = fastae.errors_many(params, X), fastae.reconstruct_many(params, X)
    for n_threads in (1, 3):
        mean = fastae.errors_many(params, X, n_threads=n_threads, reduce="mean")
        assert (mean == (e[0] + e[1] + e[2] + e[3]) / 4).all()
        mean = fastae.reconstruct_many(params, X, n_threads=n_threads, reduce="mean")
        assert (mean == (r[0] + r[1] + r[2] + r[3]) / 4).all()


def test_rows_and_weights_may_be_chosen():
    params = networks()[:2]
    index, weights = [7, 3, 4999, 3], [np.arange(12.0), None]
    errors = fastae.errors_many(params, X, index=index, column_weight=weights)
    for i, each in enumerate(params):
        engine = fastae.Engine(each.network, 1, each.dtype)
        assert (errors[i] == engine.errors(each, X, index=index, column_weight=weights[i])).all()


def test_missing_cells_are_left_out_and_others_that_are_not_finite_reported():
    params, gaps = networks(), X[:600].copy()
    gaps[::7, 2] = np.nan
    assert np.isfinite(fastae.errors_many(params, gaps, missing=True)).all()

    def refuse():
        raise ValueError("X contains NaN")

    with pytest.raises(ValueError, match="X contains NaN"):
        fastae.errors_many(params, gaps, on_not_finite=refuse)


def test_errors_name_the_argument_and_the_network():
    params = networks()
    with pytest.raises(ValueError, match=r"network 2: shift has shape \(3,\)"):
        fastae.errors_many(params, X, shift=[None, None, np.zeros(3), None])
    with pytest.raises(ValueError, match="scale has 2 values, but params are of 4 networks"):
        fastae.reconstruct_many(params, X, scale=[None, np.ones(12)])
    with pytest.raises(ValueError, match='reduce must be "mean" or None'):
        fastae.errors_many(params, X, reduce="max")
    with pytest.raises(ValueError, match="X has 11 features"):
        fastae.errors_many(params, X[:, :11])


def test_one_network_may_be_listed_twice():
    params = networks()[0]
    errors = fastae.errors_many([params, params], X)
    assert (errors[0] == errors[1]).all()
