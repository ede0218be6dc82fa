"""Plays the onnxruntime backend, which comes with Triton's container only: a backend of that name, in Python."""

import json
from pathlib import Path

import onnxruntime as ort
import triton_python_backend_utils as triton


class TritonPythonModel:
    def initialize(self, args):
        self.config = json.loads(args["model_config"])
        path = Path(args["model_repository"], args["model_version"], self.config["default_model_filename"])
        self.session = ort.InferenceSession(path)

    def execute(self, requests):
        (output,) = self.config["output"]
        made = [self.made(request, output["name"]) for request in requests]
        return [triton.InferenceResponse([triton.Tensor(output["name"], values)]) for values in made]

    def made(self, request, output):
        feeds = {}
        for spec in self.config["input"]:  # the server reshapes for backends in C++ only
            array = triton.get_input_tensor_by_name(request, spec["name"]).as_numpy()
            feeds[spec["name"]] = array.reshape(len(array), *spec["reshape"].get("shape", [])) if "reshape" in spec else array
        return self.session.run([output], feeds)[0]
