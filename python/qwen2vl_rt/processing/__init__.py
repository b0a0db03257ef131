"""Preparation: from messages, pictures and videos to token ids, patches and grids.

`Processor` is the whole of it; the modules beside it are its steps:
pictures (loading), videos (sampling), pixels and patches (resize, normalise, cut up), messages and
chat_template (conversation to text), tokenizer (text to ids).
"""

from qwen2vl_rt.processing.options import VisualOptions
from qwen2vl_rt.processing.pictures import Picture, load_picture
from qwen2vl_rt.processing.processor import PreparedPrompt, Processor, Visual

__all__ = ["Picture", "PreparedPrompt", "Processor", "Visual", "VisualOptions", "load_picture"]
