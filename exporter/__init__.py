"""Plan + denoiser -> ONNX graphs, TensorRT engines and packages. Start at export, parity, engine.build and edge.package."""
