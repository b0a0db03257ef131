"""The training forward against transformers' Qwen2VLForConditionalGeneration."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from models.training import batches, checkpoint, model, tokenizer  # noqa: E402
from models.training.sample import CELL  # noqa: E402


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint folder with random weights, and those weights as stored."""
    path = tmp_path_factory.mktemp("tiny")
    tokenizer.write(path / "tokenizer")
    geometry = model.Geometry(layers=2, vision_layers=2)
    weights = model.initial_weights(geometry, seed=5)
    checkpoint.write(path / "checkpoint", weights, geometry, path / "tokenizer")
    return (
        path / "checkpoint",
        geometry,
        {name: tensor.bfloat16().float() for name, tensor in weights.items()},
    )


@pytest.mark.parametrize(
    ("kind", "layout"), [("scene", [(1, 4, 3)]), ("video", [(6, 3, 2)]), ("several", [(1, 2, 3), (1, 4, 2)])]
)
def test_forward_equals_transformers(folder, kind, layout):
    path, geometry, weights = folder
    reference = transformers.Qwen2VLForConditionalGeneration.from_pretrained(
        path, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    rng = np.random.default_rng(3)
    sample = batches.draw_sample(rng, kind, [(f, CELL * w, CELL * h) for f, w, h in layout], 1.0)
    encoder = batches.Encoder(path / "tokenizer.json")
    batch = encoder.batch([sample])
    patches = torch.cat([model.patchify(frames, torch.float32)[0].flatten(0, 1) for frames in batch.frames])
    grids = torch.tensor([(t, 2 * h, 2 * w) for t, h, w in (block.grid for block in sample.blocks)])
    images = (
        {"pixel_values_videos": patches, "video_grid_thw": grids}
        if kind == "video"
        else {"pixel_values": patches, "image_grid_thw": grids}
    )
    with torch.no_grad():
        tokens = [model.vision(weights, geometry, frames) for frames in batch.frames]
        x = weights["model.embed_tokens.weight"][batch.ids].index_copy(1, batch.visual, torch.cat(tokens, 1))
        last, _ = model.decoder(weights, geometry, x, batch.positions, model.branch_mask(batch.branch))
        logits = (last @ weights["model.embed_tokens.weight"].T)[0]
        for number in range(1, len(sample.turns) + 1):  # each branch alone is what transformers sees
            seen = (batch.branch[0] == 0) | (batch.branch[0] == number)
            expected = reference(
                input_ids=batch.ids[:, seen], attention_mask=torch.ones(1, int(seen.sum())), **images
            )
            torch.testing.assert_close(logits[seen], expected.logits[0], atol=1e-4, rtol=1e-5)
