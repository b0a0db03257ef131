"""Rendering against transformers' apply_chat_template, and templates that fail or try to escape."""

import json

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from qwen2vl_rt.errors import BundleError, InputError
from qwen2vl_rt.processing.chat_template import ChatTemplate, find_template
from tests.support.preparation import TEMPLATE

CONVERSATIONS = [
    [{"role": "user", "content": "hello"}],
    [{"role": "system", "content": "Be brief.\n"}, {"role": "user", "content": "  hello\n\n"}],
    [
        {
            "role": "user",
            "content": [
                {"type": "image", "image": "a"},
                {"type": "text", "text": "what"},
                {"type": "video", "video": "b"},
                {"type": "image", "image": "c"},
            ],
        },
        {"role": "assistant", "content": [{"type": "text", "text": "a <b> & 'c'"}]},
        {"role": "user", "content": [{"type": "text", "text": "and \u4f60\u597d?"}]},
    ],
]

OTHER_TEMPLATES = [
    # Blanks and line ends around blocks are trimmed as in the reference.
    "{% for m in messages %}\n    {% if m.role == 'user' %}\n  U: {{ m.content | tojson }}\n    {% endif %}\n"
    "{% endfor %}\n",
    "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{{ m['role'] }}{% endfor %}",
    "{% for m in messages %}{% generation %}{{ m.role }}!{% endgeneration %}{% endfor %}",
    "{{ messages | length }}{{ tools }}{{ documents is none }}{{ bos_token }}{{ strftime_now('%Y') }}",
    "{%- for m in messages -%} {{ m.content | string | trim }} {%- endfor -%}",
]


@pytest.mark.parametrize("template", [TEMPLATE, *OTHER_TEMPLATES])
@pytest.mark.parametrize("messages", CONVERSATIONS)
@pytest.mark.parametrize("generation", [True, False])
@pytest.mark.parametrize("vision_id", [True, False])
def test_equals_transformers(template, messages, generation, vision_id):
    expected, _ = render_jinja_template(
        [messages], chat_template=template, add_generation_prompt=generation, add_vision_id=vision_id
    )
    assert ChatTemplate(template).render(messages, generation, vision_id) == expected[0]


def test_vision_ids():
    text = ChatTemplate(TEMPLATE).render(CONVERSATIONS[2], add_vision_id=True)
    assert "Picture 1: <|vision_start|>" in text
    assert "Picture 2: <|vision_start|>" in text
    assert "Video 1: <|vision_start|>" in text
    assert "Picture" not in ChatTemplate(TEMPLATE).render(CONVERSATIONS[2])


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for %}", "does not compile, line 1"),
        ("{{ messages", "does not compile"),
        ("{% include 'x' %}", "failed: TypeError"),
        ("{{ messages[0].missing.deeper }}", "failed: UndefinedError"),
        ("{{ raise_exception('only text here') }}", "failed: TemplateError: only text here"),
        ("{{ 1 / 0 }}", "failed: ZeroDivisionError"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "failed: RecursionError"),
        ("{{ messages.append(1) }}", "failed: SecurityError"),
        ("{{ messages.__class__.__mro__ }}", "failed: SecurityError"),
        ("{{ ''.__class__.__base__.__subclasses__() }}", "failed: SecurityError"),
        ("{{ self.__init__.__globals__ }}", "failed: SecurityError|UndefinedError"),
        ("{{ raise_exception.__globals__['json'] }}", "failed: SecurityError|UndefinedError"),
        ("{{ '{0.__class__.__mro__[1].__subclasses__}'.format(1) }}", "failed: SecurityError"),
        ("{% for i in range(10**9) %}{% endfor %}", "failed: OverflowError"),
    ],
)
def test_failing_templates_are_input_errors(template, message):
    with pytest.raises(InputError, match=message):
        ChatTemplate(template).render([{"role": "user", "content": "x"}])


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception.__globals__ }}",
        "{{ ''|attr('__class__')|attr('__mro__') }}",
        "{{ cycler.__init__ }}",
        "{{ messages.__reduce__ }}",
    ],
)
def test_internals_are_undefined_in_templates(template):
    assert ChatTemplate(template).render([{"role": "user", "content": "x"}]) == ""


@pytest.mark.parametrize("source", [5, None, "x" * (1 << 21)])
def test_refuses_other_sources(source):
    with pytest.raises(InputError, match="chat template"):
        ChatTemplate(source)


class TestFindTemplate:
    def test_in_order(self, tmp_path):
        assert find_template(tmp_path) is None
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "third"}))
        assert find_template(tmp_path) == "third"
        (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": "second"}))
        assert find_template(tmp_path) == "second"
        (tmp_path / "chat_template.jinja").write_text("first")
        assert find_template(tmp_path) == "first"

    def test_named_templates(self, tmp_path):
        named = [{"name": "tool_use", "template": "a"}, {"name": "default", "template": "b"}]
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
        assert find_template(tmp_path) == "b"

    @pytest.mark.parametrize("text", ["{", "[]", '{"chat_template": 4}', '{"chat_template": [1]}', "\xff"])
    def test_damaged(self, tmp_path, text):
        (tmp_path / "chat_template.json").write_bytes(text.encode("latin-1"))
        with pytest.raises(BundleError, match="chat template cannot be read"):
            find_template(tmp_path)
