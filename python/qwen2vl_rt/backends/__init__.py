"""What runs a session's graphs, a package each: `cpu`, `cuda`, `tensorrt`, and in `device` what the two on a
GPU share. `backend.py` says what a session asks of one, `select.py` which one it gets.
"""
