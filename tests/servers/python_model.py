"""Triton's Python backend in place of its ONNX Runtime backend: the same file, computed by the same engine."""

import os
import sys
from pathlib import Path

sys.path[:0] = os.environ["PYTHONPATH"].split(os.pathsep)  # which the server's stub leaves out

import numpy as np  # noqa: E402
import onnxruntime  # noqa: E402
import triton_python_backend_utils as pb_utils  # noqa: E402

OUTPUTS = ("probabilities", "defect_map", "features")


class TritonPythonModel:
    def initialize(self, args):
        file = Path(args["model_repository"]) / args["model_version"] / "model.onnx"
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        self.session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])

    def execute(self, requests):
        """One run for all requests, as the ONNX Runtime backend does it under dynamic batching."""
        given = [{tensor.name(): tensor.as_numpy() for tensor in request.inputs()} for request in requests]
        if len(given) > 1 and all(set(inputs) == {"frames"} for inputs in given):
            sizes = [len(inputs["frames"]) for inputs in given]
            found = self.session.run(OUTPUTS, {"frames": np.concatenate([inputs["frames"] for inputs in given])})
            parts = zip(*(np.split(output, np.cumsum(sizes)[:-1]) for output in found), strict=True)
        else:
            parts = (self.session.run(OUTPUTS, inputs) for inputs in given)
        return [
            pb_utils.InferenceResponse([pb_utils.Tensor(*pair) for pair in zip(OUTPUTS, part, strict=True)])
            for part in parts
        ]
