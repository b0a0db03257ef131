"""The exported float32 graphs against transformers: vision features and logits on small random models."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from qwen2vl_export.export import export_checkpoint  # noqa: E402
from tests.support.portable_graphs import PortableDecoder, PortableVision  # noqa: E402
from tests.support.random_model import (  # noqa: E402
    IMAGE_PAD,
    VIDEO_PAD,
    VISION_END,
    VISION_START,
    random_model,
    save_checkpoint,
)

TOLERANCE = 1e-5  # of the largest value; what is seen is around 1e-6

MODELS = {
    "grouped query, untied": {},
    "one kv head, tied, three layers": {
        "hidden_size": 96,
        "heads": 6,
        "kv_heads": 1,
        "layers": 3,
        "mrope_section": (4, 2, 2),
        "tied": True,
        "vision_depth": 1,
        "vision_heads": 4,
    },
    "as many kv heads as heads, one layer": {
        "heads": 2,
        "kv_heads": 2,
        "layers": 1,
        "mrope_section": (8, 4, 4),
        "tied": True,
        "vision_dim": 48,
        "vision_heads": 3,
        "vision_depth": 3,
    },
    "small heads, no height section": {
        "heads": 8,
        "kv_heads": 4,
        "mrope_section": (3, 0, 1),
        "mlp_size": 40,
        "vision_dim": 16,
        "vision_heads": 1,
    },
}


@dataclass
class Exported:
    """A reference model and its bundle, opened."""

    model: object
    bundle: object
    vision: PortableVision

    def decoder(self, rows: int = 1, capacity: int = 96) -> PortableDecoder:
        return PortableDecoder(self.bundle, rows, capacity)


@pytest.fixture(scope="module", params=MODELS, ids=lambda name: name.replace(" ", "-"))
def exported(request, tmp_path_factory) -> Exported:
    folder = tmp_path_factory.mktemp("exported")
    model = random_model(seed=len(request.param), **MODELS[request.param])
    checkpoint = save_checkpoint(model, folder / "checkpoint")
    bundle = export_checkpoint(checkpoint, folder / "bundle")
    return Exported(model, bundle, PortableVision(bundle))


def random_patches(seed: int, *grid: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((int(np.prod(grid)), 1176), dtype=np.float32)


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@dataclass
class Prompt:
    """A prompt with visuals: all that the reference takes, and its logits [T, V]."""

    ids: np.ndarray
    embeddings: np.ndarray  # [T, H]
    positions: np.ndarray  # [3, T]
    delta: int
    logits: np.ndarray


def prompt(exported: Exported, seed: int, layout: list) -> Prompt:
    """Build a prompt of `layout`: a number is that many text tokens, (kind, t, h, w) a visual."""
    rng = np.random.default_rng(seed)
    ids, patches, grids = [], {"image": [], "video": []}, {"image": [], "video": []}
    for part in layout:
        if isinstance(part, int):
            ids += rng.integers(0, 500, part).tolist()
            continue
        kind, t, h, w = part
        patches[kind].append(random_patches(len(ids) + seed, t, h, w))
        grids[kind].append([t, h, w])
        pad = IMAGE_PAD if kind == "image" else VIDEO_PAD
        ids += [VISION_START, *[pad] * (t * h * w // 4), VISION_END]

    feeds = {}
    for kind, name in (("image", "pixel_values"), ("video", "pixel_values_videos")):
        if grids[kind]:
            feeds[name] = torch.from_numpy(np.concatenate(patches[kind]))
            feeds[f"{kind}_grid_thw"] = torch.tensor(grids[kind])
    token_ids = torch.tensor([ids])
    with torch.no_grad():
        logits = exported.model(
            input_ids=token_ids, attention_mask=torch.ones_like(token_ids), **feeds
        ).logits
        grid_feeds = {name: value for name, value in feeds.items() if name.endswith("thw")}
        positions, delta = exported.model.model.get_rope_index(token_ids, **grid_feeds)

    # The bundle's own embeddings: text rows from the table, visual rows from its tower.
    ids = np.array(ids)
    embeddings = exported.decoder().embedding[ids]
    for kind, pad in (("image", IMAGE_PAD), ("video", VIDEO_PAD)):
        if grids[kind]:
            features = []
            for values, (t, h, w) in zip(patches[kind], grids[kind], strict=True):
                features.append(
                    exported.vision(values.reshape(t, h * w, -1), h, w).reshape(t * h * w // 4, -1)
                )
            embeddings[ids == pad] = np.concatenate(features)
    return Prompt(ids, embeddings, positions[:, 0].numpy(), int(delta), logits[0].numpy())


MIXED = [3, ("image", 1, 4, 6), 4, ("video", 5, 4, 2), 2, ("image", 1, 2, 2), 5]


# None equals a size of the models, so that a traced constant would show: a tall, a wide, a larger one.
@pytest.mark.parametrize("grid", [(1, 2, 2), (1, 14, 2), (1, 4, 18), (3, 10, 6)], ids=str)
def test_vision_features(exported, grid):
    t, h, w = grid
    patches = random_patches(sum(grid), *grid)
    with torch.no_grad():
        expected = exported.model.visual(torch.from_numpy(patches), torch.tensor([grid])).numpy()
    found = exported.vision(patches.reshape(t, h * w, -1), h, w)
    assert relative(found.reshape(expected.shape), expected) < TOLERANCE


def test_pictures_of_a_batch_do_not_see_each_other(exported):
    patches = random_patches(1, 3, 4, 6).reshape(3, 24, -1)
    together = exported.vision(patches, 4, 6)
    alone = [exported.vision(patches[i : i + 1], 4, 6) for i in range(3)]
    assert relative(together, np.concatenate(alone)) < TOLERANCE


@pytest.mark.parametrize(
    "layout",
    [[9], MIXED, [("video", 7, 4, 2), 3], [1, ("image", 1, 2, 16), 1]],
    ids=["text", "pictures and video", "video longer than its sides", "wide picture"],
)
def test_prefill(exported, layout):
    p = prompt(exported, 5, layout)
    everything = np.arange(len(p.ids))[None]
    found = exported.decoder()(p.embeddings[None], p.positions[:, None], [0], everything)
    assert relative(found[0], p.logits) < TOLERANCE


def test_logit_rows_select(exported):
    p = prompt(exported, 6, MIXED)
    rows = np.array([[len(p.ids) - 1, 0, 7]])
    found = exported.decoder()(p.embeddings[None], p.positions[:, None], [0], rows)
    assert relative(found[0], p.logits[rows[0]]) < TOLERANCE


@pytest.mark.parametrize("chunk", [1, 5, 16])
def test_chunked_prefill(exported, chunk):
    p = prompt(exported, 7, MIXED)
    decoder, found = exported.decoder(), []
    for start in range(0, len(p.ids), chunk):
        part = slice(start, start + chunk)
        rows = np.arange(len(p.ids[part]))[None]
        found.append(decoder(p.embeddings[None, part], p.positions[:, None, part], [start], rows)[0])
    assert relative(np.concatenate(found), p.logits) < TOLERANCE


def test_decode_on_a_warm_cache(exported):
    """Tokens after the prompt, one a step at past_length + delta, equal the whole sequence in one step."""
    p = prompt(exported, 8, MIXED)
    follow = np.random.default_rng(8).integers(0, 500, 6)
    whole = exported.decoder()
    positions = np.concatenate([p.positions, np.tile(len(p.ids) + p.delta + np.arange(6), (3, 1))], axis=1)
    embeddings = np.concatenate([p.embeddings, whole.embedding[follow]])
    expected = whole(embeddings[None], positions[:, None], [0], len(p.ids) + np.arange(6)[None])[0]

    decoder = exported.decoder()
    decoder(p.embeddings[None], p.positions[:, None], [0], np.array([[0]]))
    for i, token in enumerate(follow):
        at = len(p.ids) + i
        found = decoder(whole.embedding[[[token]]], np.full((3, 1, 1), at + p.delta), [at], np.array([[0]]))
        assert relative(found[0], expected[i : i + 1]) < TOLERANCE


def test_greedy_tokens_equal_the_reference(exported):
    rng = np.random.default_rng(9)
    ids = [*rng.integers(0, 500, 3).tolist(), VISION_START, *[IMAGE_PAD] * 6, VISION_END, 17, 4]
    patches = random_patches(9, 1, 4, 6)
    token_ids, grid = torch.tensor([ids]), torch.tensor([[1, 4, 6]])
    with torch.no_grad():
        expected = exported.model.generate(
            input_ids=token_ids,
            attention_mask=torch.ones_like(token_ids),
            pixel_values=torch.from_numpy(patches),
            image_grid_thw=grid,
            max_new_tokens=24,
            do_sample=False,
            eos_token_id=[],
        )[0, len(ids) :].tolist()
        positions, delta = exported.model.model.get_rope_index(token_ids, image_grid_thw=grid)

    decoder = exported.decoder()
    embeddings = decoder.embedding[ids]
    embeddings[np.array(ids) == IMAGE_PAD] = exported.vision(patches[None], 4, 6)[0]
    logits = decoder(embeddings[None], positions.numpy(), [0], np.array([[len(ids) - 1]]))
    found = [int(logits[0, 0].argmax())]
    while len(found) < 24:
        at = len(ids) + len(found) - 1
        step = np.full((3, 1, 1), at + int(delta))
        logits = decoder(decoder.embedding[[found[-1:]]], step, [at], np.array([[0]]))
        found.append(int(logits[0, 0].argmax()))
    assert found == expected


def test_batch_of_different_lengths(exported):
    """Rows prefilled apart, then decoded together at their own past lengths, equal the rows alone."""
    prompts = [
        prompt(exported, 10, [4]),
        prompt(exported, 11, MIXED),
        prompt(exported, 12, [2, ("image", 1, 4, 4), 3]),
    ]
    batch, alone = exported.decoder(rows=3), []
    caches = []
    for p in prompts:
        decoder = exported.decoder()
        decoder(p.embeddings[None], p.positions[:, None], [0], np.array([[0]]))
        caches.append({name: value.copy() for name, value in decoder.cache.items()})
        at = np.full((3, 1, 1), len(p.ids) + p.delta)
        alone.append(decoder(decoder.embedding[[[33]]], at, [len(p.ids)], np.array([[0]])))
    batch.cache = {name: np.concatenate([cache[name] for cache in caches]) for name in batch.cache}
    lengths = [len(p.ids) for p in prompts]
    at = np.array([[len(p.ids) + p.delta] for p in prompts])
    found = batch(batch.embedding[[[33]] * 3], np.tile(at, (3, 1, 1)), lengths, np.zeros((3, 1)))
    assert relative(found, np.concatenate(alone)) < TOLERANCE
