"""Questions about a scene: each has one right answer, which is read here from the scene's own record."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest

pytest.importorskip("skimage")

from bench.tiny import TINY
from models.training import draw, phrases, scenes
from models.training.sample import Turn

SET = TINY / "eval" / "questions.jsonl"
COLOUR, SHAPE = (f"(?:{'|'.join(words)})" for words in (phrases.COLOUR_NAMES, phrases.SHAPES))
NAME = f"(?:{COLOUR} )?{SHAPE}"
SLOTS = {"colour": COLOUR, "shape": SHAPE, "name": NAME, "a": NAME, "b": NAME}
ASKED = (  # groups of phrases
    *("DESCRIBE", "DETECT", "COUNT_ALL", "COUNT_SHAPE", "COUNT_COLOUR", "COLOUR_OF", "SHAPE_OF", "LEFT_OF"),
    *("RIGHT_OF", "LEFTMOST", "RIGHTMOST", "IS_LEFT_OF", "IS_RIGHT_OF", "EXISTS", "WHERE", "READ_WORD"),
)


@dataclass
class Thing:
    """What a scene's record says of one object; box in 0..999, None where it isn't known."""

    colour: str
    shape: str
    box: tuple[int, int, int, int] | None = None

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"


def read(question: str) -> tuple[str, dict[str, str]]:
    """The only group of phrases that the question belongs to, and its words."""
    found = []
    for group in ASKED:
        for phrase in getattr(phrases, group):
            pattern = re.escape(phrase)
            for slot, words in SLOTS.items():
                pattern = pattern.replace(re.escape(f"{{{slot}}}"), f"(?P<{slot}>{words})")
            match = re.fullmatch(pattern, question)
            found += [(group, match.groupdict())] if match else []
    assert len(found) == 1, f"{question!r} may be read as {found}"
    return found[0]


def only(things: list[Thing], words: str) -> int | None:
    """Which thing the words mean: a name, a shape or a colour of at most one."""
    found = [i for i, thing in enumerate(things) if words in (thing.name, thing.shape, thing.colour)]
    assert len(found) < 2, f"{words!r} may be each of {found}"
    return found[0] if found else None


def right_answer(question: str, things: list[Thing]) -> str:
    """things: from left to right."""
    group, words = read(question)
    named = [phrases.with_article(thing.name) for thing in things]
    if group == "DESCRIBE":
        return phrases.enumerate_names([thing.name for thing in things])
    if group == "DETECT":
        return "".join(phrases.grounded(thing.name, thing.box) for thing in things) or "nothing"
    if group.startswith("COUNT"):
        wanted = words.get("shape") or words.get("colour")
        return str(sum(wanted in (None, thing.shape, thing.colour) for thing in things))
    if group == "EXISTS":
        return "yes" if words["name"] in {thing.name for thing in things} else "no"
    if group == "READ_WORD":
        return "There is no text."
    if group in ("LEFTMOST", "RIGHTMOST"):
        return named[0 if group == "LEFTMOST" else -1]
    if group in ("IS_LEFT_OF", "IS_RIGHT_OF"):
        a, b = (only(things, words[slot]) for slot in "ab")
        assert None not in (a, b) and a != b
        return "yes" if (a < b) == (group == "IS_LEFT_OF") else "no"
    at = only(things, next(iter(words.values())))
    if group in ("LEFT_OF", "RIGHT_OF"):
        assert at is not None
        at += -1 if group == "LEFT_OF" else 1
        return named[at] if 0 <= at < len(things) else "nothing"
    if at is None:
        missing = f"{words['colour']} object" if group == "SHAPE_OF" else next(iter(words.values()))
        return f"There is no {missing}."
    if group == "COLOUR_OF":
        return things[at].colour
    if group == "SHAPE_OF":
        return phrases.with_article(things[at].shape)
    box = things[at].box
    return "a box" if box is None else phrases.grounded(f"the {words['name']}", box)


def drawn_scene(seed: int, asked: scenes.Asked) -> tuple[list[Thing], list[Thing], list[Turn]]:
    """The record as drawn and from left to right, and the questions."""
    rng = np.random.default_rng(seed)
    width, height = 168, 140
    canvas = draw.background(rng, width, height)
    placed = scenes.place(rng, canvas, scenes.draw_wanted(rng, 6))
    boxes = [scenes.normalised(thing.box, width, height) for thing in placed]
    record = [Thing(one.colour, one.shape, box) for one, box in zip(placed, boxes, strict=True)]
    in_order = [record[i] for i in np.argsort([one.box[0] + one.box[2] for one in placed])]
    return record, in_order, scenes.scene_turns(rng, placed, boxes, 8, asked)


@pytest.mark.parametrize("asked", [scenes.ASKED, scenes.TAUGHT], ids=["the evaluation's", "training's"])
def test_every_question_has_the_answer_that_the_record_gives(asked):
    groups: Counter[str] = Counter()
    for seed in range(150):
        record, in_order, turns = drawn_scene(seed, asked)
        assert len({turn.question for turn in turns}) == len(turns)
        for turn in turns:
            assert turn.answer == right_answer(turn.question, in_order), (seed, turn)
            groups[read(turn.question)[0]] += 1
            spoken = [record[i] for _, i in turn.things]
            if turn.task in ("describe", "detect"):
                assert spoken == in_order
            elif turn.task == "count":
                assert len(spoken) == int(turn.answer)
            else:
                assert all(thing.colour in turn.answer or thing.shape in turn.answer for thing in spoken) or (
                    turn.answer == "yes"
                )
            for words, i in turn.named:
                assert words in turn.question
                assert words in (record[i].name, record[i].shape, record[i].colour)
    assert set(groups) == set(ASKED)


@pytest.mark.parametrize("asked", [scenes.ASKED, scenes.TAUGHT], ids=["the evaluation's", "training's"])
def test_a_kind_is_asked_no_more_often_than_it_stands_in_the_table(asked):
    """And every kind that stands there is one that some scene has a question of."""
    assert 0 < asked.describe < 1
    assert all(weight > 0 for _, weight in asked.kinds)
    assert len(asked.kinds) >= 8  # scene_turns takes up to eight of them
    times = Counter(kind for kind, _ in asked.kinds)
    boxes_asked_for = [
        sum(turn.task == "grounding" for turn in drawn_scene(seed, asked)[2]) for seed in range(60)
    ]
    assert max(boxes_asked_for) == times["where"] > 1
    rng = np.random.default_rng(0)
    things = scenes.place(rng, np.full((140, 168, 3), 120, np.float32), [("red", "cup"), ("blue", "ball")])
    boxes = [thing.box for thing in things]
    for kind in times:
        assert any(scenes.short_turn(rng, kind, things, boxes) is not None for _ in range(20)), kind


@pytest.mark.parametrize(("share", "task"), [(0.0, "detect"), (1.0, "describe")])
def test_the_share_of_plain_descriptions(share, task):
    asked = scenes.Asked(share, scenes.ASKED.kinds)
    assert {drawn_scene(seed, asked)[2][0].task for seed in range(10)} == {task}


def test_the_shipped_sets_answers_agree_about_a_picture():
    """Its description is a record of what it shows: the other answers follow from it."""
    lines = [json.loads(line) for line in SET.read_text(encoding="utf-8").splitlines()]
    record, checked = {}, 0
    for line in lines:
        if line["task"] == "describe":
            words = re.findall(f"({COLOUR}) ({SHAPE})", line["answer"])
            record[line["messages"][0]["content"][0]["image"]] = [Thing(*pair) for pair in words]
    for line in lines:
        first, *_, text = line["messages"][0]["content"]
        things = record.get(first.get("image"))
        if things is None or line["task"] == "pictures":
            continue
        expected = right_answer(text["text"], things)
        if expected == "a box":
            assert line["task"] == "grounding" and "<|box_start|>" in line["answer"]
        else:
            assert line["answer"] == expected, line["id"]
        checked += 1
    assert checked > 100
