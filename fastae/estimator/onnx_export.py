"""A fitted estimator as an ONNX graph (extra ``onnx``, imported only when a graph is built)."""

import itertools
from typing import Any

import numpy as np

from fastae.estimator.neighbours import FLOOR, groups_of
from fastae.network import check_dtype

OPSET, IR = 17, 8  # of 2022, so that older runtimes can read the graph
_OPERATORS = {"sigmoid": "Sigmoid", "tanh": "Tanh", "relu": "Relu"}


def build(model: Any, dtype: Any = None) -> Any:
    """The ``onnx.ModelProto`` of a fitted estimator.

    The input is `X` of shape (rows, n), in `dtype`, by default the model's, and the scale of the data. The outputs are
    `code` of shape (rows, k) and `reconstruction` of shape (rows, n); for a detector also `score` and `decision`, of
    shape (rows,).
    """
    try:
        import onnx
        from onnx import helper, numpy_helper
    except ImportError as error:
        raise ImportError('to_onnx needs onnx: pip install "fastae[onnx]"') from error
    params, network = model.params_, model.network_
    dtype = params.dtype if dtype is None else check_dtype(dtype)
    kind = helper.np_dtype_to_tensor_dtype(dtype)
    nodes, constants, names = [], [], (f"t{number}" for number in itertools.count())

    def constant(value: Any, dtype: Any = dtype) -> str:
        constants.append(numpy_helper.from_array(np.asarray(value, dtype), next(names)))
        return str(constants[-1].name)

    def node(operator: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        output = output or next(names)
        nodes.append(helper.make_node(operator, inputs, [output], **attributes))
        return output

    def mean_of(values: list[str]) -> str:
        return node("Mul", node("Sum", *values), constant(1 / len(values)))

    x, scaled = "X", model.scale_ is not None
    if scaled:  # in float64, rounded once, as in the engine
        shift, scale = constant(model.shift_, np.float64), constant(model.scale_, np.float64)
        x = node("Cast", x, to=onnx.TensorProto.DOUBLE)
        x = node("Cast", node("Mul", node("Sub", x, shift), scale), to=kind)
    missing = model.missing is not None
    if missing:
        zero, hole = constant(0), node("IsNaN", "X")
        x = node("Where", hole, zero, x)
    columns, ensemble = constant([1], np.int64), getattr(model, "_ensemble", None)
    networks = (params,) if ensemble is None else ensemble.networks
    codes, outputs = [], []
    for each in networks:
        h = x
        for layer, activation in enumerate(network.activations, start=1):
            h = node("Gemm", h, constant(each[f"W{layer}"]), constant(each[f"b{layer}"]))
            if activation != "identity":
                h = node(_OPERATORS[activation], h)
            if layer == network.code_layer:
                codes.append(h)
        outputs.append(h)
    several = len(networks) > 1
    if several:
        node("Concat", *codes, axis=1, output="code")
    else:
        node("Identity", codes[0], output="code")
    reconstruction = mean_of(outputs) if several else outputs[0]
    if scaled:
        reconstruction = node(
            "Add", node("Div", reconstruction, constant(model.scale_)), constant(model.shift_)
        )
    node("Identity", reconstruction, output="reconstruction")
    shapes = {
        "code": ["rows", len(networks) * network.widths[network.code_layer]],
        "reconstruction": ["rows", network.widths[-1]],
    }

    def mean_square(difference: str) -> str:
        """The mean over the cells that are there."""
        square = node("Mul", difference, difference)
        if missing:
            square = node("Where", hole, zero, square)
        return node("Div", node("ReduceSum", square, columns, keepdims=0), count)

    def whitened(residual: str, whitening: np.ndarray) -> str:
        """|r A|^2 / n."""
        product = node("MatMul" if whitening.ndim == 2 else "Mul", residual, constant(whitening))
        return node("ReduceMean", node("Mul", product, product), axes=[1], keepdims=0)

    def products(points: np.ndarray) -> str:
        """(rows, points): the squared distances over the cells that are there, less the sum of x^2."""
        square = np.square(points)
        of_points = node("MatMul", there, constant(square.T)) if missing else constant(square.sum(axis=1))
        return node("Add", node("MatMul", x, constant(-2 * points.T)), of_points)

    if hasattr(model, "offset_"):
        if missing:
            there = node("Cast", node("Not", hole), to=kind)
            count = node("Max", node("ReduceSum", there, columns, keepdims=0), constant(1))
        else:
            count = constant(network.widths[0])
        residuals = [node("Sub", output, x) for output in outputs]
        errors = [mean_square(residual) for residual in residuals]
        total = errors[0]
        if ensemble is not None:
            floor = constant(FLOOR)
            weighted = [
                node("Mul", node("Add", each, floor), constant(factor))
                for each, factor in zip(errors, ensemble.balance, strict=True)
            ]
            total = mean_of(weighted)
            if len(ensemble.kept):
                # As in Neighbours: products select the nearest kept row, and the difference from it is computed anew
                points = np.asarray(ensemble.kept, np.float64)
                nearest = node("ArgMin", products(points), axis=1, keepdims=0)
                nearest = node("Gather", constant(points), nearest, axis=0)
                distance = node("Add", mean_square(node("Sub", x, nearest)), floor)
                groups = groups_of(points)
                least = node(
                    "Reshape",
                    products(groups.reshape(-1, groups.shape[2])),
                    constant([-1, *groups.shape[:2]], np.int64),
                )
                least = node("ReduceMin", least, axes=[1], keepdims=0)
                squares = node("Add", least, node("ReduceSum", node("Mul", x, x), columns, keepdims=1))
                cells = node("Unsqueeze", count, columns) if missing else count
                squares = node("Div", node("Max", squares, constant(0)), cells)
                logarithm = node("ReduceMean", node("Log", node("Add", squares, floor)), axes=[1], keepdims=0)
                total = node("Mul", total, node("Mul", distance, node("Exp", logarithm)))
            total = node("Pow", total, constant(1 / 3))
            whitening = ensemble.whitening()
            length = mean_of([whitened(residual, whitening) for residual in residuals])
            if missing:  # 0, where a cell is
                whole = node(
                    "Equal", node("ReduceSum", there, columns, keepdims=0), constant(network.widths[0])
                )
                length = node("Where", whole, length, zero)
            total = node("Max", total, length)
        node("Neg", total, output="score")
        node("Sub", "score", constant(model.offset_), output="decision")
        shapes |= {"score": ["rows"], "decision": ["rows"]}
    graph = helper.make_graph(
        nodes,
        type(model).__name__,
        [helper.make_tensor_value_info("X", kind, ["rows", network.widths[0]], f"rows, in {dtype}")],
        [helper.make_tensor_value_info(name, kind, shape) for name, shape in shapes.items()],
        constants,
    )
    model_proto = helper.make_model(
        graph, producer_name="fastae", opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR
    )
    onnx.checker.check_model(model_proto)
    return model_proto
