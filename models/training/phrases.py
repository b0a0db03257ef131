"""Every word and phrase the tiny model is taught: names, questions and the form of the answers."""

from __future__ import annotations

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (206, 36, 40),
    "orange": (246, 138, 20),
    "yellow": (242, 218, 40),
    "green": (40, 156, 60),
    "blue": (36, 84, 206),
    "purple": (136, 50, 168),
    "white": (240, 240, 240),
    "black": (28, 28, 30),
}
COLOUR_NAMES = tuple(COLOURS)
SHAPES = ("block", "ball", "cup")

SYSTEM = "You are a helpful assistant."

# Tabletop scenes.
DESCRIBE = ("Describe the picture.", "What is in the picture?", "What is on the table?")
DETECT = ("Detect all objects.", "Find every object.")
COUNT_ALL = ("How many objects are there?", "How many things are on the table?")
COUNT_SHAPE = ("How many {shape}s are there?", "How many {shape}s do you see?")
COUNT_COLOUR = ("How many {colour} objects are there?", "How many things are {colour}?")
COLOUR_OF = ("What colour is the {shape}?", "What color is the {shape}?", "Which colour is the {shape}?")
SHAPE_OF = ("What is the {colour} object?", "What is the {colour} thing?")
LEFT_OF = ("What is left of the {name}?", "What is to the left of the {name}?")
RIGHT_OF = ("What is right of the {name}?", "What is to the right of the {name}?")
LEFTMOST = ("Which object is leftmost?", "What is the leftmost object?")
RIGHTMOST = ("Which object is rightmost?", "What is the rightmost object?")
IS_LEFT_OF = ("Is the {a} left of the {b}?", "Is the {a} to the left of the {b}?")
IS_RIGHT_OF = ("Is the {a} right of the {b}?", "Is the {a} to the right of the {b}?")
EXISTS = ("Is there a {name}?", "Do you see a {name}?")
WHERE = ("Where is the {name}?", "Find the {name}.", "Locate the {name}.")

# Reading.
READ_WORD = ("What does it say?", "Read the text.", "What word is written?")
READ_NUMBER = ("What number is shown?", "Read the number.", "Which number do you see?")
READ_DIGIT = ("Which digit is written?", "What digit is this?", "Read the handwritten digit.")

# Video.
DESCRIBE_VIDEO = ("Describe the video.", "What happens in the video?")
DIRECTION = ("Which way does the {name} move?", "In which direction does the {name} move?")
WHAT_MOVES = ("What moves?", "Which object moves?")
WHAT_APPEARS = ("What appears?", "Which object appears?")
WHAT_VANISHES = ("What disappears?", "Which object disappears?")
APPEARS_FIRST = ("What appears first?", "Which object appears first?")
APPEARS_LAST = ("What appears last?", "Which object appears last?")
ORDER = ("In which order do the objects appear?", "In what order do things appear?")
DIRECTIONS = ("left", "right", "up", "down")

# Several pictures.
DESCRIBE_NTH = ("What is in picture {n}?", "Describe picture {n}.")
WHICH_PICTURE = ("In which picture is the {name}?", "Which picture shows the {name}?")
WHICH_DIFFERS = ("Which picture is different?", "Which picture differs from the others?")
ALL_SAME = ("Are the pictures the same?", "Do the pictures show the same?")
NTH = "picture {n}"

# Answers shared by several tasks.
YES, NO, NOTHING, NONE = "yes", "no", "nothing", "none"
NO_TEXT = "There is no text."


def absent(name: str) -> str:
    """The refusal: the asked-for thing is not in the picture."""
    return f"There is no {name}."


def enumerate_names(names: list[str]) -> str:
    """a red block, a blue ball and a green cup"""
    items = [f"{article(name)} {name}" for name in names]
    if not items:
        return NOTHING
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + " and " + items[-1]


def article(name: str) -> str:
    return "an" if name[0] in "aeiou" else "a"


def with_article(name: str) -> str:
    return f"{article(name)} {name}"


def grounded(name: str, box: tuple[int, int, int, int]) -> str:
    """The family's grounding form; box is x1, y1, x2, y2 in 0..999 of the picture's sides."""
    x1, y1, x2, y2 = box
    return f"<|object_ref_start|>{name}<|object_ref_end|><|box_start|>({x1},{y1}),({x2},{y2})<|box_end|>"
