"""Quantization: what the codes and scales of int8 and int4 bundles are."""
