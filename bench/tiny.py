"""Where the tiny checkpoint is, whose tokenizer goes with models of random weights, too."""

from __future__ import annotations

from pathlib import Path

TINY = Path(__file__).resolve().parents[1] / "models" / "tiny"
