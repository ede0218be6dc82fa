"""A plan and a network as an ONNX graph. Import the modules; `layouts` and `loop` are where to start."""
