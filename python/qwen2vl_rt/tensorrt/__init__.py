"""Engines for NVIDIA GPUs, built by TensorRT (Jetson, data centre) or TensorRT for RTX (desktop): one code.

`build.py` goes from a bundle to engine files; docs/tensorrt.md tells users about it.
"""
