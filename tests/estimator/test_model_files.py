"""Model files: a loaded estimator is the saved one to the bit, and an ONNX graph does what it does."""

import json
import pickle

import numpy as np
import pandas as pd
import pytest
from damage import damages
from disk import full_disk, names
from safetensors.numpy import load_file, save_file
from sklearn.exceptions import NotFittedError

from fastae import Autoencoder, AutoencoderDetector, Parameters, reference, storage

X = np.random.default_rng(0).normal(size=(260, 7)) @ np.random.default_rng(1).normal(size=(7, 12)) + 5
HOLED = np.where(np.random.default_rng(2).random(X.shape) < 0.1, np.nan, X)
FRAME = pd.DataFrame(X, columns=[f"feature {number}" for number in range(12)])
QUICK = {"hidden_layer_sizes": (4,), "max_iter": 5, "random_state": 0}


def one_network(*widths, **settings):
    """The detector with one network, which is like an autoencoder."""
    return AutoencoderDetector(*widths, n_estimators=1, **settings)


MODELS = {
    "plain": (Autoencoder(**QUICK), X),
    "float32": (Autoencoder(**QUICK), X.astype("f4")),
    "dtype": (Autoencoder(**QUICK, dtype=np.float32, batch_size=np.int64(50), alpha=np.float32(0.1)), X),
    "no-scale": (Autoencoder(**QUICK, scale=None, output_layer=False), X / 100),
    "deep": (Autoencoder([8, 3], max_iter=5, scale="minmax", activation="relu", random_state=1), X),
    "numpy-widths": (Autoencoder(np.array([8, 3]), max_iter=5, n_iter_no_change=np.inf, random_state=1), X),
    "early": (Autoencoder(**QUICK, early_stopping=True, noise="mask", solver="sgd"), X),
    "missing": (one_network(**QUICK, missing="mask"), HOLED),
    "frame": (one_network(**QUICK, contamination=0.2), FRAME),
    "lbfgs": (one_network(**QUICK, solver="lbfgs"), X),
    "ensemble": (AutoencoderDetector(**QUICK, n_estimators=3), X),
    "ensemble-missing": (
        AutoencoderDetector(max_iter=5, random_state=0, missing="mask", scale="minmax"),
        HOLED,
    ),
    "ensemble-frame": (AutoencoderDetector(max_iter=5, random_state=0, n_estimators=2), FRAME),
}


def saved(tmp_path, name="plain"):
    model, data = MODELS[name]
    model.fit(data)
    model.save(tmp_path / "a.safetensors")
    return model, tmp_path / "a.safetensors"


def same_bits(ours, theirs):
    return np.asarray(ours).dtype == np.asarray(theirs).dtype and np.array_equal(
        ours, theirs, equal_nan=False
    )


@pytest.mark.parametrize("name", MODELS)
def test_a_loaded_model_gives_the_same_bits(tmp_path, name):
    model, path = saved(tmp_path, name)
    data = MODELS[name][1]
    again = type(model).load(path)
    assert type(again) is type(model)
    asked = ["transform", "reconstruct", "reconstruction_error", "score"]
    if isinstance(model, AutoencoderDetector):
        asked += ["score_samples", "decision_function", "predict", "explain", "fit_predict"]
    for method in asked:
        ours, theirs = getattr(again, method)(data), getattr(model, method)(data)
        assert same_bits(ours, theirs), method
    codes = model.transform(data)
    assert same_bits(again.inverse_transform(codes), model.inverse_transform(codes))


@pytest.mark.parametrize("name", MODELS)
def test_settings_and_fitted_attributes_come_back(tmp_path, name):
    model, path = saved(tmp_path, name)
    again = type(model).load(path)
    for setting, value in model.get_params().items():
        if setting == "hidden_layer_sizes":
            assert np.array_equal(again.hidden_layer_sizes, value)
        elif setting == "dtype" and value is not None:
            assert np.dtype(again.dtype) == np.dtype(value)
        else:
            assert getattr(again, setting) == value, setting
    fitted = {part for part in vars(model) if part.endswith("_")}
    assert fitted == {part for part in vars(again) if part.endswith("_")}
    for part in fitted - {"params_"}:
        assert np.array_equal(getattr(again, part), getattr(model, part)), part
    assert list(again.get_feature_names_out()) == list(model.get_feature_names_out())


def test_feature_names_are_checked_after_loading(tmp_path):
    _, path = saved(tmp_path, "frame")
    again = Autoencoder.load(path)
    assert again.explain(FRAME, top=2)[0][0, 0].startswith("feature ")
    with pytest.raises(ValueError, match="feature names"):
        again.transform(FRAME.rename(columns={"feature 3": "other"}))


def test_the_base_class_loads_what_is_derived_from_it_and_no_other_way_round(tmp_path):
    _, path = saved(tmp_path, "lbfgs")
    assert type(Autoencoder.load(path)) is AutoencoderDetector
    _, path = saved(tmp_path, "plain")
    with pytest.raises(
        ValueError, match=r"a\.safetensors is a file of Autoencoder, not of AutoencoderDetector"
    ):
        AutoencoderDetector.load(path)
    Parameters.random(Parameters.load(path).network).save(path)
    with pytest.raises(ValueError, match=r"a\.safetensors is a file of Parameters, not of Autoencoder"):
        Autoencoder.load(path)


def test_a_class_of_ones_own_is_saved_and_loaded(tmp_path):
    class Mine(Autoencoder):
        pass

    model = Mine(**QUICK).fit(X)
    model.save(tmp_path / "a")
    again = Autoencoder.load(tmp_path / "a")
    assert type(again) is Mine
    assert same_bits(again.transform(X), model.transform(X))


def test_the_weights_are_there_for_anyone_to_read(tmp_path):
    model, path = saved(tmp_path)
    tensors = load_file(path)
    shift, scale = tensors.pop("shift"), tensors.pop("scale")
    xhat = reference.forward((X - shift) * scale, tensors)["xhat"] / scale + shift
    np.testing.assert_allclose(model.reconstruct(X), xhat, rtol=1e-12)
    assert same_bits(Parameters.load(path).flat, model.params_.flat)


def test_what_cannot_be_saved_is_left_out(tmp_path):
    model = Autoencoder((4,), max_iter=3, random_state=np.random.RandomState(0), callback=print).fit(X)
    model.save(tmp_path / "a")
    again = Autoencoder.load(tmp_path / "a")
    assert again.random_state is None
    assert again.callback is None
    assert same_bits(again.transform(X), model.transform(X))


def test_nothing_is_pickled(tmp_path, monkeypatch):
    def refuse(*_):
        raise AssertionError("pickled")

    for name in ("dump", "dumps", "load", "loads", "Pickler", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    model, path = saved(tmp_path)
    Autoencoder.load(path)
    model.fit(X, checkpoint=path)
    model.fit(X, checkpoint=path, resume=True)


def test_training_goes_on_after_loading(tmp_path):
    model, path = saved(tmp_path)
    again = Autoencoder.load(path).set_params(learning_rate_init=1e-3)
    loss = again.loss_
    again.partial_fit(X)
    assert again.loss_ < loss
    assert again.loss_curve_[:-1] == model.loss_curve_
    again = Autoencoder.load(path).set_params(warm_start=True, learning_rate_init=1e-3)
    assert again.fit(X).loss_curve_[0] < loss


def test_the_unit_of_the_columns_is_kept(tmp_path):
    path = tmp_path / "m.safetensors"
    model = Autoencoder((4,), scale=None, max_iter=5, random_state=0).fit(100 * X)
    model.save(path)
    again = Autoencoder.load(path)
    assert again.unit_ == model.unit_ > 1
    assert (
        again.partial_fit(100 * X).auto_["rate_factors"] == model.partial_fit(100 * X).auto_["rate_factors"]
    )
    stored = storage.read(path)
    for wrong in (0.0, -1.0):
        about = json.loads(json.dumps(stored.about))
        about["fitted"]["unit_"] = wrong
        storage.write(path, stored.kind, about, stored.tensors)
        with pytest.raises(ValueError, match="unit_ must be positive"):
            Autoencoder.load(path)


LATER = {
    "auto_": {},
    "error_over_mean_": None,
    "error_over_pca_": None,
    "unit_": 1.0,
}  # what earlier versions did not have


def test_models_of_earlier_versions_lack_what_came_later_and_load(tmp_path):
    model, path = saved(tmp_path, "frame")
    stored = storage.read(path)
    about = json.loads(json.dumps(stored.about))
    for name in LATER:
        del about["fitted"][name], vars(model)[name]
    storage.write(path, stored.kind, about, stored.tensors)
    for again in (AutoencoderDetector.load(path), pickle.loads(pickle.dumps(model))):
        assert {name: getattr(again, name) for name in LATER} == LATER
        again.save(path)
        assert AutoencoderDetector.load(path).auto_ == {}
        assert same_bits(again.score_samples(FRAME), model.score_samples(FRAME))
        assert again.fit(FRAME).error_over_pca_ > 0
        assert {name: getattr(again, name) for name in LATER} != LATER
    assert not any(hasattr(pickle.loads(pickle.dumps(Autoencoder())), name) for name in LATER)


def test_an_unfitted_model_is_not_saved(tmp_path):
    with pytest.raises(NotFittedError):
        Autoencoder().save(tmp_path / "a")
    with pytest.raises(NotFittedError):
        Autoencoder().to_onnx(tmp_path / "a")
    assert names(tmp_path) == []


def test_a_full_disk_leaves_the_old_model(tmp_path):
    model, path = saved(tmp_path)
    model.set_params(hidden_layer_sizes=(5,)).fit(X)
    with full_disk(), pytest.raises(OSError, match=r"a\.safetensors"):
        model.save(path)
    model.set_params(**QUICK)
    assert Autoencoder.load(path).hidden_layer_sizes == (4,)
    assert names(tmp_path) == ["a.safetensors"]


@pytest.mark.parametrize(
    ("about", "tensors", "said"),
    [
        (None, lambda t: t.pop("W2"), "W2"),
        (None, lambda t: t.pop("scale"), "scale"),
        (None, lambda t: t.update(shift=np.zeros(11)), "shift has shape"),
        (lambda a: a.pop("settings"), None, "settings"),
        (lambda a: a.pop("fitted"), None, "fitted"),
        (lambda a: a["settings"].update(learning=1), None, "learning"),
    ],
)
def test_a_damaged_model_is_an_error_that_names_it(tmp_path, about, tensors, said):
    _, path = saved(tmp_path)
    stored = storage.read(path)
    if about is not None:
        about(stored.about)
    if tensors is not None:
        tensors(stored.tensors)
    stored.about["format"] = 1  # without a digest, which would not match
    save_file(stored.tensors, path, metadata={"fastae": json.dumps(stored.about)})
    with pytest.raises(ValueError, match=rf"a\.safetensors is damaged: [^:]*{said}"):
        Autoencoder.load(path)


def test_wrong_metadata_is_a_model_that_works_or_one_error_that_names_the_file(tmp_path):
    _, path = saved(tmp_path, "lbfgs")
    messages = []
    for place, _ in damages(path):
        if place == ("settings", "n_threads"):  # many threads are allowed
            continue
        try:
            AutoencoderDetector.load(path).predict(X)
        except ValueError as error:
            messages.append(str(error))
    assert len(messages) > 200
    assert {message.count("a.safetensors") for message in messages} == {1}


def test_flipped_bits_and_cuts_of_a_model_are_noticed(tmp_path):
    _, path = saved(tmp_path, "frame")
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    for place in rng.integers(0, len(whole), 300):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(rng.integers(8))
        for content in (damaged, whole[:place]):
            path.write_bytes(content)
            with pytest.raises(ValueError, match=r"a\.safetensors (is|has)"):
                Autoencoder.load(path)


def test_files_of_format_1_which_had_no_digest_still_load(tmp_path):
    model, path = saved(tmp_path)
    stored = storage.read(path)
    assert stored.about["format"] == 2
    save_file(stored.tensors, path, metadata={"fastae": json.dumps({**stored.about, "format": 1})})
    assert same_bits(Autoencoder.load(path).transform(X), model.transform(X))
    save_file(stored.tensors, path, metadata={"fastae": json.dumps(stored.about)})
    with pytest.raises(ValueError, match="does not match its digest"):
        Autoencoder.load(path)


# -- ONNX -------------------------------------------------------------------------------------------------------------


def run(path, data):
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    outputs = [output.name for output in session.get_outputs()]
    return dict(zip(outputs, session.run(None, {"X": data}), strict=True))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("scale", ["standard", "minmax", None])
@pytest.mark.parametrize(("activation", "missing"), [("tanh", None), ("relu", "mask"), ("sigmoid", None)])
def test_onnx_runtime_does_what_the_model_does(tmp_path, dtype, scale, activation, missing):
    pytest.importorskip("onnx")
    data = (HOLED if missing else X).astype(dtype) / (1 if scale else 10)
    model = one_network(
        (8, 3), activation=activation, scale=scale, missing=missing, max_iter=30, random_state=0
    ).fit(data)
    path = tmp_path / "a.onnx"
    model.to_onnx(path)
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if dtype == "float32" else {"rtol": 1e-11, "atol": 1e-12}
    for rows in (260, 1, 17):
        outputs = run(path, data[:rows])
        assert {array.dtype for array in outputs.values()} == {np.dtype(dtype)}
        for output, method in {
            "code": "transform",
            "reconstruction": "reconstruct",
            "score": "score_samples",
            "decision": "decision_function",
        }.items():
            expected = getattr(model, method)(data[:rows])
            assert outputs[output].shape == expected.shape
            np.testing.assert_allclose(outputs[output], expected, **tolerance, err_msg=output)
    assert names(tmp_path) == ["a.onnx"]


def test_a_graph_in_float32_of_a_float64_model_takes_float32_rows(tmp_path):
    onnx = pytest.importorskip("onnx")
    model, _ = saved(tmp_path, "missing")
    assert model.params_.dtype == np.float64
    model.to_onnx(tmp_path / "a.onnx", dtype="float32")
    graph = onnx.load(tmp_path / "a.onnx").graph
    assert graph.input[0].doc_string == "rows, in float32"
    outputs = run(tmp_path / "a.onnx", HOLED.astype("f4"))
    assert {array.dtype for array in outputs.values()} == {np.dtype("f4")}
    np.testing.assert_allclose(outputs["code"], model.transform(HOLED), atol=1e-5)
    np.testing.assert_allclose(outputs["decision"], model.decision_function(HOLED), atol=1e-4)
    with pytest.raises(ValueError, match="dtype must be float32 or float64"):
        model.to_onnx(tmp_path / "a.onnx", dtype="float16")


def test_an_autoencoders_graph_has_no_scores_and_another_model_would_be_seen(tmp_path):
    pytest.importorskip("onnx")
    model, _ = saved(tmp_path)
    model.to_onnx(tmp_path / "a.onnx")
    outputs = run(tmp_path / "a.onnx", X)
    assert sorted(outputs) == ["code", "reconstruction"]
    np.testing.assert_allclose(outputs["reconstruction"], model.reconstruct(X), rtol=1e-11)
    model.fit(X[::2])
    assert np.abs(outputs["reconstruction"] - model.reconstruct(X)).max() > 1e-6


def test_a_full_disk_leaves_the_old_graph(tmp_path):
    pytest.importorskip("onnx")
    model, _ = saved(tmp_path)
    path = tmp_path / "a.onnx"
    model.to_onnx(path)
    old = path.read_bytes()
    with full_disk(), pytest.raises(OSError, match="too large"):
        model.fit(X[::2]).to_onnx(path)
    assert path.read_bytes() == old
    assert names(tmp_path) == ["a.onnx", "a.safetensors"]


def test_without_onnx_the_error_says_what_to_install(tmp_path, monkeypatch):
    model, _ = saved(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(ImportError, match=r"fastae\[onnx\]"):
        model.to_onnx(tmp_path / "a.onnx")
