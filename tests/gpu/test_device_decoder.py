"""The whole loop with everything between two tokens on a device: a toy model's answers, token for token."""

from __future__ import annotations

import math

import numpy as np
import pytest

from qwen2vl_rt import _core
from qwen2vl_rt.errors import InputError, Qwen2VLError
from tests.gpu.arrays import to_device
from tests.support.toy_decoder import HEAD_DIM, HIDDEN, IMAGE_PAD, KV_HEADS, LAYERS, VOCAB, Prompt, Toy


class DeviceToyEngine(_core.DeviceEngine):
    """The toy model as an engine on device memory: fetches inputs, computes in numpy, puts results back."""

    def __init__(self, model, device, cache):
        super().__init__()
        self.model, self.device, self.cache = model, device, cache
        self.buffers = None
        self.steps = []
        self.fail_at = self.spoil_at = None
        self.overflows_from = math.inf

    def fetch(self, address, count, dtype):
        """`count` values at a device address, by way of the gather kernel, which copies any memory."""
        words = count * np.dtype(dtype).itemsize // 4
        block, ids = self.device.allocate(words * 4), to_device(self.device, np.zeros(1, np.int32))
        self.device.gather_embeddings(
            address, 0, 0, 1, words, 1, "float32", ids.pointer, 0, 1, "float32", block.pointer
        )
        values = np.empty(words * 4, np.uint8)
        block.download(values)
        return values.view(dtype)

    def put(self, address, values):
        values = np.ascontiguousarray(values)
        block, ids = to_device(self.device, values), to_device(self.device, np.zeros(1, np.int32))
        words = values.nbytes // 4
        self.device.gather_embeddings(
            block.pointer, 0, 0, 1, words, 1, "float32", ids.pointer, 0, 1, "float32", address
        )
        self.device.synchronize()

    def enqueue(self, first_row, rows, tokens, longest, prompt):
        self.steps.append((first_row, rows, tokens, prompt))
        if len(self.steps) == self.fail_at:
            raise RuntimeError("the engine broke")
        at = self.buffers
        embeds = self.fetch(at["inputs_embeds"], rows * tokens * HIDDEN, np.float32)
        embeds = embeds.reshape(rows, tokens, HIDDEN)
        half = HEAD_DIM // 2
        cos = self.fetch(at["cos"], rows * tokens * half, np.float32).reshape(rows, tokens, half)
        sin = self.fetch(at["sin"], rows * tokens * half, np.float32).reshape(rows, tokens, half)
        past = self.fetch(at["past_length"], rows, np.int64)
        present = self.fetch(at["present_length"], rows, np.int64)
        last = self.fetch(at["last_position"], rows, np.int32)
        wanted = self.fetch(at["logit_rows"], rows, np.int64)
        np.testing.assert_array_equal(present, past + tokens)
        np.testing.assert_array_equal(last, present - 1)
        assert present.max() <= self.cache.capacity
        assert longest == (present.max() if prompt else self.cache.capacity)
        shape = (self.cache.rows, KV_HEADS, self.cache.capacity, HEAD_DIM)
        count = int(np.prod(shape))
        keys = [self.fetch(self.cache.keys(i), count, np.float32).reshape(shape) for i in range(LAYERS)]
        values = [self.fetch(self.cache.values(i), count, np.float32).reshape(shape) for i in range(LAYERS)]
        logits = np.empty((rows, VOCAB), np.float32)
        for b in range(rows):
            row = first_row + b
            scored = self.model.run(
                embeds[b], cos[b], sin[b], int(past[b]), [k[row] for k in keys], [v[row] for v in values]
            )
            logits[b] = scored[wanted[b]]
        if len(self.steps) == self.spoil_at:
            logits[:] = np.nan
        if len(self.steps) >= self.overflows_from:
            logits[:] = np.nan
            for b in range(rows):
                for array in keys + values:
                    array[first_row + b, :, past[b] : present[b]] = np.nan
        for layer in range(LAYERS):
            self.put(self.cache.keys(layer), keys[layer])
            self.put(self.cache.values(layer), values[layer])
        self.put(at["logits"], logits)


class DeviceToy(Toy):
    """Toy, its generator over a DeviceDecoder."""

    def __init__(self, tmp_path, device, *, rows=3, capacity=96, prefill_chunk=7):
        super().__init__(tmp_path, rows=rows, capacity=capacity, prefill_chunk=prefill_chunk)
        self.cache = _core.DeviceCache(device, LAYERS, rows, KV_HEADS, capacity, HEAD_DIM, "float32")
        decoder = _core.DeviceDecoder(device, self.cache, self.embedding, self.rope, prefill_chunk, "float32")
        self.engine = DeviceToyEngine(self.model, device, self.cache)
        self.engine.buffers = decoder.buffers
        decoder.set_engine(self.engine)
        self.generator = _core.Generator(decoder, self.token_text, **self.settings)


PROMPTS = [
    Prompt([3, 1, 4, 1, 5, 9]),
    Prompt([2, 7], (IMAGE_PAD, (1, 4, 6), 1), [8, 2, 8]),
    Prompt((IMAGE_PAD, (1, 2, 2), 2), [30, 31], (IMAGE_PAD, (1, 4, 4), 3), list(range(40, 58))),
    Prompt([60]),
    Prompt([11, 12, 13]),
]


def fields(result):
    return (result.token_ids, result.text, result.finish_reason, result.stop_string, result.steps)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"sampling": _core.SamplingOptions(temperature=1.0, top_p=0.9, top_k=40, seed=3)},
        {"sampling": _core.SamplingOptions(repetition_penalty=1.4, frequency_penalty=0.2)},
        {"sampling": _core.SamplingOptions(temperature=0.8, presence_penalty=0.5, logprobs=3, seed=8)},
        {"max_new_tokens": 1},
        {"max_new_tokens": 2},
        {"max_new_tokens": 30, "stop_ids": list(range(20, 34))},
        {"max_new_tokens": 30, "stop_strings": ["a", "#7"]},
    ],
)
def test_answers_are_those_of_the_cpus_loop(tmp_path, device, options):
    """Five prompts through three rows: rows finish, move and are taken over, and nothing shows."""
    expected = Toy(tmp_path, rows=3, capacity=96).generate(*PROMPTS, **options)
    actual = DeviceToy(tmp_path, device).generate(*PROMPTS, **options)
    assert [fields(result) for result in actual] == [fields(result) for result in expected]
    for result, want in zip(actual, expected, strict=True):
        assert [token[0] for token in result.logprobs] == [token[0] for token in want.logprobs]
        for token, wanted in zip(result.logprobs, want.logprobs, strict=True):
            assert token[1] == pytest.approx(wanted[1], abs=1e-5)


@pytest.mark.kernels("cuda/step_kernel.cu")
def test_a_conversation_reuses_the_devices_cache(tmp_path, device):
    toy = DeviceToy(tmp_path, device)
    first = toy.generate(PROMPTS[1])
    longer = PROMPTS[1] + Prompt(first.token_ids) + Prompt([5, 6])
    assert toy.cached_prefix(longer) == len(PROMPTS[1].ids) + len(first.token_ids) - 1
    again = toy.generate(longer)
    assert again.cached_tokens > 0
    assert again.token_ids == Toy(tmp_path).generate(longer).token_ids


@pytest.mark.kernels("cuda/step_kernel.cu")
def test_visuals_may_lie_on_the_device(tmp_path, device):
    prompt = PROMPTS[1]
    expected = Toy(tmp_path).generate(prompt).token_ids
    block = to_device(device, np.concatenate([np.zeros((2, HIDDEN), np.float32), prompt.visuals[0]]))
    visual = _core.DeviceVisual(block, 2 * HIDDEN * 4, *prompt.visuals[0].shape)
    toy = DeviceToy(tmp_path, device)
    result = toy.generator.generate([prompt.request(embeddings=[visual])])[0]
    assert result.token_ids == expected
    with pytest.raises(InputError, match="computes on the CPU"):
        Toy(tmp_path).generator.generate([prompt.request(embeddings=[visual])])
    with pytest.raises(InputError, match="don't fit"):
        _core.DeviceVisual(block, 8, 8, HIDDEN)


def test_the_next_step_runs_ahead_but_never_past_what_is_wanted(tmp_path, device):
    toy = DeviceToy(tmp_path, device, rows=1)
    for wanted in (1, 2, 3, 9):
        toy.engine.steps.clear()
        result = toy.generate(PROMPTS[0], max_new_tokens=wanted)
        assert len(result.token_ids) == wanted
        assert sum(not prompt for *_, prompt in toy.engine.steps) == wanted - 1
        toy.cache.truncate(0, 0)


def test_two_decoders_on_one_device_have_recordings_of_their_own(tmp_path, device):
    expected = Toy(tmp_path).generate(PROMPTS[0]).token_ids
    toys = [DeviceToy(tmp_path, device) for _ in range(2)]
    for _ in range(2):
        for toy in toys:
            assert toy.generate(PROMPTS[0]).token_ids == expected
            toy.cache.truncate(0, 0)


@pytest.mark.kernels("cuda/step_kernel.cu")
def test_an_answer_may_fill_the_cache(tmp_path, device):
    toy = DeviceToy(tmp_path, device, rows=2, capacity=24)
    prompts = [PROMPTS[0], PROMPTS[4]]
    expected = Toy(tmp_path, rows=2, capacity=24).generate(*prompts, max_new_tokens=18)
    actual = toy.generate(*prompts, max_new_tokens=18)
    assert [result.token_ids for result in actual] == [result.token_ids for result in expected]


def test_failures_leave_the_loop_usable(tmp_path, device):
    toy = DeviceToy(tmp_path, device)
    expected = Toy(tmp_path).generate(PROMPTS[0]).token_ids
    toy.engine.fail_at = 4
    with pytest.raises(RuntimeError, match="broke"):
        toy.generate(PROMPTS[0])
    toy.engine.spoil_at = len(toy.engine.steps) + 4
    with pytest.raises(Qwen2VLError, match="NaN logits at step"):
        toy.generate(PROMPTS[0])
    assert toy.generate(PROMPTS[0]).token_ids == expected


@pytest.mark.parametrize("rows", [1, 2])
def test_what_overflowed_is_gone_from_the_cache(tmp_path, device, rows):
    """From all rows, and what was under way: an engine may multiply positions that it masks by zero."""
    toy = DeviceToy(tmp_path, device, rows=rows)
    toy.engine.overflows_from = rows + 3  # behind the prompts and two steps
    with pytest.raises(Qwen2VLError, match="NaN logits at step"):
        toy.generate(*(PROMPTS[0], PROMPTS[4])[:rows], max_new_tokens=12)
    count = rows * KV_HEADS * toy.cache.capacity * HEAD_DIM
    for layer in range(LAYERS):
        for array in (toy.cache.keys(layer), toy.cache.values(layer)):
            assert np.isfinite(toy.engine.fetch(array, count, np.float32)).all()
    assert [toy.cache.length(row) for row in range(rows)] == [0] * rows


def test_drafts_are_refused(tmp_path, device):
    toy = DeviceToy(tmp_path, device)
    with pytest.raises(InputError, match="prompt_lookup=8 needs a decoder that checks several tokens"):
        toy.generate(PROMPTS[0], prompt_lookup=8)
    assert toy.generate(PROMPTS[0]).token_ids == Toy(tmp_path).generate(PROMPTS[0]).token_ids


def test_callbacks_may_cancel(tmp_path, device):
    toy, seen = DeviceToy(tmp_path, device), []

    def on_text(index, piece, token_id):
        seen.append(token_id)
        return len(seen) == 4

    result = toy.generate(PROMPTS[0], on_text=on_text, max_new_tokens=20)
    assert result.finish_reason == "cancelled"
    assert result.token_ids == Toy(tmp_path).generate(PROMPTS[0], max_new_tokens=20).token_ids[:4]


def test_a_decoder_for_another_model_is_refused(tmp_path, device):
    toy = DeviceToy(tmp_path, device)
    decoder = _core.DeviceDecoder(device, toy.cache, toy.embedding, toy.rope, 7, "float32")
    with pytest.raises(InputError, match="no engine"):
        _core.Generator(decoder, toy.token_text, **toy.settings)
    decoder.set_engine(toy.engine)
    with pytest.raises(InputError, match="hidden size 24, not 25"):
        _core.Generator(decoder, toy.token_text, **toy.settings | {"hidden_size": 25})
