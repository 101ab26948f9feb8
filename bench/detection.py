"""Detection of anomalies, beside other detectors: ``python -m fastae.bench.detection``.

The labelled sets of ADBench (Han et al., NeurIPS 2022) are read from the directory FASTAE_ADBENCH. All detectors see
the same rows, with columns standardised by the training rows, and have the default settings of their libraries, once
for all sets. There are two protocols:

    normal      trained on half of the normal rows; scored are the other half and all anomalies
    unlabelled  trained on all rows, and scored on the same

A table has, for each detector, the AUROC on each set, and the means over the sets of AUROC, average precision and rank,
and the seconds for fitting and scoring all sets.
"""

import argparse
import json
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import rankdata
from sklearn.metrics import average_precision_score, roc_auc_score

from fastae.bench import machine
from fastae.bench.quality_cases import DIRECTORY, directory
from fastae.storage import written_whole

PROTOCOLS = "normal", "unlabelled"
Fit = Callable[[np.ndarray, int], Callable[[np.ndarray], np.ndarray]]


@dataclass(frozen=True)
class Method:
    """A detector: `fit` takes training rows and a seed, and returns the function that scores rows, outliers highest."""

    package: str
    fit: Fit


@dataclass(frozen=True)
class Result:
    """One detector on one set: means over the seeds."""

    auroc: float
    average_precision: float
    seconds: float


def _fastae(rows: np.ndarray, seed: int, **settings: Any) -> Callable[[np.ndarray], np.ndarray]:
    from fastae import AutoencoderDetector

    detector = AutoencoderDetector(random_state=seed, **settings).fit(rows)
    return lambda X: -detector.score_samples(X)


def _nearest(rows: np.ndarray, seed: int) -> Callable[[np.ndarray], np.ndarray]:
    """The distance to the fifth neighbour; a row that was trained on is not its own neighbour."""
    from sklearn.neighbors import NearestNeighbors

    known = NearestNeighbors(n_neighbors=min(5, len(rows) - 1)).fit(rows)
    return lambda X: np.asarray(known.kneighbors(None if X is rows else X)[0][:, -1])


def _sklearn(module: str, kind: str, seeded: bool) -> Fit:
    def fit(rows: np.ndarray, seed: int) -> Callable[[np.ndarray], np.ndarray]:
        model = getattr(import_module(module), kind)(**({"random_state": seed} if seeded else {})).fit(rows)
        return lambda X: -model.score_samples(X)

    return fit


def _pca(rows: np.ndarray, seed: int) -> Callable[[np.ndarray], np.ndarray]:
    """The squared error of the components that hold 90% of the variance."""
    from sklearn.decomposition import PCA

    pca = PCA(0.9, svd_solver="full").fit(rows)
    return lambda X: np.asarray(np.square(X - pca.inverse_transform(pca.transform(X))).sum(axis=1))


def _pyod(module: str, kind: str, **settings: Any) -> Fit:
    def fit(rows: np.ndarray, seed: int) -> Callable[[np.ndarray], np.ndarray]:
        given = {name: value(rows, seed) if callable(value) else value for name, value in settings.items()}
        model = getattr(import_module(f"pyod.models.{module}"), kind)(**given).fit(rows)
        return lambda X: np.asarray(model.decision_function(X))

    return fit


def _seed(rows: np.ndarray, seed: int) -> int:
    return seed


METHODS = {
    "fastae": Method("numpy", _fastae),
    "fastae, 1 network": Method("numpy", lambda rows, seed: _fastae(rows, seed, n_estimators=1)),
    "5 nearest": Method("sklearn", _nearest),
    "isolation forest": Method("sklearn", _sklearn("sklearn.ensemble", "IsolationForest", True)),
    "one-class SVM": Method("sklearn", _sklearn("sklearn.svm", "OneClassSVM", False)),
    "PCA, 90%": Method("sklearn", _pca),
    "PyOD PCA": Method("pyod", _pyod("pca", "PCA", random_state=_seed)),
    "PyOD ECOD": Method("pyod", _pyod("ecod", "ECOD")),
    "PyOD AutoEncoder": Method("pyod", _pyod("auto_encoder", "AutoEncoder", random_state=_seed, verbose=0)),
    "PyOD DeepSVDD": Method(
        "pyod",
        _pyod(
            "deep_svdd",
            "DeepSVDD",
            n_features=lambda rows, seed: rows.shape[1],
            random_state=_seed,
            verbose=0,
        ),
    ),
}


def split(
    X: np.ndarray, y: np.ndarray, protocol: str, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Training rows, rows to score, and which of these are anomalies; where both are all rows, they are one array."""
    if protocol == "unlabelled":
        standard = _standardised(X, X)
        return standard, standard, y
    normal = np.flatnonzero(y == 0)
    np.random.default_rng(seed).shuffle(normal)
    train, test = np.split(normal, [len(normal) // 2])
    test = np.concatenate([test, np.flatnonzero(y == 1)])
    return _standardised(X[train], X[train]), _standardised(X[test], X[train]), y[test]


def _standardised(X: np.ndarray, by: np.ndarray) -> np.ndarray:
    spread = by.std(axis=0)
    return np.asarray((X - by.mean(axis=0)) / np.where(spread > 0, spread, 1))


def measure(name: str, X: np.ndarray, y: np.ndarray, protocol: str, seeds: Iterable[int]) -> Result:
    """One detector on one set."""
    figures = []
    for seed in seeds:
        train, test, labels = split(X, y, protocol, seed)
        began = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            scores = METHODS[name].fit(train, seed)(test)
        seconds = time.perf_counter() - began
        ranks = rankdata(np.nan_to_num(scores, nan=-np.inf, posinf=np.inf))
        figures.append((roc_auc_score(labels, ranks), average_precision_score(labels, ranks), seconds))
    return Result(*map(float, np.mean(figures, axis=0)))


def run(
    folder: Path,
    sets: Sequence[str],
    names: Sequence[str],
    seeds: Iterable[int],
    tell: Callable[[str], Any] = lambda words: None,
) -> dict[str, dict[str, dict[str, Result]]]:
    """The results by protocol, set and detector."""
    results: dict[str, dict[str, dict[str, Result]]] = {protocol: {} for protocol in PROTOCOLS}
    for data_set in sets:
        with np.load(folder / f"{data_set}.npz") as file:
            X, y = file["X"].astype(np.float64), file["y"].astype(int)
        for protocol in PROTOCOLS:
            tell(f"{data_set}, {protocol}")
            results[protocol][data_set] = {name: measure(name, X, y, protocol, seeds) for name in names}
    return results


def summary(results: dict[str, dict[str, Result]]) -> dict[str, dict[str, float]]:
    """Means over the sets by detector: AUROC, average precision, rank by AUROC; and the sum of the seconds."""
    names = list(next(iter(results.values())))
    auroc = np.array([[of[name].auroc for name in names] for of in results.values()])
    ranks = np.array([rankdata(-row) for row in auroc])
    return {
        name: {
            "AUROC": float(auroc[:, i].mean()),
            "average precision": float(np.mean([of[name].average_precision for of in results.values()])),
            "rank": float(ranks[:, i].mean()),
            "seconds": sum(of[name].seconds for of in results.values()),
        }
        for i, name in enumerate(names)
    }


def markdown(results: dict[str, dict[str, dict[str, Result]]]) -> str:
    """A table for each protocol."""
    tables = []
    for protocol, by_set in results.items():
        means = summary(by_set)
        lines = [f"| {protocol} | " + " | ".join(means) + " |", "|---|" + "---|" * len(means)]
        for data_set, of in by_set.items():
            best = max(result.auroc for result in of.values())
            cells = (
                f"**{100 * r.auroc:.1f}**" if r.auroc == best else f"{100 * r.auroc:.1f}" for r in of.values()
            )
            lines.append(f"| {data_set} | " + " | ".join(cells) + " |")
        for row, figures in (("AUROC", "{:.1f}"), ("average precision", "{:.1f}")):
            cells = (figures.format(100 * mean[row]) for mean in means.values())
            lines.append(f"| mean {row} | " + " | ".join(cells) + " |")
        lines.append("| mean rank | " + " | ".join(f"{mean['rank']:.2f}" for mean in means.values()) + " |")
        lines.append(
            "| seconds, all sets | " + " | ".join(f"{mean['seconds']:.1f}" for mean in means.values()) + " |"
        )
        tables.append("\n".join(lines) + "\n")
    return "\n".join(tables)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m fastae.bench.detection", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument(
        "--data", type=Path, default=directory(), help=f"directory of .npz files; default: ${DIRECTORY}"
    )
    parser.add_argument("--sets", help="names, separated by commas; default: all")
    parser.add_argument(
        "--methods",
        help=f"separated by semicolons, of: {'; '.join(METHODS)}; default: all installed".replace("%", "%%"),
    )
    parser.add_argument("--seeds", type=int, default=1, help="number of seeds; default: 1")
    parser.add_argument("--out", type=Path, help="write the results to this file as JSON")
    asked = parser.parse_args(arguments)
    if asked.data is None or not asked.data.is_dir():
        parser.error(f"--data: no directory of ADBench sets: set {DIRECTORY}")
    present = sorted(path.stem for path in asked.data.glob("*.npz"))
    sets = present if asked.sets is None else asked.sets.split(",")
    names = list(METHODS) if asked.methods is None else [name.strip() for name in asked.methods.split(";")]
    for kind, given, known in (("--sets", sets, present), ("--methods", names, list(METHODS))):
        if unknown := [name for name in given if name not in known]:
            parser.error(f"{kind}: {unknown[0]!r} is none of {', '.join(known)}")
    if not sets:
        parser.error(f"--data: {asked.data} holds no .npz files")
    if asked.seeds < 1:
        parser.error("--seeds must be at least 1")
    missing = [name for name in names if find_spec(METHODS[name].package) is None]
    names = [name for name in names if name not in missing]
    about = machine.describe()
    results = run(asked.data, sets, names, range(asked.seeds), lambda words: print(words, file=sys.stderr))
    print(markdown(results))
    if missing:
        print(f"not installed: {', '.join(missing)}")
    if asked.out is not None:
        content = {
            protocol: {
                data_set: {name: asdict(result) for name, result in of.items()}
                for data_set, of in by_set.items()
            }
            for protocol, by_set in results.items()
        }
        with written_whole(asked.out) as temporary:
            temporary.write_text(
                json.dumps({"machine": about, "seeds": asked.seeds, **content}, indent=1) + "\n"
            )


if __name__ == "__main__":
    main()
