"""What is chosen, and refused, before TensorRT is asked: targets, arithmetic, form of attention, shapes."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from qwen2vl_rt.backends.tensorrt import target as target_module
from qwen2vl_rt.backends.tensorrt.build import (
    check_float32,
    check_fp8,
    check_length,
    choose_attention,
    choose_format,
)
from qwen2vl_rt.backends.tensorrt.edition import Edition, find_edition
from qwen2vl_rt.backends.tensorrt.find import build_command
from qwen2vl_rt.backends.tensorrt.profiles import decoder_profiles, vision_profiles
from qwen2vl_rt.backends.tensorrt.target import Target, choose_target
from qwen2vl_rt.errors import BackendError, InputError
from qwen2vl_rt.lowering.tensorrt import Form
from qwen2vl_rt.session_limits import AskedLimits, SessionLimits

RTX_TARGETS = SimpleNamespace(NONE=0, CURRENT=1, SM75=75, SM80=80, SM120=120)


def edition(name: str, cache_operators: bool = True, aligns: bool = True) -> Edition:
    definition = SimpleNamespace(**({"add_kv_cache_update": None} if cache_operators else {}))
    module = SimpleNamespace(
        __version__="0", INetworkDefinition=definition, ComputeCapability=RTX_TARGETS,
        **({"CausalMaskKind": None} if aligns else {}),
    )  # fmt: skip
    return Edition(name, module, None)


@pytest.fixture
def gpu(monkeypatch):
    """Pretend that this machine has a GPU of some compute capability, or none."""
    return lambda capability: monkeypatch.setattr(target_module, "compute_capability", lambda: capability)


@pytest.mark.parametrize("text", ["sm75", "SM75", "7.5", "75", "sm_75"])
def test_ways_to_write_a_target(gpu, text):
    gpu(None)
    assert choose_target(text, edition("tensorrt_rtx")) == Target((7, 5), is_this=False)


def test_targets_of_tensorrt_for_rtx(gpu):
    gpu(None)
    rtx = edition("tensorrt_rtx")
    assert choose_target("12.0", rtx).name == "sm120"
    assert choose_target("portable", rtx).name == "portable"
    with pytest.raises(
        BackendError, match="does not build for sm90, only for sm75, sm80, sm120 and portable"
    ):
        choose_target("sm90", rtx)
    with pytest.raises(BackendError, match="no NVIDIA GPU here"):
        choose_target("this", rtx)
    with pytest.raises(BackendError, match="'rtx4090' is not a GPU target"):
        choose_target("rtx4090", rtx)
    gpu((9, 0))  # an H200
    with pytest.raises(BackendError, match=r"does not build for sm90.*use the cuda backend"):
        choose_target("this", rtx)


def test_targets_of_full_tensorrt(gpu):
    gpu((8, 7))
    full = edition("tensorrt")
    assert choose_target("this", full) == choose_target("sm87", full) == Target((8, 7), is_this=True)
    with pytest.raises(BackendError, match="here is sm87: run the build there"):
        choose_target("sm89", full)
    gpu(None)
    with pytest.raises(BackendError, match="there is none"):
        choose_target("portable", full)


@pytest.mark.parametrize(
    ("precision", "capability", "chosen"),
    [
        ("fp32", (8, 9), "bf16"),
        ("fp32", None, "bf16"),
        ("fp32", (7, 5), "fp16"),
        ("bf16", None, "bf16"),
        ("fp16", (7, 5), "fp16"),
        ("int8", (7, 5), "fp16"),
        ("int8", (8, 9), "bf16"),
        ("int4-int8", None, "bf16"),
    ],
)
def test_arithmetic(precision, capability, chosen):
    assert choose_format(SimpleNamespace(precision=precision), Target(capability, False)) == chosen


@pytest.mark.parametrize(
    ("precision", "capability", "wanted", "message"),
    [
        ("bf16", (7, 5), None, "sm75 has no bfloat16"),
        ("bf16", (7, 5), "bf16", "sm75 has no bfloat16: export with --precision fp16"),
        ("int8", (7, 5), "bf16", "sm75 has no bfloat16: choose --arithmetic fp16"),
        ("fp32", (7, 5), "bf16", "sm75 has no bfloat16: choose --arithmetic fp16"),
        ("int4", (7, 5), None, "sm75 has no int4"),
        ("bf16", (8, 9), "fp16", "export with --precision fp16"),
    ],
)
def test_arithmetic_that_is_not_there(precision, capability, wanted, message):
    with pytest.raises(BackendError, match=message):
        choose_format(SimpleNamespace(precision=precision), Target(capability, False), wanted)


@pytest.mark.parametrize(
    ("capability", "form", "message"),
    [
        (
            (8, 9),
            Form("fp32", "mask"),
            "no float32 attention: choose --arithmetic bf16 or --attention primitives",
        ),
        (None, Form("fp32", "lengths"), "no float32 attention"),
        ((7, 5), Form("fp32", "primitives"), "no float32 products for sm75: choose --arithmetic fp16"),
        ((7, 5), Form("fp32", "mask"), "no float32 products for sm75: choose --arithmetic fp16"),
    ],
)
def test_float32_that_is_not_there(capability, form, message):
    """In TensorRT for RTX: the full one is not known to lack it."""
    target, rtx = Target(capability, False), edition("tensorrt_rtx")
    check_float32(edition("tensorrt"), target, form)
    check_float32(rtx, target, Form("bf16", form.attention))
    check_float32(rtx, Target((8, 0), False), Form("fp32", "primitives"))
    with pytest.raises(BackendError, match=message):
        check_float32(rtx, target, form)


def test_a_cache_that_is_too_short():
    """The command that a session names is one that can be run."""
    check_length(SessionLimits(2, 1, 1 << 20, 512))
    with pytest.raises(InputError, match="max_length is 1: give 2 or more"):
        check_length(SessionLimits(1, 1, 1 << 20, 512))
    command = build_command(SimpleNamespace(path="b"), AskedLimits(max_length=1))
    assert command == "qwen2vl build b --this --max-length 2"


@pytest.mark.parametrize(
    ("precision", "capability", "message"),
    [
        ("int4", (8, 9), "int4 bundle is quantized already"),
        ("bf16", (8, 6), "sm86 has no fp8"),
        ("bf16", None, "portable has no fp8"),
    ],
)
def test_fp8_that_is_not_there(precision, capability, message):
    check_fp8(SimpleNamespace(precision="bf16"), Target((8, 9), False), True)
    check_fp8(SimpleNamespace(precision=precision), Target(capability, False), False)
    with pytest.raises(BackendError, match=message):
        check_fp8(SimpleNamespace(precision=precision), Target(capability, False), True)


def test_form_of_attention():
    newest, middle = edition("tensorrt_rtx"), edition("tensorrt", aligns=False)
    jetpack6 = edition("tensorrt", cache_operators=False, aligns=False)
    chosen = [choose_attention(each) for each in (newest, middle, jetpack6)]
    assert chosen == ["mask", "mask", "primitives"]
    assert choose_attention(newest, "lengths") == "lengths"
    with pytest.raises(BackendError, match="cannot take attention 'lengths': choose mask or primitives"):
        choose_attention(middle, "lengths")


def test_editions_that_are_not_there():
    with pytest.raises(BackendError, match="no TensorRT edition 'trt'"):
        find_edition("trt")


def test_profiles(bundles):
    geometry = bundles["fp32"].geometry
    limits = SessionLimits(max_length=256, max_batch=3, max_pixels=10_000 * 14 * 14, prefill_chunk=512)
    prefill, decode = decoder_profiles(geometry.decoder, limits, ("prefill", "decode"))
    width = geometry.decoder.hidden_size
    assert prefill.shapes["inputs_embeds"] == ((1, 1, width), (1, 256, width), (1, 256, width))
    assert decode.shapes["inputs_embeds"] == ((1, 1, width), (3, 1, width), (3, 2, width))
    cache = (2, 256, geometry.decoder.head_dim)
    assert decode.shapes["past_v.1"] == ((1, *cache), (3, *cache), (3, *cache))
    # No axis of tokens is a single size: the builder would keep weights of its own for it.
    for profile in (prefill, decode):
        for name in ("inputs_embeds", "cos", "logit_rows"):
            smallest, _, largest = profile.shapes[name]
            assert smallest[1] < largest[1]

    picture, frames = vision_profiles(geometry.vision, limits)
    assert [shape[:2] for shape in picture.shapes["patches"]] == [(1, 4), (1, 1024), (1, 10_000)]
    assert [shape[:2] for shape in frames.shapes["cos"]] == [(1, 4), (8, 512), (8, 512)]
