"""What a caller of Session sees: answers, streams, batches, cancels, queues, refusals."""

from __future__ import annotations

import json
import threading
import time

import numpy as np
import pytest

import qwen2vl_rt
from qwen2vl_rt import CancelToken, InputError, MemoryLimitError, PromptTooLongError, Qwen2VLError, Session
from qwen2vl_rt.executors.cpu import CpuDecoder

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


def test_the_plan_is_known_before_loading_and_kept_after(bundle, session):
    with pytest.raises(MemoryLimitError) as refusal:
        Session(bundle, memory_limit=1 << 20)
    assert "KV cache" in str(refusal.value)
    plan = session.plan()
    assert plan.total == sum(plan.parts.values())
    assert plan.measured > 0


def test_ten_sessions_leak_nothing(bundle):
    """Cache, mapped weights and engine go when the session closes."""
    from qwen2vl_rt.plan import resident_memory

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


def test_unknown_backend():
    with pytest.raises(qwen2vl_rt.BackendError, match="tpu"):
        from qwen2vl_rt.executors import select_backend

        select_backend("tpu")
