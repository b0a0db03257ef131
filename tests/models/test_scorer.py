"""The scorer's rules."""

import json

import pytest

from qwen2vl_rt import InputError, evaluate

BOX = "<|object_ref_start|>the cup<|object_ref_end|><|box_start|>({}),({})<|box_end|>"


def example(answer, task="colour"):
    return evaluate.Example("x", task, [{"role": "user", "content": "?"}], answer)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ((0, 0, 10, 10), (0, 0, 10, 10), 1.0),
        ((0, 0, 10, 10), (5, 0, 15, 10), 1 / 3),
        ((0, 0, 10, 10), (10, 0, 20, 10), 0.0),
        ((0, 0, 10, 10), (2, 2, 4, 4), 0.04),
        ((0, 0, 10, 10), (10, 10, 0, 0), 0.0),
        ((5, 5, 5, 9), (5, 5, 5, 9), 0.0),
    ],
)
def test_iou(a, b, expected):
    assert evaluate.iou(a, b) == pytest.approx(expected)
    assert evaluate.iou(b, a) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("got", "right"),
    [("red<|im_end|>", True), (" red\n", True), ("Red", False), ("red cup", False), ("", False)],
)
def test_text_must_match_exactly(got, right):
    assert evaluate.judge(example("red"), got).right is right


@pytest.mark.parametrize(
    ("got", "right", "overlap"),
    [
        (BOX.format("100,100", "300,300") + "<|im_end|>", True, 1.0),
        (BOX.format("100,100", "300,250"), True, 0.75),
        (BOX.format("100,100", "300,180"), False, 0.4),
        (BOX.format("100,100", "300,300").replace("cup", "ball"), False, 1.0),
        ("There is no cup.", False, 0.0),
        (BOX.format("100,100", "300,300") * 2, False, 0.0),
    ],
)
def test_boxes_need_their_name_and_half_an_overlap(got, right, overlap):
    verdict = evaluate.judge(example(BOX.format("100,100", "300,300"), "grounding"), got)
    assert (verdict.right, verdict.iou) == (right, pytest.approx(overlap))


def test_refusing_is_not_a_box():
    verdict = evaluate.judge(example("There is no cup.", "refusal"), BOX.format("1,1", "2,2"))
    assert not verdict.right and verdict.iou is None


def test_report_by_task():
    examples = [example("red"), example("blue"), example(BOX.format("0,0", "9,9"), "grounding")]
    answers = iter(["red", "green", BOX.format("0,0", "9,9")])
    report = evaluate.score(examples, lambda messages: next(answers), progress=False)
    tasks = report.tasks()
    assert tasks["colour"]["accuracy"] == 0.5 and tasks["colour"]["mean_iou"] is None
    assert tasks["grounding"]["mean_iou"] == 1.0 and tasks["all"]["asked"] == 3
    assert [verdict.expected for verdict in report.mistakes()] == ["blue"]
    assert json.loads(json.dumps(report.to_json()))["tasks"]["all"]["right"] == 2
    assert "| colour | 2 | 1 | 50.0% |" in report.table()


def test_a_tasks_name_breaks_no_table():
    report = evaluate.score([example("red", "a | b\nc")], lambda messages: "red", progress=False)
    assert r"| a \| b c | 1 |" in report.table()


def test_examples_name_pictures_by_absolute_path(tmp_path):
    content = [
        {"type": "image", "image": "a.png"},
        {"type": "video", "video": ["b.png", "c.png"]},
        {"type": "text", "text": "?"},
    ]
    line = {"id": "1", "task": "t", "messages": [{"role": "user", "content": content}], "answer": "yes"}
    (tmp_path / evaluate.QUESTIONS).write_text(json.dumps(line) + "\n\n")
    (found,) = evaluate.load_examples(tmp_path)
    parts = found.messages[0]["content"]
    assert parts[0]["image"] == str((tmp_path / "a.png").resolve())
    assert parts[1]["video"][1] == str((tmp_path / "c.png").resolve())


def test_sources_of_every_form_are_found(tmp_path):
    addresses = ["https://x/y.png", "HTTP://x/y.png", "data:image/png;base64,AA", "file:///y.png"]
    content = [
        {"type": "video", "video": "clip.mp4"},
        {"type": "image_url", "image_url": {"url": "a.png"}},
        {"type": "image", "path": "a.png", "image": None},
        *({"type": "image", "url": address} for address in addresses),
        {"type": "video", "video": ["a.png", addresses[0]]},
    ]
    line = {"id": "1", "task": "t", "messages": [{"role": "user", "content": content}], "answer": "yes"}
    (tmp_path / evaluate.QUESTIONS).write_text(json.dumps(line))
    (found,) = evaluate.load_examples(tmp_path)
    video, nested, path, *others, frames = found.messages[0]["content"]
    picture = str((tmp_path / "a.png").resolve())
    assert video["video"] == str((tmp_path / "clip.mp4").resolve())
    assert nested["image_url"] == {"url": picture}
    assert path == {"type": "image", "path": picture, "image": None}
    assert [other["url"] for other in others] == addresses
    assert frames["video"] == [picture, addresses[0]]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_lines_end_at_line_feeds_alone(tmp_path, end):
    answers = ["a\u2028b", "c\u2029d", "e\u0085f"]
    lines = [
        json.dumps({"id": "1", "task": "t", "messages": [], "answer": answer}, ensure_ascii=False)
        for answer in answers
    ]
    (tmp_path / evaluate.QUESTIONS).write_bytes(end.join(lines).encode())
    assert [found.answer for found in evaluate.load_examples(tmp_path)] == answers


def test_unusable_sets_say_where(tmp_path):
    with pytest.raises(InputError, match=evaluate.QUESTIONS):
        evaluate.load_examples(tmp_path)
    (tmp_path / evaluate.QUESTIONS).write_text('{"id": "1"}\n')
    with pytest.raises(ValueError, match="line 1"):
        evaluate.load_examples(tmp_path)
    question = {"id": "1", "task": "t", "messages": [], "answer": "yes"}
    for change in ({"answer": 5}, {"task": None}, {"task": ["a"]}, {"task": "all"}):
        (tmp_path / evaluate.QUESTIONS).write_text(json.dumps({**question, **change}))
        with pytest.raises(InputError, match=f"line 1: not a question .*{next(iter(change))} must"):
            evaluate.load_examples(tmp_path)
    (tmp_path / evaluate.QUESTIONS).write_text("[" * 100_000)
    with pytest.raises(InputError, match="line 1: not a question"):
        evaluate.load_examples(tmp_path)
    (tmp_path / evaluate.QUESTIONS).write_bytes(b"\xff\n")
    with pytest.raises(InputError, match="cannot be read"):
        evaluate.load_examples(tmp_path)


def test_a_spread_keeps_the_order_and_every_large_task():
    examples = [example(str(index), task) for task in "abc" for index in range(20)]
    few = evaluate.spread(examples, 6)
    assert [examples.index(one) for one in few] == [0, 10, 20, 30, 40, 50]
    assert evaluate.spread(examples, 1000) == examples
    assert evaluate.spread([], 5) == []
