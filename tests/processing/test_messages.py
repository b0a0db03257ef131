"""The forms in which conversations come, what they become, and what is refused."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen2vl_rt.errors import InputError
from qwen2vl_rt.processing.messages import conversation
from qwen2vl_rt.processing.options import VisualOptions
from tests.support.preparation import noise

PICTURE, OTHER = noise(1, 30, 30), noise(2, 40, 40)


def kinds(talk):
    """For each message its role and its items' types, or the text."""
    result = []
    for message in talk.messages:
        content = message["content"]
        result.append(
            (message["role"], content if isinstance(content, str) else [i["type"] for i in content])
        )
    return result


class TestPrompt:
    def test_text_only(self):
        talk = conversation("hello")
        assert talk.messages == [{"role": "user", "content": "hello"}]
        assert talk.visuals == []

    def test_visuals_come_before_the_text(self):
        talk = conversation("hello", images=[PICTURE, OTHER], videos=["a.mp4"], system="be brief")
        assert kinds(talk) == [("system", "be brief"), ("user", ["image", "image", "video", "text"])]
        assert [visual.kind for visual in talk.visuals] == ["image", "image", "video"]
        assert talk.visuals[1].source is OTHER
        assert [visual.name for visual in talk.visuals] == ["images[0]", "images[1]", "videos[0]"]

    def test_one_picture_needs_no_list(self):
        assert conversation("hello", images=PICTURE).visuals[0].source is PICTURE
        assert conversation("hello", images="a.jpg").visuals[0].source == "a.jpg"
        assert conversation("hello", images=None, videos=None).visuals == []

    def test_options_of_one_picture(self):
        visual = conversation("hello", images=[{"image": PICTURE, "max_pixels": 5000}]).visuals[0]
        assert visual.source is PICTURE
        assert visual.options == VisualOptions(max_pixels=5000)


class TestContentLists:
    @pytest.mark.parametrize(
        ("item", "kind", "source"),
        [
            ({"type": "image", "image": "a.jpg"}, "image", "a.jpg"),
            ({"type": "image", "url": "http://host/a.jpg"}, "image", "http://host/a.jpg"),
            ({"type": "image", "path": "a.jpg"}, "image", "a.jpg"),
            ({"image": "a.jpg"}, "image", "a.jpg"),
            ({"type": "image_url", "image_url": {"url": "data:,x"}}, "image", "data:,x"),
            ({"type": "image_url", "image_url": {"url": "data:,x", "detail": "low"}}, "image", "data:,x"),
            ({"type": "image_url", "image_url": "data:,x"}, "image", "data:,x"),
            ({"type": "video", "video": "a.mp4"}, "video", "a.mp4"),
            ({"type": "video", "video": ["a.jpg", "b.jpg"]}, "video", ["a.jpg", "b.jpg"]),
            ({"type": "video_url", "video_url": {"url": "http://host/a.mp4"}}, "video", "http://host/a.mp4"),
        ],
    )
    def test_forms(self, item, kind, source):
        talk = conversation([{"role": "user", "content": [{"type": "text", "text": "see"}, item]}])
        assert kinds(talk) == [("user", ["text", kind])]
        visual = talk.visuals[0]
        assert (visual.kind, visual.source) == (kind, source)
        assert visual.name == "messages[0].content[1]"
        # The template never sees the source.
        assert str(source) not in str(talk.messages)

    def test_options(self):
        items = [
            {
                "type": "image",
                "image": "a.jpg",
                "resized_height": 280,
                "resized_width": 42,
                "fps": None,
            },
            {"type": "video", "video": "a.mp4", "fps": 1.5, "video_start": 2.0, "total_pixels": 10**6},
        ]
        picture, video = conversation([{"role": "user", "content": items}]).visuals
        assert picture.options == VisualOptions(resized_height=280, resized_width=42)
        assert video.options == VisualOptions(fps=1.5, video_start=2.0, total_pixels=10**6)

    def test_items_without_a_source_take_images_in_order(self):
        items = [{"type": "image"}, {"type": "text", "text": "and"}, {"type": "image", "max_pixels": 900}]
        talk = conversation([{"role": "user", "content": items}], images=[PICTURE, OTHER])
        assert talk.visuals[0].source is PICTURE
        assert talk.visuals[1].source is OTHER
        assert talk.visuals[1].options.max_pixels == 900

    def test_several_turns(self):
        talk = conversation(
            [
                {"role": "system", "content": "be brief"},
                {"role": "user", "content": [{"type": "image", "image": PICTURE}]},
                {"role": "assistant", "content": "a cat"},
                {
                    "role": "user",
                    "content": [{"type": "image", "image": OTHER}, {"type": "text", "text": "?"}],
                },
            ]
        )
        assert [role for role, _ in kinds(talk)] == ["system", "user", "assistant", "user"]
        names = [visual.name for visual in talk.visuals]
        assert names == ["messages[1].content[0]", "messages[3].content[0]"]

    def test_texts_that_a_template_joins_are_checked_together(self):
        items = [{"type": "text", "text": "<|image"}, {"type": "text", "text": "_pad|>"}]
        assert list(conversation([{"role": "user", "content": items}]).texts()) == [
            ("messages[0]", "<|image_pad|>")
        ]


def user(*items):
    return [{"role": "user", "content": list(items)}]


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "messages is empty"),
        (None, "must be a str or a list of messages, not NoneType"),
        ({"role": "user", "content": "x"}, "must be a str or a list of messages, not dict"),
        (b"hello", "not bytes"),
        (["hello"], r"messages\[0\] must be a dict"),
        ([{"content": "x"}], "role None is none of system, user, assistant"),
        ([{"role": "robot", "content": "x"}], "role 'robot'"),
        ([{"role": ["user"], "content": "x"}], "role"),
        ([{"role": "user"}], r"messages\[0\]\.content must be a str or a list of items, not NoneType"),
        ([{"role": "user", "content": 5}], "not int"),
        (user("hello"), r"messages\[0\]\.content\[0\] must be a dict"),
        (
            user({"type": "audio", "audio": "a"}),
            r"content\[0\]: unknown type 'audio'; the types are text",
        ),
        (user({"foo": 1}), "unknown type None"),
        (user({"type": ["image"]}), "unknown type"),
        (user({"type": "text"}), r"content\[0\]\.text must be a str"),
        (user({"type": "text", "text": "\ud800"}), "lone surrogate at position 0"),
        (user({"type": "image", "image": "a", "url": "b"}), "found image and url"),
        (user({"type": "image", "image": None}), "found none"),
        (user({"type": "image"}), r'content\[0\] names no image: add "image": source'),
        (user({"type": "image_url", "image_url": {"uri": "x"}}), r"must be \{\"url\": address\}"),
        (user({"type": "image", "image": "a", "max_pixel": 5}), "unknown option 'max_pixel'"),
        (user({"type": "image", "image": "a", "max_pixels": -5}), r"content\[0\]: max_pixels is -5"),
        (user({"type": "image", "image": "a", "fps": 2}), "fps is an option of videos"),
    ],
)
def test_refuses(messages, message):
    with pytest.raises(InputError, match=message):
        conversation(messages)


def test_refuses_pictures_without_a_place():
    with pytest.raises(InputError, match="1 of 2 images= have no place"):
        conversation(user({"type": "image"}), images=[PICTURE, OTHER])


def test_refuses_two_systems():
    with pytest.raises(InputError, match="give one of them"):
        conversation([{"role": "system", "content": "x"}], system="y")


json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)
keys = st.sampled_from(
    [
        "type",
        "image",
        "image_url",
        "url",
        "video",
        "text",
        "path",
        "min_pixels",
        "fps",
        "detail",
        "max_pixels",
    ]
)
values = json | st.sampled_from(["image", "video", "text", "image_url", "video_url"]) | st.just({"url": "x"})
items = st.dictionaries(keys, values, max_size=4)
roles = st.sampled_from(["user", "system", "assistant"]) | json
messages = st.lists(
    st.fixed_dictionaries({"role": roles, "content": json | st.lists(items | json, max_size=4)})
)


@settings(max_examples=300, deadline=None)
@given(json | messages, json, json, json)
def test_fuzzed_messages_give_a_conversation_or_an_input_error(content, images, videos, system):
    try:
        talk = conversation(content, images, videos, system)
    except InputError:
        return
    assert all(set(message) == {"role", "content"} for message in talk.messages)
    assert all(visual.kind in ("image", "video") for visual in talk.visuals)
