"""Images from a bundle with numpy and ONNX Runtime; torch is never imported.

generator = Generator.open("digits.bundle")
images = generator(labels=[3, 1, 4], seeds=[0, 1, 2])  # uint8 (B, H, W, C)
"""

from fewstep.runtime.generator import Generator

__all__ = ["Generator"]
