"""ONNX Runtime as a peer: a model of one node, on as many threads as torch has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor


def one_node(
    kind: str, inputs: dict[str, Tensor], weights: dict[str, Tensor], opset: int, **attributes: Any
) -> Callable[[], Tensor]:
    """Runs an operator of ONNX on `inputs`, then `weights`, which the model holds. Skips the test without ONNX.

    Args:
        kind: the operator's name.
        inputs: by name, in the operator's order.
        weights: likewise; they follow the inputs.
        opset: ONNX's version.
        **attributes: the operator's.
    """
    onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    helper = onnx.helper
    feed = {name: tensor.numpy() for name, tensor in inputs.items()}
    types = {name: helper.np_dtype_to_tensor_dtype(array.dtype) for name, array in feed.items()}
    graph = helper.make_graph(
        [helper.make_node(kind, [*inputs, *weights], ["y"], **attributes)],
        "layer",
        [helper.make_tensor_value_info(name, types[name], array.shape) for name, array in feed.items()],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
        [onnx.numpy_helper.from_array(tensor.numpy(), name) for name, tensor in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    model.ir_version = 10
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda: torch.from_numpy(session.run(None, feed)[0])
