"""The network in ONNX Runtime."""
