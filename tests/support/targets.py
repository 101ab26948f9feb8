"""Networks whose output is compared with another matrix than X, and views of such matrices."""

import numpy as np

S, LINEAR = "sigmoid", "identity"
# Widths, activations and rows, so that each form of products and both cuts are met; odd sizes
SHAPES = [
    ((1, 1, 1), (S, LINEAR), 1),
    ((5, 3, 5, 5), (S, S, LINEAR), 7),
    ((30, 8, 30, 30), (S, S, LINEAR), 513),
    ((9, 40, 9), ("relu", S), 100),
    ((20, 7, 20), ("tanh", S), 300),
    ((33, 16, 5, 33), (S, "relu", "tanh"), 200),
    ((250, 40, 250, 250), (S, S, LINEAR), 150),
    ((250, 40, 250, 250), (S, "tanh", S), 150),
]
# The same with outputs of another width than the input's: fewer and more, in one block or several
OTHER_WIDTHS = [
    ((5, 3, 1), (S, LINEAR), 7),
    ((3, 2, 70), (S, LINEAR), 33),
    ((40, 8, 3), (S, S), 301),
    ((30, 8, 30, 7), (S, S, LINEAR), 513),
    ((17, 6, 90), ("tanh", S), 200),
    ((300, 40, 250, 20), (S, S, LINEAR), 90),
    ((20, 40, 250, 300), (S, S, S), 90),
]

VIEWS = {
    "rows": lambda a: a,
    "columns first": np.asfortranarray,
    "every other row": lambda a: np.repeat(a, 2, axis=0)[::2],
    "every third column": lambda a: np.repeat(a, 3, axis=1)[:, ::3],
    "backwards": lambda a: a[::-1].copy()[::-1],
    "float64": lambda a: a.astype("f8"),
    "float16": lambda a: a.astype("f2"),
    "int8": lambda a: np.round(3 * a).astype("i1"),
    "bool": lambda a: a > 0,
}
