"""Training of the tiny Qwen2-VL checkpoint: data generators, model, loop, evaluation set."""
