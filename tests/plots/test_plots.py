"""Plots show what the estimators compute, on real data; they need no display and change no backend."""

import itertools
import os
import sys

import numpy as np
import pytest
from processes import run
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.decomposition import PCA
from sklearn.exceptions import NotFittedError

import fastae

matplotlib = pytest.importorskip("matplotlib")

from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

from fastae import plots  # noqa: E402
from fastae.plots.display import short  # noqa: E402


@pytest.fixture
def ax():
    """Axes of their own: pyplot and its backend stay out of the tests."""
    return Figure(layout="constrained").subplots()


@pytest.fixture(scope="module")
def digits():
    return load_digits().data / 16, load_digits().target


@pytest.fixture(scope="module")
def model(digits):
    return fastae.Autoencoder((8,), scale=None, max_iter=12, early_stopping=True, random_state=0).fit(
        digits[0]
    )


@pytest.fixture(scope="module")
def tumours():
    return load_breast_cancer(as_frame=True)


@pytest.fixture(scope="module")
def detector(tumours):
    benign = tumours.data[tumours.target == 1]
    return fastae.AutoencoderDetector(
        (4,), n_estimators=1, max_iter=30, contamination=0.05, random_state=0
    ).fit(benign)


def render(display):
    """Draw the whole figure: a layout or a label that cannot be drawn fails here."""
    FigureCanvasAgg(display.figure_).draw()  # a figure's own canvas draws nothing
    return display


def test_loss_curves_are_those_of_the_fit_with_the_best_epoch_marked(model, ax):
    display = render(plots.LossCurveDisplay.from_estimator(model, ax=ax))
    assert display.ax_ is ax
    assert display.figure_ is ax.figure
    assert ax.get_ylabel() == "loss"  # whatever it is: of "huber", "bernoulli", with penalties
    np.testing.assert_array_equal(display.line_.get_xdata(), np.arange(1, 13))
    np.testing.assert_array_equal(display.line_.get_ydata(), model.loss_curve_)
    np.testing.assert_array_equal(display.validation_line_.get_ydata(), model.validation_loss_curve_)
    least = min(model.validation_loss_curve_)
    assert display.best_epoch == 1 + model.validation_loss_curve_.index(least)
    assert (*display.best_.get_xdata(), *display.best_.get_ydata()) == (display.best_epoch, least)
    assert f"in epoch {display.best_epoch}" in ax.get_legend().get_texts()[-1].get_text()


def test_the_marked_epoch_is_the_one_whose_parameters_were_kept(digits, ax):
    X = digits[0][:300]
    model = fastae.Autoencoder((8,), scale=None, batch_size=20, learning_rate_init=0.1, random_state=0)
    model.set_params(early_stopping=True, max_iter=12, init="random", learning_rate="constant").fit(X)
    display = plots.LossCurveDisplay.from_estimator(model, ax=ax)
    assert display.best_epoch < model.n_iter_ - 2  # at such a rate the loss goes up again
    again = model.set_params(max_iter=display.best_epoch).fit(X).params_.flat.copy()
    whole = model.set_params(max_iter=12).fit(X).params_.flat
    np.testing.assert_array_equal(again, whole)


def test_loss_curve_of_a_history_without_validation(digits, ax):
    params = fastae.Parameters.random(fastae.Network.autoencoder(64, 4))
    history = fastae.train(params, digits[0], epochs=3, batch_size=500)
    display = render(plots.LossCurveDisplay(history.loss, history.validation_loss).plot(ax))
    np.testing.assert_array_equal(display.line_.get_ydata(), history.loss)
    assert display.best_epoch is display.best_ is display.validation_line_ is None
    assert len(ax.lines) == 1


def test_loss_is_drawn_on_a_logarithmic_scale_where_it_falls_far(ax):
    plots.LossCurveDisplay([5.0, 4.0]).plot(ax)
    assert ax.get_yscale() == "linear"
    display = render(plots.LossCurveDisplay([50.0, 4.0, 1.0]).plot(Figure().subplots()))
    assert display.ax_.get_yscale() == "log"


@pytest.mark.parametrize("ends", [(27, 8), (0.3, 0.08), (900, 100), (5000, 3), (1e5, 0.01)], ids=str)
def test_a_logarithmic_axis_has_several_labels_whatever_its_range(ends, ax):
    render(plots.LossCurveDisplay(np.geomspace(*ends, 30)).plot(ax))
    low, high = ax.get_ylim()
    labels = [tick.get_text() for tick in ax.get_yticklabels() if low <= tick.get_position()[1] <= high]
    assert len(labels) >= 4
    assert not any("$" in label or "e" in label for label in labels)
    assert len({float(label) for label in labels}) == len(labels)


def test_numbers_are_short_and_have_an_exponent_only_where_needed():
    wanted = {1663.2: "1660", 3.0: "3", 0.12345: "0.123", 0.00012: "0.00012", 1.7e8: "1.7e8", 1e-12: "1e-12"}
    assert {number: short(number) for number in wanted} == wanted


def test_images_are_rows_and_their_reconstructions_on_one_grey_scale(model, digits, ax):
    X = digits[0]
    rows = [3, 100, 7]
    display = render(
        plots.ReconstructionDisplay.from_estimator(model, X, rows=rows, image_shape=(8, 8), ax=ax)
    )
    xhat = model.reconstruct(X[rows])
    assert len(display.images_) == 3
    for pair, x, back in zip(display.images_, X[rows], xhat, strict=True):
        np.testing.assert_array_equal(pair[0].get_array(), x.reshape(8, 8))
        np.testing.assert_array_equal(pair[1].get_array(), back.reshape(8, 8))
        assert pair[0].get_clim() == pair[1].get_clim() == (0, 1)
        left, right, bottom, _ = pair[0].get_extent()
        assert pair[1].get_extent()[:2] == [left, right]
        assert bottom >= pair[1].get_extent()[3]  # the original stands above
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["3", "100", "7"]


def test_images_default_to_the_first_ten(model, digits, ax):
    display = plots.ReconstructionDisplay.from_estimator(model, digits[0], image_shape=(8, 8), ax=ax)
    np.testing.assert_array_equal(display.X, digits[0][:10])
    assert len(display.images_) == 10


def test_profiles_are_in_the_scale_the_network_sees_under_the_features_names(detector, tumours, ax):
    rows = [461, 19]
    display = render(plots.ReconstructionDisplay.from_estimator(detector, tumours.data, rows=rows, ax=ax))
    part = tumours.data.iloc[rows]
    wanted = (part.to_numpy() - detector.shift_) * detector.scale_
    back = (detector.reconstruct(part) - detector.shift_) * detector.scale_
    assert len(display.axes_) == 2
    for panel, x, xhat, row in zip(display.axes_, wanted, back, rows, strict=True):
        np.testing.assert_allclose(panel.lines[0].get_ydata(), x)
        np.testing.assert_allclose(panel.lines[1].get_ydata(), xhat)
        assert panel.get_ylabel() == f"row {row}"
        # the error that a score is the mean square of
        error = np.square(panel.lines[0].get_ydata() - panel.lines[1].get_ydata()).mean()
        assert error == pytest.approx(-detector.score_samples(tumours.data.iloc[[row]])[0])
    assert [tick.get_text() for tick in display.axes_[-1].get_xticklabels()] == list(tumours.data.columns)
    assert "standard deviations" in display.axes_[0].get_title(loc="left")


def test_profiles_without_scale_are_as_the_data_are(model, digits, ax):
    display = render(plots.ReconstructionDisplay.from_estimator(model, digits[0], rows=2, ax=ax))
    np.testing.assert_array_equal(display.axes_[1].lines[0].get_ydata(), digits[0][1])
    assert display.axes_[0].get_title(loc="left") == "value"


def test_a_code_of_two_units_is_drawn_unchanged_by_class(digits, ax):
    X, y = digits
    model = fastae.Autoencoder((2,), scale=None, max_iter=3, random_state=0).fit(X)
    display = render(plots.CodeDisplay.from_estimator(model, X, y, ax=ax))
    code = model.transform(X)
    assert list(display.scatters_) == list(range(10))
    looks = set()
    for digit, scatter in display.scatters_.items():
        np.testing.assert_array_equal(scatter.get_offsets(), code[y == digit])
        looks.add((tuple(scatter.get_facecolor()[0]), scatter.get_paths()[0].vertices.tobytes()))
    assert len(looks) == 10
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [str(digit) for digit in range(10)]
    assert ax.get_xlabel() == "unit 0 of the code"


def test_a_longer_code_is_drawn_by_its_principal_components_or_two_units(model, digits, ax):
    X = digits[0]
    display = render(plots.CodeDisplay.from_estimator(model, X, ax=ax))
    pca = PCA(2, svd_solver="full")
    np.testing.assert_allclose(display.scatters_[None].get_offsets(), pca.fit_transform(model.transform(X)))
    assert f"{pca.explained_variance_ratio_[0]:.0%}" in ax.get_xlabel()
    display = plots.CodeDisplay.from_estimator(model, X, units=(5, 2), ax=Figure().subplots())
    np.testing.assert_array_equal(display.points, model.transform(X)[:, [5, 2]])


def test_many_numbers_as_labels_are_a_scale(ax):
    code = np.random.default_rng(0).normal(size=(50, 2))
    display = render(plots.CodeDisplay(code, code[:, 0]).plot(ax))
    np.testing.assert_array_equal(display.scatters_[None].get_array(), code[:, 0])


def test_histogram_counts_every_row_on_its_side_of_the_threshold(detector, tumours, ax):
    X = tumours.data
    display = render(plots.ErrorHistogramDisplay.from_estimator(detector, X, ax=ax))
    outliers = detector.predict(X) == -1
    assert display.counts_["outlier"].sum() == outliers.sum()
    assert display.counts_["inlier"].sum() == (~outliers).sum()
    assert display.threshold == -detector.offset_
    assert set(display.threshold_line_.get_xdata()) == {display.threshold}
    above = display.bin_edges[:-1] >= display.threshold
    assert above.any()
    assert not display.counts_["outlier"][~above].any()
    assert not display.counts_["inlier"][above].any()
    np.testing.assert_array_equal(
        display.counts_["inlier"] + display.counts_["outlier"],
        np.histogram(-detector.score_samples(X), display.bin_edges)[0],
    )
    assert ax.get_xscale() == "log"


def test_histogram_by_known_classes(detector, tumours, ax):
    X, kinds = tumours.data, tumours.target_names[tumours.target]
    display = render(plots.ErrorHistogramDisplay.from_estimator(detector, X, labels=kinds, ax=ax))
    outliers = detector.predict(X) == -1
    texts = [text.get_text() for text in ax.get_legend().get_texts()]
    assert len(texts) == 3  # the last is the threshold's
    for kind, text in zip(("benign", "malignant"), texts[:2], strict=True):
        of = kinds == kind
        assert display.counts_[kind].sum() == of.sum()
        assert text == f"{kind}: {(of & outliers).sum()} of {of.sum()} rows above"


@pytest.mark.parametrize("error", [[0.0, 1.0, 3.0], [2.0], [1.0, 1.0]], ids=["zero", "one", "equal"])
@pytest.mark.parametrize("threshold", [1.0, 0.5, 9.0])
def test_histogram_of_few_errors_counts_them_all(error, threshold, ax):
    display = render(plots.ErrorHistogramDisplay(error, threshold).plot(ax))
    assert sum(counts.sum() for counts in display.counts_.values()) == len(error)
    assert threshold in display.bin_edges
    assert np.all(np.diff(display.bin_edges) > 0)


@pytest.mark.parametrize("count", [1, 3, 40])
def test_epochs_and_counts_of_rows_are_labelled_with_whole_numbers(count, ax):
    plots.LossCurveDisplay(np.linspace(1, 0.9, count)).plot(ax)
    ticks = [*ax.get_xticks()]
    below = Figure().subplots()
    plots.ErrorHistogramDisplay(np.full(count, 0.3), 1.0).plot(below)
    ticks += [*below.get_yticks()]
    assert len(ticks) >= 2
    assert np.array_equal(ticks, np.round(ticks))


@pytest.mark.parametrize("frame", [True, False], ids=["names", "numbers"])
def test_worst_rows_are_those_of_the_largest_error_and_shares_are_explains(detector, tumours, frame, ax):
    X, fitted, names = tumours.data, detector, list(tumours.data.columns)
    if not frame:
        X, names = X.to_numpy(), list(range(30))
        fitted = fastae.AutoencoderDetector((4,), n_estimators=1, max_iter=5, random_state=0).fit(X)
    display = render(plots.WorstRowsDisplay.from_estimator(fitted, X, count=6, top=2, ax=ax))
    error = -fitted.score_samples(X)
    np.testing.assert_array_equal(display.rows, np.argsort(-error)[:6])
    np.testing.assert_array_equal(display.error, np.sort(error)[::-1][:6])
    part = X.iloc[display.rows] if frame else X[display.rows]
    cells = fitted.reconstruction_error(part, per_feature=True) * fitted.scale_**2
    shares = cells / cells.sum(axis=1, keepdims=True)
    drawn = [names.index(feature) for feature in display.features.tolist()]
    np.testing.assert_allclose(display.image_.get_array(), 100 * shares[:, drawn].T)
    assert set(drawn) == set(np.argsort(-shares, axis=1)[:, :2].ravel())
    assert np.all(np.diff(display.shares.sum(axis=0)) <= 0)
    assert [tick.get_text() for tick in ax.get_yticklabels()] == [str(name) for name in display.features]
    assert ax.get_xticklabels()[0].get_text().split("\n")[0] == str(display.rows[0])


def test_all_displays_draw_an_ensemble(tumours):
    X = tumours.data.to_numpy()
    ensemble = fastae.AutoencoderDetector(n_estimators=3, max_iter=5, random_state=0).fit(X[:100])
    worst = render(plots.WorstRowsDisplay.from_estimator(ensemble, X, count=6, top=30))
    features, shares = ensemble.explain(X[worst.rows], top=30)
    for row in range(6):
        by_feature = dict(zip(features[row].tolist(), shares[row], strict=True))
        wanted = [by_feature[feature] for feature in worst.features.tolist()]
        np.testing.assert_allclose(worst.shares[row], wanted)
    histogram = render(plots.ErrorHistogramDisplay.from_estimator(ensemble, X))
    assert histogram.threshold == ensemble.threshold_
    assert sum(counts.sum() for counts in histogram.counts_.values()) == len(X)
    render(plots.ReconstructionDisplay.from_estimator(ensemble, X, rows=2))
    curve = render(plots.LossCurveDisplay.from_estimator(ensemble))
    np.testing.assert_array_equal(curve.ax_.lines[0].get_ydata(), ensemble.loss_curve_)
    code = render(plots.CodeDisplay.from_estimator(ensemble, X))
    assert code.points.shape == (569, 2)


@pytest.mark.parametrize("size", [(12, 5), (14, 5), (30, 5)], ids=str)
@pytest.mark.parametrize("scale", [1, 1000, 1e9])
def test_labels_of_worst_rows_do_not_overlap(size, scale):
    _, ax = Figure(figsize=size, layout="constrained").subplots(1, 2)
    rows = 1_000_000 + np.arange(10) if scale > 1 else np.arange(10)
    error, shares = scale * np.linspace(3.22, 1.66, 10), np.full((10, 2), 0.5)
    display = render(plots.WorstRowsDisplay(rows, error, ["mean concave points", "b"], shares).plot(ax))
    boxes = [tick.get_window_extent() for tick in ax.get_xticklabels()]
    assert len(boxes) == 10
    assert all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))
    assert display.figure_.bbox.y0 <= min(box.y0 for box in boxes)


def test_features_without_a_share_take_no_row(detector, tumours, ax):
    X = tumours.data.iloc[:40].copy()
    X.iloc[:, 0] *= 1000  # has all of each row's error
    display = render(plots.WorstRowsDisplay.from_estimator(detector, X, count=5, top=6, ax=ax))
    assert display.features.tolist()[0] == "mean radius"
    assert (display.shares.max(axis=0) >= 0.01).all()
    assert display.features.size < 6
    assert len(ax.texts) >= display.features.size


def test_many_named_features_are_labelled_at_intervals(ax):
    X, names = np.ones((1, 300)), [f"column {i}" for i in range(300)]
    display = render(plots.ReconstructionDisplay(X, X, feature_names=names).plot(ax))
    boxes = [tick.get_window_extent() for tick in display.axes_[0].get_xticklabels()]
    assert len(boxes) > 10
    assert all(left.x1 <= right.x0 for left, right in itertools.pairwise(boxes))


def test_saved_reconstructions_need_no_estimator(tmp_path, digits):
    path = tmp_path / "digits.png"
    plots.save_reconstructions(path, digits[0], digits[0] / 2, shape=(8, 8), count=4)
    height, width, _ = matplotlib.image.imread(path).shape
    assert width > 2 * height


def test_without_axes_a_new_figure_is_used_and_the_backend_stays():
    code = (
        "import matplotlib, sys; from fastae.plots import LossCurveDisplay; "
        "assert 'matplotlib.pyplot' not in sys.modules; "
        "from matplotlib.figure import Figure; LossCurveDisplay([2, 1]).plot(Figure().subplots()); "
        "assert 'matplotlib.pyplot' not in sys.modules; "
        "matplotlib.use('svg'); display = LossCurveDisplay([2, 1]).plot(); "
        "assert matplotlib.get_backend() == 'svg'; "
        "import matplotlib.pyplot as plt; assert plt.gcf() is display.figure_; "
        "display.figure_.savefig(sys.stdout.buffer, format='png')"
    )
    without = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "MPLBACKEND")}
    ran = run([sys.executable, "-c", code], env=without, text=False)
    assert ran.returncode == 0, ran.stderr.decode()
    assert ran.stdout.startswith(b"\x89PNG")


def test_without_matplotlib_the_error_names_the_extra_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match=r"fastae\[plot\]"):
        plots.LossCurveDisplay([1.0]).plot()


def test_errors_name_the_argument(model, digits, ax):
    X = digits[0]
    with pytest.raises(TypeError, match="estimator must be an Autoencoder, got PCA"):
        plots.CodeDisplay.from_estimator(PCA(), X)
    with pytest.raises(TypeError, match="estimator must be an AutoencoderDetector, got Autoencoder"):
        plots.ErrorHistogramDisplay.from_estimator(model, X)
    with pytest.raises(NotFittedError):
        plots.LossCurveDisplay.from_estimator(fastae.Autoencoder())
    with pytest.raises(
        ValueError, match=r"image_shape must have 64 cells, one per feature of X, got \(8, 9\)"
    ):
        plots.ReconstructionDisplay.from_estimator(model, X, image_shape=(8, 9))
    with pytest.raises(ValueError, match="feature_names must contain 2 names, got 3"):
        plots.ReconstructionDisplay(np.ones((1, 2)), np.ones((1, 2)), feature_names=["a", "b", "c"])
    with pytest.raises(ValueError, match="X and xhat must have the same two-dimensional shape"):
        plots.ReconstructionDisplay(np.ones((1, 2)), np.ones((1, 3)))
    with pytest.raises(ValueError, match="code must have 2 units or more, got shape"):
        plots.CodeDisplay(np.ones((3, 1)))
    with pytest.raises(ValueError, match="labels has shape"):
        plots.CodeDisplay(np.ones((3, 2)), [1, 2])
    with pytest.raises(ValueError, match="labels has 50 classes, but 49 can be told apart"):
        plots.CodeDisplay(np.ones((50, 2)), [f"c{i}" for i in range(50)]).plot(ax)
    with pytest.raises(ValueError, match="labels has shape"):
        plots.ErrorHistogramDisplay([1.0, 2.0], 1.5, labels=["a"])
    with pytest.raises(ValueError, match="validation_loss has 1 epochs, but loss has 2"):
        plots.LossCurveDisplay([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match=r"shares must be of shape \(rows, features\)"):
        plots.WorstRowsDisplay([1], [0.5], ["a", "b"], [[1.0]])


def test_worst_rows_count_and_top_are_checked(detector, tumours):
    for name in ("count", "top"):
        with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
            plots.WorstRowsDisplay.from_estimator(detector, tumours.data, **{name: 0})
        with pytest.raises(TypeError, match=f"{name} must be an integer, got 1.5"):
            plots.WorstRowsDisplay.from_estimator(detector, tumours.data, **{name: 1.5})
