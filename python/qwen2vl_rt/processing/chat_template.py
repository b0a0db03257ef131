"""The chat template: a conversation to the text that the model was trained on.

Rendering is that of transformers' `apply_chat_template`: jinja2's immutable sandbox, trimmed blocks, loop
controls, and the same extra names. A template may come from a stranger, so errors inside it are InputErrors.
"""

from __future__ import annotations

import functools
import json
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from qwen2vl_rt.bundle import CHAT_TEMPLATE
from qwen2vl_rt.errors import BundleError, InputError

_MOST_CHARACTERS = 1 << 20


class _GenerationBlock(Extension):
    """{% generation %}...{% endgeneration %}, which marks answers for training, renders its content."""

    tags = {"generation"}  # noqa: RUF012 (jinja2 declares it so)

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False) -> str:
    # jinja2's own filter escapes HTML, which chat templates don't want.
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


@functools.cache
def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


class ChatTemplate:
    """A compiled chat template.

    source: jinja2 text. Raises InputError where it does not compile.
    """

    def __init__(self, source: str):
        if not isinstance(source, str):
            raise InputError(f"a chat template must be a str, not {type(source).__name__}")
        if len(source) > _MOST_CHARACTERS:
            raise InputError(
                f"the chat template has {len(source)} characters; the limit is {_MOST_CHARACTERS}"
            )
        self.source = source
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise InputError(
                f"the chat template does not compile, line {error.lineno}: {error.message}"
            ) from None
        except Exception as error:
            raise InputError(f"the chat template does not compile: {type(error).__name__}: {error}") from None

    def render(
        self, messages: list[dict[str, Any]], add_generation_prompt: bool = True, add_vision_id: bool = False
    ) -> str:
        """The prompt's text.

        add_generation_prompt: end with the tokens that open an answer. add_vision_id: number the pictures,
        "Picture 1: ". Raises InputError where the template fails.
        """
        try:
            return self._template.render(
                messages=messages,
                tools=None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                add_vision_id=add_vision_id,
            )
        # A template can fail with any exception of the values that it handles; RecursionError is one too.
        except Exception as error:
            raise InputError(f"the chat template failed: {type(error).__name__}: {error}") from None


@functools.lru_cache(maxsize=16)
def compiled(source: str) -> ChatTemplate:
    """A ChatTemplate, compiled once for each source."""
    return ChatTemplate(source)


def find_template(folder: Path) -> str | None:
    """Of a bundle or checkpoint: chat_template.jinja, chat_template.json or tokenizer_config.json, the first.

    Of several named templates it is the one called "default". None where there is none. Raises BundleError
    where a file cannot be read.
    """
    try:
        jinja = folder / "chat_template.jinja"
        if jinja.is_file():
            return jinja.read_text(encoding="utf-8")
        for name in (CHAT_TEMPLATE, "tokenizer_config.json"):
            path = folder / name
            if not path.is_file():
                continue
            config = json.loads(path.read_text(encoding="utf-8"))
            template = config.get("chat_template") if isinstance(config, dict) else None
            if isinstance(template, list):
                named = {entry["name"]: entry["template"] for entry in template}
                template = named.get("default")
            if isinstance(template, str):
                return template
            if name == CHAT_TEMPLATE:
                raise ValueError(f'{name} holds none; expected {{"chat_template": "..."}}')
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise BundleError(f"{folder}: the chat template cannot be read: {error}") from None
    return None
