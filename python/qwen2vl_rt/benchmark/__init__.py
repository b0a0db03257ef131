"""Measure a bundle here: vision, prefill, decode, load and memory, beside the machine's own limits."""

from qwen2vl_rt.benchmark.inputs import random_picture, random_tokens, random_visual
from qwen2vl_rt.benchmark.measure import Workload, run_benchmark, steps
from qwen2vl_rt.benchmark.report import Figure, Report
from qwen2vl_rt.benchmark.work import decoder_parameters, vision_flops

__all__ = [
    "Figure",
    "Report",
    "Workload",
    "decoder_parameters",
    "random_picture",
    "random_tokens",
    "random_visual",
    "run_benchmark",
    "steps",
    "vision_flops",
]
