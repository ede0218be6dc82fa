"""Plan + denoiser -> ONNX graphs and TensorRT engines. Import the modules: graph, export, engine, parity."""
