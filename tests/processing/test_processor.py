"""From messages to token ids, grids and patches, against transformers' Qwen2VLProcessor."""

import json
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import PreTrainedTokenizerFast, Qwen2TokenizerFast, Qwen2VLImageProcessor, Qwen2VLProcessor

from qwen2vl_rt.errors import BundleError, InputError, PictureError, PromptTooLongError, VideoError
from qwen2vl_rt.processing import Processor
from tests.support.preparation import PREPROCESSOR, TEMPLATE, geometry_for, noise


class ReferenceVideos:
    """What the processor needs of a video processor, done by the slow image processor's video branch.

    (The reference's own video processor needs torchvision.)
    """

    merge_size = 2

    def __init__(self, images):
        self._images = images

    def __call__(self, videos, **_):
        return self._images.preprocess(images=None, videos=videos, return_tensors="np")


def reference_processor(tokenizer, template):
    processor = Qwen2VLProcessor.__new__(Qwen2VLProcessor)
    processor.image_processor = Qwen2VLImageProcessor(**PREPROCESSOR)
    processor.video_processor = ReferenceVideos(processor.image_processor)
    processor.tokenizer = tokenizer
    processor.chat_template = template
    processor.image_token, processor.video_token = "<|image_pad|>", "<|video_pad|>"
    processor.image_token_id = tokenizer.convert_tokens_to_ids("<|image_pad|>")
    processor.video_token_id = tokenizer.convert_tokens_to_ids("<|video_pad|>")
    return processor


@pytest.fixture(scope="session")
def reference(folder):
    return reference_processor(
        PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json")), TEMPLATE
    )


@pytest.fixture(scope="session")
def real_reference(real_folder):
    template = json.loads((real_folder / "chat_template.json").read_text())["chat_template"]
    return reference_processor(Qwen2TokenizerFast.from_pretrained(real_folder), template)


def check(processor, reference, messages, **options):
    """The same messages through both; videos as arrays, with a picture's limits as the reference has them."""
    sources = [item for m in messages if isinstance(m["content"], list) for item in m["content"]]
    images = [Image.fromarray(item["image"]) for item in sources if "image" in item]
    videos = [np.stack(item["video"]) for item in sources if "video" in item]
    text = reference.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **options)
    kinds = {"images": images or None, "videos": videos or None}
    expected = reference(text=[text], **kinds, return_tensors="np")

    limits = {name: PREPROCESSOR[name] for name in ("min_pixels", "max_pixels")}
    for item in sources:
        if "video" in item:
            item.update(limits)
    prompt = processor.prepare(messages, **options)
    assert prompt.text == text
    assert prompt.token_ids.dtype == np.int32
    np.testing.assert_array_equal(prompt.token_ids, expected["input_ids"][0])
    for kind, grids, values in (
        ("image", "image_grid_thw", "pixel_values"),
        ("video", "video_grid_thw", "pixel_values_videos"),
    ):
        visuals = [visual for visual in prompt.visuals if visual.kind == kind]
        if not visuals:
            continue
        np.testing.assert_array_equal([visual.grid_thw for visual in visuals], expected[grids])
        patches = np.concatenate([visual.patches.reshape(-1, visual.patches.shape[-1]) for visual in visuals])
        np.testing.assert_array_equal(patches, expected[values])
    return prompt


def image(seed, height, width):
    return {"type": "image", "image": noise(seed, height, width)}


def video(seed, frames, height, width):
    return {"type": "video", "video": [noise(seed + index, height, width) for index in range(frames)]}


def text(content):
    return {"type": "text", "text": content}


def conversations():
    """Made anew for each test, because options are added to them."""
    return {
        "text only": [{"role": "user", "content": "Hello, \u4f60\u597d \U0001f600!\n\n  what's 12345?"}],
        "one picture": [{"role": "user", "content": [image(1, 90, 130), text("What is this?")]}],
        "three pictures": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [image(1, 90, 130), image(2, 300, 20), text("?"), image(3, 56, 56)]},
        ],
        "video and picture": [
            {"role": "user", "content": [video(1, 5, 90, 130), text(" then "), image(2, 60, 60), text("?")]}
        ],
        "turns": [
            {"role": "user", "content": [image(1, 90, 130), text("What is this?")]},
            {"role": "assistant", "content": "A <|object_ref_start|>cat<|object_ref_end|>."},
            {"role": "user", "content": [video(4, 2, 80, 60), text("And this?")]},
        ],
    }


@pytest.mark.parametrize("name", conversations())
@pytest.mark.parametrize("vision_id", [False, True])
def test_equals_the_reference(processor, reference, name, vision_id):
    check(processor, reference, conversations()[name], add_vision_id=vision_id)


@pytest.mark.parametrize("name", conversations())
def test_equals_the_reference_with_the_real_tokenizer(real_processor, real_reference, name):
    check(real_processor, real_reference, conversations()[name])


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("text"), st.text(max_size=12)),
            st.tuples(st.just("image"), st.integers(0, 9), st.integers(20, 99), st.integers(20, 99)),
            st.tuples(st.just("video"), st.integers(1, 4), st.integers(20, 60), st.integers(20, 60)),
        ),
        min_size=1,
        max_size=5,
    )
)
def test_random_conversations(processor, reference, parts):
    makers = {"text": text, "image": image, "video": lambda *size: video(0, *size)}
    check(processor, reference, [{"role": "user", "content": [makers[kind](*rest) for kind, *rest in parts]}])


def test_a_prompt_with_pictures_is_the_published_message(processor):
    visuals = {"images": [noise(1, 60, 60)], "videos": [[noise(2, 60, 60)]]}
    plain = processor.prepare("What?", **visuals, system=" Be brief.\n")
    content = [image(1, 60, 60), video(2, 1, 60, 60), text("What?")]
    messages = [{"role": "system", "content": " Be brief.\n"}, {"role": "user", "content": content}]
    listed = processor.prepare(messages)
    np.testing.assert_array_equal(plain.token_ids, listed.token_ids)
    assert [visual.digest for visual in plain.visuals] == [visual.digest for visual in listed.visuals]


def test_grids_and_pads_agree(processor):
    pictures = [noise(1, 90, 60), noise(2, 300, 20)]
    prompt = processor.prepare("?", images=pictures, videos=[[noise(3, 60, 60)] * 6])
    assert prompt.grids.dtype == np.int64
    assert prompt.grids.shape == (3, 3)
    ids = geometry_for(tokenizers.Tokenizer.from_file(str(processor.tokenizer._path))).special_ids
    pads = [(prompt.token_ids == pad).sum() for pad in (ids.image_pad, ids.video_pad)]
    tokens = [visual.tokens(2) for visual in prompt.visuals]
    assert pads == [tokens[0] + tokens[1], tokens[2]]
    assert processor.prepare("?").grids.shape == (0, 3)
    assert all(
        seconds >= 0 for seconds in (prompt.load_seconds, prompt.resize_seconds, prompt.tokenize_seconds)
    )


def test_options_for_all_and_for_one(processor):
    pictures = [noise(1, 200, 200), {"image": noise(1, 200, 200), "max_pixels": 56 * 56}]
    prompt = processor.prepare("?", images=pictures, max_pixels=112 * 112)
    assert [visual.grid_thw for visual in prompt.visuals] == [(1, 8, 8), (1, 4, 4)]
    with pytest.raises(InputError, match="unknown option 'maxpixels'"):
        processor.prepare("?", maxpixels=5)


STRUCTURE = [
    "<|image_pad|>",
    "<|video_pad|>",
    "<|vision_start|>",
    "<|im_end|>",
    "<|im_start|>",
    "<|endoftext|>",
]


@pytest.mark.parametrize("token", STRUCTURE)
def test_structure_in_a_text_is_refused(processor, token):
    refused = re.escape(f"the text contains {token}")
    with pytest.raises(InputError, match=f"^prompt: {refused}"):
        processor.prepare(f"see {token}", system="x", images=[noise(1, 60, 60)])
    with pytest.raises(InputError, match=f"^system: {refused}"):
        processor.prepare("?", system=token)
    # Also where only the template would join it.
    pieces = [text(f"see {token[:4]}"), text(token[4:])]
    with pytest.raises(InputError, match=rf"^messages\[1\]: {refused}"):
        processor.prepare([{"role": "user", "content": "?"}, {"role": "user", "content": pieces}])


def test_the_notation_of_boxes_is_allowed_and_special(processor):
    words = "<|object_ref_start|>a<|object_ref_end|><|box_start|>(1,2),(3,4)<|box_end|>"
    ids = processor.prepare(words).token_ids
    assert [processor.tokenizer.token_of(id_) for id_ in ids].count("<|box_start|>") == 1


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages[0].content[1].text }}",  # drops the picture
        TEMPLATE + "<|image_pad|>",
        TEMPLATE.replace("<|image_pad|>", "<|video_pad|>"),
        "",
    ],
)
def test_a_template_that_moves_pictures_is_refused(processor, template):
    with pytest.raises(InputError, match="must come once, in order"):
        processor.prepare("?", images=[noise(1, 60, 60)], chat_template=template)


def test_a_users_template(processor):
    prompt = processor.prepare("hi", chat_template="{% for m in messages %}[{{ m.content }}]{% endfor %}")
    assert prompt.text == "[hi]"
    assert processor.prepare("hi", add_generation_prompt=False).text.endswith("hi<|im_end|>\n")
    with pytest.raises(InputError, match="does not compile"):
        processor.prepare("hi", chat_template="{% for %}")
    with pytest.raises(InputError, match="failed"):
        processor.prepare("hi", chat_template="{{ messages.x.y }}")


class TestRoom:
    """max_tokens refuses before memory is taken."""

    def test_what_fits_is_prepared(self, processor):
        pictures = [noise(1, 112, 112), noise(2, 56, 56)]
        length = len(processor.prepare("?", images=pictures).token_ids)
        assert len(processor.prepare("?", images=pictures, max_tokens=length).token_ids) == length
        with pytest.raises(PromptTooLongError, match=r"images\[1\]: it becomes 4 .* room for 3"):
            processor.prepare("?", images=pictures, max_tokens=length - 1)

    def test_videos_and_text(self, processor):
        with pytest.raises(PromptTooLongError, match=r"videos\[0\]: it becomes \d+ .*pixels, 8 frames\)"):
            processor.prepare("?", videos=[[noise(1, 60, 60)] * 8], max_tokens=300)
        with pytest.raises(PromptTooLongError, match="the text alone has"):
            processor.prepare("x" * 500, max_tokens=300)

    def test_nothing_is_allocated(self, processor):
        huge = {"image": noise(1, 99, 99), "min_pixels": 10**10, "max_pixels": 10**11}
        with pytest.raises(PromptTooLongError):
            processor.prepare("?", images=[huge], max_tokens=10_000)


class TestErrorsNameTheItem:
    def test_pictures(self, processor):
        with pytest.raises(PictureError, match=r"images\[1\].*no such file"):
            processor.prepare("?", images=[noise(1, 60, 60), "nowhere.png"])
        with pytest.raises(PictureError, match=r"images\[0\]: .*aspect ratio of 300"):
            processor.prepare("?", images=[noise(1, 1, 300)])
        content = [text("a"), {"type": "image_url", "image_url": {"url": "data:,"}}]
        with pytest.raises(PictureError, match=r"messages\[0\]\.content\[1\]: not a picture"):
            processor.prepare([{"role": "user", "content": content}])

    def test_videos(self, processor):
        with pytest.raises(VideoError, match=r"videos\[0\].*no such file"):
            processor.prepare("?", videos=["nowhere.mp4"])
        with pytest.raises(VideoError, match=r"videos\[0\]: .*aspect ratio of 300"):
            processor.prepare("?", videos=[[noise(1, 1, 300)]])

    def test_the_processor_stays_usable(self, processor):
        with pytest.raises(InputError):
            processor.prepare("?", images=[b"x"])
        assert len(processor.prepare("?", images=[noise(1, 60, 60)]).visuals) == 1


class TestDamagedBundles:
    @pytest.fixture
    def copy(self, folder, tmp_path):
        shutil.copytree(folder, tmp_path / "bundle")
        return tmp_path / "bundle"

    def geometry(self, folder):
        return geometry_for(tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")))

    @pytest.mark.parametrize("name", ["tokenizer.json", "preprocessor_config.json"])
    def test_missing_files(self, copy, folder, name):
        (copy / name).unlink()
        with pytest.raises(BundleError, match=name):
            Processor(copy, self.geometry(folder))

    def test_sizes_that_disagree(self, folder):
        geometry = self.geometry(folder)
        geometry.vision.patch_size = 16
        with pytest.raises(BundleError, match="has patch_size 14, the model 16"):
            Processor(folder, geometry)

    def test_pads_that_are_no_tokens(self, folder):
        geometry = self.geometry(folder)
        geometry.special_ids = SimpleNamespace(image_pad=151655, video_pad=151656)
        with pytest.raises(BundleError, match="no token 151655"):
            Processor(folder, geometry)

    def test_no_template(self, copy, folder):
        (copy / "chat_template.json").unlink()
        processor = Processor(copy, self.geometry(folder))
        with pytest.raises(InputError, match="pass chat_template="):
            processor.prepare("hi")
        assert processor.prepare("hi", chat_template=TEMPLATE).text.startswith("<|im_start|>system")


def test_several_threads(processor):
    from concurrent.futures import ThreadPoolExecutor

    def run(seed):
        return processor.prepare(f"number {seed}", images=[noise(seed % 5, 120, 90)])

    alone = [run(seed) for seed in range(5)]
    with ThreadPoolExecutor(8) as pool:
        for seed, prompt in enumerate(pool.map(run, range(40))):
            np.testing.assert_array_equal(prompt.visuals[0].patches, alone[seed % 5].visuals[0].patches)
            assert f"number {seed}" in prompt.text


scalars = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.binary(max_size=8)
)
trees = st.recursive(
    scalars,
    lambda t: st.lists(t, max_size=3) | st.dictionaries(st.text(max_size=5), t, max_size=3),
    max_leaves=8,
)
sources = trees | st.from_regex(r"data:(image/png)?(;base64)?,[A-Za-z0-9+/=]{0,40}", fullmatch=True)
items = st.fixed_dictionaries(
    {"type": st.sampled_from(["text", "image", "image_url", "video"])},
    optional={
        "text": st.text(max_size=8) | trees,
        "image": sources,
        "image_url": sources | st.fixed_dictionaries({"url": sources}),
        "video": sources | st.lists(sources, max_size=2),
        "max_pixels": st.integers(-5, 10**7) | trees,
        "nframes": st.integers(-5, 10**7) | trees,
    },
)
turns = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "system"]), "content": st.lists(items)}
)


@settings(max_examples=250, deadline=None)
@given(st.text(max_size=9) | trees | st.lists(turns, max_size=3), sources, sources, trees)
def test_fuzzed_prompts_are_prepared_or_refused(processor, messages, images, videos, option):
    try:
        prompt = processor.prepare(messages, images=images, videos=videos, max_pixels=option)
    except InputError:
        return
    assert prompt.token_ids.dtype == np.int32
