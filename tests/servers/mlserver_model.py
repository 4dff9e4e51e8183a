"""A model of MLServer, another server of the V2 protocol, that computes with the ONNX file of a model repository."""

import onnxruntime
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceResponse, MetadataModelResponse, Parameters

OUTPUTS = ("probabilities", "defect_map", "features")


class SemClip(MLModel):
    async def load(self):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        self.session = onnxruntime.InferenceSession(
            self.settings.parameters.uri, options, providers=["CPUExecutionProvider"]
        )
        return True

    async def metadata(self):
        found = await super().metadata()
        said = self.settings.parameters.extra
        return MetadataModelResponse(**{**found.model_dump(), "parameters": Parameters(**said)})

    async def predict(self, payload):
        given = {tensor.name: NumpyCodec.decode_input(tensor) for tensor in payload.inputs}
        found = self.session.run(OUTPUTS, given)
        return InferenceResponse(
            model_name=self.name,
            outputs=[NumpyCodec.encode_output(*pair) for pair in zip(OUTPUTS, found, strict=True)],
        )
