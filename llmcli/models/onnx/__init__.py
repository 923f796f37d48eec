"""The decoder in ONNX Runtime."""
