"""The evaluation set's maker: what its pictures are made of, and what it asks about photographs."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("sklearn")
pytest.importorskip("skimage")
pytest.importorskip("torch")

from models.training import draw, make_eval, text


@pytest.fixture
def made(tmp_path, monkeypatch):
    """make(questions by task, seed): the set's folder, its lines, and the photographs that each of the
    backgrounds chose from."""

    def make(wanted: dict[str, int], seed: int = 1):
        offered: list[tuple[str, ...]] = []
        background = draw.background

        def recorded(rng, width, height, photos=draw.TRAINING_PHOTOS):
            offered.append(photos)
            return background(rng, width, height, photos)

        with monkeypatch.context() as patch:
            patch.setattr(draw, "background", recorded)
            patch.setattr(make_eval, "WANTED", dict.fromkeys(make_eval.WANTED, 0) | wanted)
            folder = tmp_path / f"{'-'.join(wanted)}-{seed}"
            make_eval.make(folder, seed)
        lines = [json.loads(line) for line in (folder / "questions.jsonl").read_text().splitlines()]
        return folder, lines, offered

    return make


@pytest.mark.parametrize("wanted", [{"what": 2, "count": 3, "refusal": 2}, {"video": 12}, {"pictures": 12}])
def test_no_cup_and_no_photograph_of_trainings_stands_behind_objects(made, wanted):
    folder, lines, offered = made(wanted)
    assert set(offered) == {draw.HELD_OUT_BACKGROUNDS}
    for task, number in wanted.items():
        assert sum(line["task"] == task for line in lines) == number
    for line in lines:
        for part in line["messages"][0]["content"][:-1]:
            for name in part.get("video") or [part["image"]]:
                assert (folder / name).is_file()


def test_print_takes_held_out_words_before_held_out_photographs(made, monkeypatch):
    offered_words, random_string = set(), text.random_string

    def recorded(rng, most, words, shares):
        offered_words.add(words)
        return random_string(rng, most, words, shares)

    monkeypatch.setattr(text, "random_string", recorded)
    _, lines, offered = made({"reading": 4})
    assert sum(line["task"] == "reading" for line in lines) == 4
    assert set(offered) == {draw.HELD_OUT_PHOTOS}
    assert offered_words == {text.HELD_OUT_WORDS}


def test_photographs_are_asked_only_for_what_they_do_not_show(made):
    coffee = draw.photo("coffee.png").copy()
    coffee.thumbnail((make_eval.PHOTO_SIDE, make_eval.PHOTO_SIDE))
    cups = 0
    for seed in range(6):
        folder, lines, _ = made({}, seed)
        assert len(lines) == 24 and {line["task"] for line in lines} == {"photographs"}
        for line in lines:
            image, question = line["messages"][0]["content"]
            assert line["answer"] == "no" or line["answer"].startswith("There is no ")
            pixels = np.asarray(Image.open(folder / image["image"]))
            shows_cup = pixels.shape == np.asarray(coffee).shape and (pixels == np.asarray(coffee)).all()
            assert not (shows_cup and "cup" in question["text"])
            cups += "cup" in question["text"]
    assert cups  # of the other photographs


def test_the_same_seed_draws_the_same_set(made, tmp_path):
    first, lines, _ = made({"count": 2, "video": 2}, 3)
    second, again, _ = made({"video": 2, "count": 2}, 3)
    assert lines == again != made({"count": 2, "video": 2}, 4)[1]
    for picture in sorted(first.glob("pictures/*")):
        assert picture.read_bytes() == (second / "pictures" / picture.name).read_bytes()
