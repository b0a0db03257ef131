"""The exporter: a Qwen2-VL checkpoint in, a bundle of standard ONNX graphs out. No torch."""
