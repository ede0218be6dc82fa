"""Triton's Python backend runs this as model.py: noise from seeds, the same as the runtime's. noise.py lies beside it."""

import json
from typing import Any

import triton_python_backend_utils as triton
from noise import noise

__all__ = ["TritonPythonModel"]


class TritonPythonModel:
    """seeds UINT64 (B, 1) to noise FP32 (B, draws, C, ...)."""

    def initialize(self, args: dict[str, str]) -> None:
        """Called once, with the model's configuration."""
        self.shape = tuple(json.loads(args["model_config"])["output"][0]["dims"])

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response for every request."""
        responses = []
        for request in requests:
            seeds = triton.get_input_tensor_by_name(request, "seeds").as_numpy()
            made = triton.Tensor("noise", noise(seeds[:, 0].tolist(), self.shape))
            responses.append(triton.InferenceResponse([made]))
        return responses
