"""Lowering passes: what a backend wants different from the portable graph, one small pass a module.

Each pass changes a model in place and is tested against the unchanged graph (tests/lowering).
"""
