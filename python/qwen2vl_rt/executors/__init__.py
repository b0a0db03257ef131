"""The inference engines behind a session: one module each, chosen by `select_backend`."""

from qwen2vl_rt.executors.select import Backend, select_backend

__all__ = ["Backend", "select_backend"]
