"""TensorRT engines from graphs. Import the modules; `build` is where to start."""
