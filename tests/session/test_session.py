"""What a caller of Session sees: answers, streams, batches, cancels, queues, refusals."""

from __future__ import annotations

import json
import shutil
import socket
import threading
import time
import weakref

import numpy as np
import onnxruntime as ort
import pytest

import qwen2vl_rt
from bench.tiny import TINY
from qwen2vl_export.export import export_checkpoint
from qwen2vl_rt import (
    CancelToken,
    InputError,
    MemoryLimitError,
    PictureError,
    PromptTooLongError,
    Qwen2VLError,
    Session,
)
from qwen2vl_rt.backends.cpu.executors import CpuDecoder

QUESTION = "Where is the red block?"


def test_an_answer_carries_text_usage_and_timings(session, desk):
    answer = session.generate(QUESTION, images=[desk], max_new_tokens=40)
    assert answer.finish_reason in ("stop", "length")
    assert answer.usage.answer_tokens == len(answer.token_ids)
    assert answer.usage.visual_tokens == 7 * 5  # 200x140 is 196x140 after resizing: 14x10 patches
    assert answer.timings.total >= answer.timings.first_token > 0
    assert json.loads(json.dumps(answer.to_json()))["text"] == answer.text
    assert str(answer) == answer.text


def test_the_same_call_gives_the_same_answer(session, desk):
    answers = {session.generate(QUESTION, images=[desk], max_new_tokens=40).token_ids for _ in range(3)}
    assert len(answers) == 1


def test_sampling_follows_its_seed(session, desk):
    def sample(seed):
        keywords = {"temperature": 5.0, "seed": seed, "max_new_tokens": 24, "ignore_eos": True}
        return session.generate(QUESTION, images=[desk], **keywords).token_ids

    assert sample(1) == sample(1)
    assert sample(1) != sample(2)


def test_a_stream_joins_to_the_answer(session, desk):
    whole = session.generate(QUESTION, images=[desk], max_new_tokens=40)
    with session.stream(QUESTION, images=[desk], max_new_tokens=40) as stream:
        assert "".join(stream) == whole.text
        assert stream.answer.token_ids == whole.token_ids


def test_leaving_a_stream_frees_the_session(session):
    with session.stream("Talk.", max_new_tokens=1500, ignore_eos=True) as stream:
        next(stream)
    assert session.generate("Hello.", max_new_tokens=2).usage.answer_tokens > 0


def test_a_batch_takes_strings_messages_and_dicts(session, desk):
    messages = [
        {"role": "user", "content": [{"type": "image", "image": str(desk)}, {"type": "text", "text": "?"}]}
    ]
    prompts = ["Hello.", messages, {"prompt": QUESTION, "images": [desk], "max_new_tokens": 3}]
    answers = session.generate_batch(prompts, max_new_tokens=5, ignore_eos=True)
    assert [answer.usage.answer_tokens for answer in answers] == [5, 5, 3]
    assert answers[0].token_ids == session.generate("Hello.", max_new_tokens=5, ignore_eos=True).token_ids


def test_an_empty_batch_is_an_empty_list(session):
    assert session.generate_batch([]) == []


def test_a_bad_prompt_of_a_batch_is_named(session):
    with pytest.raises(InputError, match=r"prompts\[1\]"):
        session.generate_batch(["fine", {"prompt": "?", "images": ["no-such-file.png"]}])


def test_a_bad_option_of_a_batch_is_named_before_anything_runs(session, monkeypatch):
    monkeypatch.setattr(session._model, "generate", None)
    bad = {"temperature": -1.0, "top_p": "a", "stop": [""], "max_new_tokens": 0, "foo": 1}
    for name, value in bad.items():
        with pytest.raises(InputError, match=rf"prompts\[2\]: .*{name}"):
            session.generate_batch(["a", "b", {"prompt": "c", name: value}])
    with pytest.raises(PromptTooLongError, match=r"prompts\[2\]"):
        session.generate_batch(["a", "b", "word " * 3000])


def test_a_batch_holds_the_pictures_of_one_group(session, desk, monkeypatch):
    loaded, load = [], session._processor.load

    def watch(*arguments):
        assert sum(prompt() is not None for prompt in loaded) < 2
        prepared = load(*arguments)
        loaded.append(weakref.ref(prepared))
        return prepared

    monkeypatch.setattr(session._processor, "load", watch)
    session.generate_batch([{"prompt": "?", "images": [desk]}] * 5, max_new_tokens=1)
    assert len(loaded) == 5


def test_an_unusable_picture_of_a_later_group_loses_no_answer(session, desk):
    prompts = [{"prompt": "?", "images": [desk]}] * 3 + [{"prompt": "?", "images": [b"no picture"]}]
    with pytest.raises(PictureError, match=r"prompts\[3\]") as failure:
        session.generate_batch(prompts, max_new_tokens=2, ignore_eos=True)
    assert [answer.usage.answer_tokens for answer in failure.value.answers] == [2, 2]


def test_a_streams_picture_and_messages_may_change_at_once(session):
    def frame():
        picture = np.zeros((1600, 1600, 3), np.uint8)
        picture[200:900, 300:1200] = 220, 20, 20
        return picture

    def ask():
        return [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}]

    keywords = {"max_new_tokens": 4, "logprobs": 0, "max_pixels": 56 * 56}
    expected = session.generate(ask(), images=[frame()], **keywords)
    session.generate("Hello.", max_new_tokens=1)
    messages, images = ask(), [frame()]
    with session.stream(messages, images=images, **keywords) as stream:
        images[0][:] = 0
        images.clear()
        messages[0]["content"].clear()
        answer = stream.answer
    assert (answer.token_ids, answer.logprobs) == (expected.token_ids, expected.logprobs)


def test_what_a_stream_cannot_use_is_told_where_it_is_read(session):
    for images in (["missing.png"], [np.zeros((8, 8), np.float32)], [b"no picture"]):
        with session.stream("?", images=images) as stream, pytest.raises(PictureError):
            next(stream)


def test_a_cancel_before_the_call_computes_nothing(session, desk, monkeypatch):
    monkeypatch.setattr(session._model, "generate", None)
    monkeypatch.setattr(session._processor, "pixels", None)
    cancel = CancelToken()
    cancel.cancel()
    answers = session.generate_batch([{"prompt": "?", "images": [desk]}] * 3, cancel=cancel)
    answers.append(session.generate("?", images=[desk], cancel=cancel))
    assert [answer.finish_reason for answer in answers] == ["cancelled"] * 4
    assert {answer.token_ids for answer in answers} == {()}


def test_a_cancel_is_seen_between_calls_of_the_vision_tower(session, monkeypatch):
    cancel, executor = CancelToken(), session._model._vision._executor
    encode, calls = executor.encode, []

    def watch(*arguments):
        calls.append(1)
        cancel.cancel()
        return encode(*arguments)

    monkeypatch.setattr(executor, "encode", watch)
    images = [np.full((28 * side, 56, 3), 7 * side, np.uint8) for side in (2, 3, 4)]
    answer = session.generate("Describe.", images=images, cancel=cancel)
    assert (answer.finish_reason, answer.usage.visual_tokens, len(calls)) == ("cancelled", 18, 1)


def test_a_cancel_is_seen_between_frames(session, monkeypatch):
    cancel, frames = CancelToken(), []
    write = qwen2vl_rt._core.write_frame

    def watch(*arguments):
        frames.append(1)
        cancel.cancel()
        return write(*arguments)

    monkeypatch.setattr(qwen2vl_rt._core, "write_frame", watch)
    video = [np.zeros((56, 56, 3), np.uint8)] * 8
    assert session.generate("?", videos=[video], cancel=cancel).finish_reason == "cancelled"
    assert len(frames) == 1


def test_a_queued_call_is_cancelled(session):
    with session._turns.turn():
        stream = session.stream("Hello.", max_new_tokens=2)
        stream.close()
        assert stream.answer.finish_reason == "cancelled"


def test_closing_a_stream_does_not_wait_for_a_download(session):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/frame.jpg"
        with session.stream("?", images=[address]) as stream:
            pass
        assert stream.answer.finish_reason == "cancelled"


def test_a_streams_own_token_ends_it(session):
    cancel = CancelToken()
    with session.stream("Talk.", max_new_tokens=1500, ignore_eos=True, cancel=cancel) as stream:
        next(stream)
        cancel.cancel()
        assert stream.answer.finish_reason == "cancelled"


def test_another_thread_cancels(session):
    cancel = CancelToken()
    timer = threading.Timer(0.2, cancel.cancel)
    timer.start()
    answer = session.generate("Talk.", max_new_tokens=1500, ignore_eos=True, cancel=cancel)
    assert answer.finish_reason == "cancelled"
    assert answer.usage.answer_tokens < 1500


def test_calls_from_many_threads_queue_and_agree(session, desk):
    expected = session.generate(QUESTION, images=[desk], max_new_tokens=10).token_ids
    answers, threads = [], []

    def call():
        answers.append(session.generate(QUESTION, images=[desk], max_new_tokens=10).token_ids)

    for _ in range(6):
        threads.append(threading.Thread(target=call))
        threads[-1].start()
    for thread in threads:
        thread.join(timeout=60)
    assert answers == [expected] * 6


@pytest.mark.parametrize(
    ("keywords", "named"),
    [
        ({"images": ["missing.png"]}, "missing.png"),
        ({"images": [b"not a picture"]}, "images"),
        ({"temperature": -1.0}, "temperature"),
        ({"top_p": 2.0}, "top_p"),
        ({"min_pixles": 3}, "min_pixles"),
        ({"resized_height": 2800, "resized_width": 2800}, "max_pixels"),
    ],
)
def test_bad_input_is_the_projects_own_error_and_loses_nothing(session, desk, keywords, named):
    with pytest.raises(Qwen2VLError, match=named):
        session.generate(QUESTION, **{"images": [desk], **keywords})
    assert session.generate(QUESTION, images=[desk], max_new_tokens=3).usage.answer_tokens > 0


def test_a_prompt_over_the_cache_says_what_would_fit(session):
    with pytest.raises(PromptTooLongError, match=r"max_length=\d+"):
        session.generate("word " * 3000)


def test_an_engine_failure_passes_through_and_the_session_goes_on(session, monkeypatch):
    def fail(_self, _step):
        raise RuntimeError("the engine broke")

    with monkeypatch.context() as patched:
        patched.setattr(CpuDecoder, "run", fail)
        with pytest.raises(RuntimeError, match="the engine broke"):
            session.generate("Hello, broken engine.")
    assert session.generate("Hello, broken engine.", max_new_tokens=3).usage.answer_tokens > 0


def test_an_exception_of_a_signal_handler_is_no_failure_of_the_engine(session, monkeypatch):
    """Python runs handlers between any two instructions, most often behind the engine's long call."""

    def interrupted(*_):
        raise TimeoutError("the robot's deadline")

    with monkeypatch.context() as patched:
        patched.setattr(ort.InferenceSession, "run_with_iobinding", interrupted)
        with pytest.raises(TimeoutError, match="the robot's deadline"):
            session.generate("Hello, deadline.")
    assert session.generate("Hello, deadline.", max_new_tokens=3).usage.answer_tokens > 0


def test_a_closed_session_says_so(bundle):
    session = Session(bundle, max_length=256)
    session.close()
    session.close()
    with pytest.raises(Qwen2VLError, match="closed"):
        session.generate("Hello.")


def test_small_frames_stay_within_a_sessions_pixels(bundle):
    """Frames are enlarged to 128 tokens at least, which this session's memory is not planned for."""
    frames = [np.zeros((56, 84, 3), np.uint8)] * 4
    with Session(bundle, max_length=512, max_pixels=140 * 112, threads=1) as session:
        answer = session.generate("What happens?", videos=[frames], fps=2, max_new_tokens=1)
        assert 0 < answer.usage.visual_tokens <= 2 * 20
        with pytest.raises(InputError, match="max_pixels=18816"):
            session.generate("?", videos=[frames], fps=2, min_pixels=140 * 112 + 1, max_new_tokens=1)


def test_pixels_for_no_picture_are_refused(bundle):
    with pytest.raises(InputError, match="max_pixels=500 leaves no picture: one has 784 pixels at least"):
        Session(bundle, max_pixels=500)


def test_the_plan_is_known_before_loading_and_kept_after(bundle, session):
    with pytest.raises(MemoryLimitError) as refusal:
        Session(bundle, memory_limit=1 << 20)
    assert "KV cache" in str(refusal.value)
    plan = session.plan()
    assert plan.total == sum(plan.parts.values())
    assert plan.measured > 0


def test_ten_sessions_leak_nothing(bundle):
    """Cache, mapped weights and engine go when the session closes."""
    from qwen2vl_rt.peak_memory import resident_memory

    def open_and_answer():
        with Session(bundle, max_length=1024) as session:
            session.generate("Hello.", max_new_tokens=4)

    open_and_answer()
    before = resident_memory()
    for _ in range(10):
        open_and_answer()
    time.sleep(0.1)
    # Each would add about 50 MB if it stayed: the weights alone are 30.
    assert resident_memory() - before < 60 << 20


@pytest.mark.parametrize("precision", ["fp32", "int4-int8"])
def test_a_bundle_in_the_hubs_cache(precision, bundle, tmp_path):
    """There every file of a repository is a link out of its folder."""
    if precision != "fp32":
        bundle = export_checkpoint(TINY, tmp_path / "bundle", precision).path
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "1"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for index, file in enumerate(bundle.iterdir()):
        shutil.copy(file, blobs / str(index))
        (snapshot / file.name).symlink_to(f"../../blobs/{index}")

    def tokens(folder):
        with Session(folder, max_length=256, threads=2) as session:
            return session.generate(QUESTION, max_new_tokens=8).token_ids

    assert tokens(snapshot) == tokens(bundle)


def test_unknown_backend():
    with pytest.raises(qwen2vl_rt.BackendError, match="tpu"):
        from qwen2vl_rt.backends.select import select_backend

        select_backend("tpu")
