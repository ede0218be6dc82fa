"""Graphs for places without TensorRT: .ort, a web page, OpenVINO, a device. Import the modules; `package` is where to start."""
