"""ONNX Runtime on the CPU, with operators of the project's own."""
