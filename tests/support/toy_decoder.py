"""A small decoder in numpy whose answer depends on everything it is given, and what goes with it.

It is a real transformer (rotary embedding, grouped-query attention over the cache, two layers), so that a
wrong embedding, position, past length, cache row or chunk changes the logits.
"""

from __future__ import annotations

import numpy as np

from qwen2vl_rt import _core

VOCAB, HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD_DIM = 96, 24, 2, 4, 2, 8
SECTIONS, THETA, MERGE = (1, 1, 2), 100.0, 2
IMAGE_PAD, VIDEO_PAD, END = 90, 91, 95


def rotate(x, cos, sin):
    """x [heads, T, head_dim]; cos, sin [T, head_dim / 2]."""
    left, right = np.split(x, 2, axis=-1)
    return np.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1)


class ToyModel:
    def __init__(self, seed=0):
        rng = np.random.default_rng(seed)

        def weight(*shape):
            return rng.normal(size=shape) / np.sqrt(shape[0])

        self.embedding = rng.normal(size=(VOCAB, HIDDEN)).astype(np.float32)
        self.layers = [
            {
                "q": 3 * weight(HIDDEN, HEADS * HEAD_DIM),
                "k": 3 * weight(HIDDEN, KV_HEADS * HEAD_DIM),
                "v": weight(HIDDEN, KV_HEADS * HEAD_DIM),
                "o": weight(HEADS * HEAD_DIM, HIDDEN),
            }
            for _ in range(LAYERS)
        ]
        self.head = 3 * weight(HIDDEN, VOCAB)

    def run(self, embeds, cos, sin, past, keys, values):
        """embeds [T, HIDDEN] after `past` positions; keys, values: a layer [KV_HEADS, capacity, HEAD_DIM]."""
        x = embeds.astype(np.float64)
        tokens = len(x)
        total = past + tokens
        mask = np.arange(total)[None, :] > past + np.arange(tokens)[:, None]
        for layer, key, value in zip(self.layers, keys, values, strict=True):

            def heads(name, layer=layer, x=x):
                return (x @ layer[name]).reshape(tokens, -1, HEAD_DIM).transpose(1, 0, 2)

            key[:, past:total] = rotate(heads("k"), cos, sin)
            value[:, past:total] = heads("v")
            group = HEADS // KV_HEADS
            k = np.repeat(key[:, :total], group, axis=0)
            v = np.repeat(value[:, :total], group, axis=0)
            scores = rotate(heads("q"), cos, sin) @ k.transpose(0, 2, 1) / np.sqrt(HEAD_DIM)
            scores[:, mask] = -np.inf
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            weights /= weights.sum(-1, keepdims=True)
            x = x + (weights @ v).transpose(1, 0, 2).reshape(tokens, -1) @ layer["o"]
            x = x / np.sqrt((x * x).mean(-1, keepdims=True))
        logits = x @ self.head
        logits[:, [IMAGE_PAD, VIDEO_PAD]] = -30  # so that answers can stand in a later prompt
        return logits


class ToyExecutor(_core.Executor):
    """Runs the toy model on a cache, as an engine would."""

    def __init__(self, model, cache):
        super().__init__()
        self.model, self.cache = model, cache
        self.shapes = []  # (first_row, rows, tokens) of every run
        self.before_run = None  # called with the step
        self.answer_bias = 0.0  # added to the embeddings of an answer's own tokens: another graph for them

    def run(self, step):
        if self.before_run is not None:
            self.before_run(step)
        self.shapes.append((step.first_row, step.rows, step.tokens))
        for b in range(step.rows):
            row = step.first_row + b
            past = int(step.past_length[b])
            assert past + step.tokens <= self.cache.capacity
            logits = self.model.run(
                step.inputs_embeds[b] + (0 if step.prompt else np.float32(self.answer_bias)),
                step.cos[b],
                step.sin[b],
                past,
                [self.cache.keys(i)[row] for i in range(LAYERS)],
                [self.cache.values(i)[row] for i in range(LAYERS)],
            )
            step.logits[b] = logits[step.logit_rows[b]]


# One token a character, then pieces of characters, then special tokens. Pads and END are special.
TOKEN_BYTES = (
    [bytes([65 + i]) for i in range(26)]
    + [bytes([97 + i]) for i in range(26)]
    + [b" ", b"\n", "é".encode(), "😀".encode()[:2], "😀".encode()[2:], b"\xff", b"\xe4\xbd", b"\xa0"]
)
TOKEN_BYTES += [b"#%d" % i for i in range(len(TOKEN_BYTES), 90)] + [b"<%d>" % i for i in range(90, VOCAB)]
SPECIAL = list(range(90, VOCAB))


class Toy:
    """A generator over the toy model, its parts at hand."""

    def __init__(
        self,
        tmp_path,
        *,
        rows=3,
        capacity=200,
        prefill_chunk=7,
        seed=0,
        answers_apart=False,
        least_chunk=1,
    ):
        self.model = ToyModel(seed)
        path = tmp_path / f"embedding-{seed}.bin"
        path.write_bytes(self.model.embedding.tobytes())
        self.cache = _core.KVCache(LAYERS, rows, KV_HEADS, capacity, HEAD_DIM)
        self.executor = ToyExecutor(self.model, self.cache)
        self.embedding = _core.EmbeddingTable(str(path), VOCAB, HIDDEN, "float32")
        self.token_text = _core.TokenText(TOKEN_BYTES, SPECIAL)
        self.rope = _core.RopeTable(HEAD_DIM, THETA, SECTIONS)
        self.prefill_chunk = prefill_chunk
        self.settings = {
            "hidden_size": HIDDEN,
            "vocab_size": VOCAB,
            "merge_size": MERGE,
            "image_pad": IMAGE_PAD,
            "video_pad": VIDEO_PAD,
            "answers_apart": answers_apart,
            "least_chunk": least_chunk,
        }
        self.generator = self.generator_over(self.executor)

    def generator_over(self, executor):
        decoder = _core.HostDecoder(executor, self.cache, self.embedding, self.rope, self.prefill_chunk)
        return _core.Generator(decoder, self.token_text, **self.settings)

    def cached_prefix(self, prompt):
        return self.generator.cached_prefix(prompt.ids, prompt.grids, np.array(prompt.content_ids, np.uint64))

    def generate(self, *prompts, **options):
        """One result for one prompt, else a list."""
        call = {name: options.pop(name) for name in ("on_text", "cancel") if name in options}
        results = self.generator.generate([prompt.request(**options) for prompt in prompts], **call)
        return results[0] if len(prompts) == 1 else results


class Prompt:
    """parts: a list of token ids, or (pad, (t, h, w) in patches, picture seed)."""

    def __init__(self, *parts):
        self.ids, self.grids, self.visuals, self.content_ids = [], [], [], []
        for part in parts:
            if isinstance(part, list):
                self.ids += part
                self.content_ids += part
                continue
            pad, grid, seed = part
            count = grid[0] * grid[1] * grid[2] // MERGE**2
            self.ids += [pad] * count
            self.grids.append(grid)
            self.visuals.append(
                np.random.default_rng(1000 + seed).normal(size=(count, HIDDEN)).astype(np.float32)
            )
            self.content_ids += [hash((seed, grid, i)) % 2**64 for i in range(count)]

    def __add__(self, other):
        joined = Prompt()
        for name in ("ids", "grids", "visuals", "content_ids"):
            setattr(joined, name, getattr(self, name) + getattr(other, name))
        return joined

    def request(self, *, embeddings=None, max_new_tokens=12, **options):
        return _core.Request(
            self.ids,
            grids=self.grids,
            embeddings=self.visuals if embeddings is None else embeddings,
            content_ids=np.array(self.content_ids, np.uint64),
            max_new_tokens=max_new_tokens,
            **options,
        )


def reference_answer(model, prompt, count):
    """`count` greedy tokens by recomputing the whole sequence for each, without cache, chunks or deltas."""
    positions, _ = _core.mrope_positions(prompt.ids, prompt.grids, IMAGE_PAD, VIDEO_PAD, MERGE)
    ids = np.array(prompt.ids)
    embeds = model.embedding[ids]
    pads = (ids == IMAGE_PAD) | (ids == VIDEO_PAD)
    if pads.any():
        embeds[pads] = np.concatenate(prompt.visuals)
    answer = []
    for _ in range(count):
        cos, sin = _core.rope_table(positions, HEAD_DIM, THETA, SECTIONS)
        keys, values = np.zeros((2, LAYERS, KV_HEADS, len(embeds), HEAD_DIM), np.float32)
        answer.append(int(model.run(embeds, cos, sin, 0, keys, values)[-1].argmax()))
        embeds = np.concatenate([embeds, model.embedding[answer[-1:]]])
        positions = np.concatenate([positions, np.full((3, 1), positions.max() + 1)], axis=1)
    return answer
