"""Engines for NVIDIA GPUs, built by TensorRT (Jetson, data centre) or TensorRT for RTX (desktop): one code.

`build.py` goes from a bundle to engine files; docs/tensorrt.md tells users about it.
"""

GRAPHS = (
    "vision",
    "prefill",
    "decoder",
)  # of a bundle, as they are built; "prefill" where it has one
ATTENTION_FORMS = ("mask", "lengths", "primitives")  # of a decoder's engine, the preferred first: see `Form`
