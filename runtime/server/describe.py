"""What a model takes and gives: for protocol clients and for the playground."""

from __future__ import annotations

from typing import Any

from fewstep.runtime.server.repository import Model, Version

__all__ = ["describe", "metadata"]

DATATYPES = {"int64": "INT64", "float32": "FP32"}


def metadata(model: Model, version: Version) -> dict[str, Any]:
    """The protocol's model metadata. -1 is the number of images."""
    manifest = version.bundle.manifest
    condition, image = manifest.condition, manifest.image
    specs = [*condition.inputs()]
    if any(batcher.generator.plan.guided for batcher in version.batchers.values()):
        specs += [spec for spec in condition.null_inputs() if condition.kind == "embeddings"]
    inputs = [{"name": "seeds", "datatype": "UINT64", "shape": [-1]}]
    inputs += [{"name": spec.name, "datatype": DATATYPES[spec.dtype], "shape": [-1, *spec.shape]} for spec in specs]
    shape = [-1, image.height, image.width, image.channels]
    return {
        "name": model.name,
        "versions": [str(number) for number in model.versions],
        "platform": "fewstep",
        "inputs": inputs,
        "outputs": [{"name": "images", "datatype": "UINT8", "shape": shape}],
    }


def describe(model: Model) -> dict[str, Any]:
    """What the playground needs to know of a model."""
    version = model.version()
    manifest = version.bundle.manifest
    return {
        "name": model.name,
        "version": version.number,
        "classes": manifest.condition.classes,
        "condition": manifest.condition.kind,
        "width": manifest.image.width,
        "height": manifest.image.height,
        "default": version.default,
        "plans": [
            {
                "name": name,
                "solver": manifest.plans[name].solver,
                "calls": batcher.generator.plan.nfe,
                "backend": batcher.generator.backend,
                "precision": batcher.generator.precision,
                "reason": batcher.generator.reason,
                "max_images": batcher.max_request,
            }
            for name, batcher in version.batchers.items()
        ],
    }
