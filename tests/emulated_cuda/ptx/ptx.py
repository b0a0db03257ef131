"""A file of PTX, as nvcc writes it, in parts.

Source: "Parallel Thread Execution ISA" (docs.nvidia.com/cuda/parallel-thread-execution), "Syntax" and "State
Spaces, Types, and Variables".
"""

from __future__ import annotations

import re
from dataclasses import dataclass

BITS = {"pred": 1, "f16": 16, "f32": 32, "f64": 64, "f16x2": 32, "bf16x2": 32}
BITS |= {f"{kind}{bits}": bits for kind in "bus" for bits in (8, 16, 32, 64)}

_VARIABLE = r"(?:\.align\s+(\d+)\s+)?\.(\w+)\s+(\w+)(?:\[(\d*)\])?"
_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
_ITEM = re.compile(
    rf"\s*(?:(?P<directive>\.(?:version|target|address_size)[^\n]*)"
    rf"|(?P<dynamic>\.extern\s+)?\.shared\s+{_VARIABLE};"
    r"|(?:\.visible\s+|\.weak\s+)*\.(?P<kind>entry|func)\s*(?P<results>\([^)]*\))?\s*(?P<name>\w+)"
    r"\s*(?P<parameters>\([^)]*\))?[^{;]*(?P<end>[{;]))",
    re.DOTALL,
)


@dataclass(frozen=True)
class Variable:
    """A parameter, or a variable in shared memory."""

    name: str
    align: int
    size: int
    """In bytes."""


@dataclass(frozen=True)
class Statement:
    """An instruction, a directive, a label with its colon, "{" or "}"; words are one space apart."""

    text: str
    line: int
    """In the file, from 1."""


@dataclass(frozen=True)
class Function:
    """A kernel, or a function that kernels call."""

    name: str
    is_kernel: bool
    parameters: list[Variable]
    results: list[Variable]
    shared: list[Variable]
    """Its own variables in shared memory."""
    body: list[Statement]


@dataclass(frozen=True)
class Module:
    """What a file declares."""

    shared: list[Variable]
    """Variables in shared memory that all functions see."""
    dynamic: set[str]
    """Names of the shared memory whose size a launch decides."""
    functions: list[Function]


def parse(text: str) -> Module:
    """Take a file apart.

    Raises:
        ValueError: something that this project's kernels have not needed yet.
    """
    text = _COMMENT.sub(lambda comment: "\n" * comment[0].count("\n"), text)
    shared, dynamic, functions = [], set(), []
    at = 0
    while text[at:].strip():
        item = _ITEM.match(text, at)
        if item is None:
            raise ValueError(f"not understood: {text[at : at + 200].strip()!r}")
        at = item.end()
        if item["kind"] is None:
            if item["dynamic"]:
                dynamic.add(item[5])
            elif not item["directive"]:
                shared.append(_variable(*item.group(3, 4, 5, 6)))
        elif item["end"] == "{":
            end = _closing_brace(text, at)
            body = text[at:end]
            functions.append(
                Function(
                    item["name"],
                    item["kind"] == "entry",
                    parameters=_parameters(item["parameters"]),
                    results=_parameters(item["results"]),
                    shared=[_variable(*found) for found in re.findall(rf"\.shared\s+{_VARIABLE};", body)],
                    body=_statements(body, 1 + text.count("\n", 0, at)),
                )
            )
            at = end + 1
    return Module(shared, dynamic, functions)


def declared(text: str) -> Variable:
    """The variable that a directive declares: ".param .align 8 .b8 name[16]"."""
    return _variable(*re.fullmatch(rf"\.\w+\s+{_VARIABLE}", text).groups())


def _variable(align: str, kind: str, name: str, count: str) -> Variable:
    item = BITS[kind] // 8
    return Variable(name, int(align or item), item * int(count or 1))


def _parameters(text: str | None) -> list[Variable]:
    return [declared(one.strip()) for one in (text or "()")[1:-1].split(",") if one.strip()]


def _closing_brace(text: str, at: int) -> int:
    """Where the block ends whose opening brace is in front of `at`."""
    depth = 1
    for brace in re.compile(r"[{}]").finditer(text, at):
        depth += 1 if brace[0] == "{" else -1
        if depth == 0:
            return brace.start()
    raise ValueError("a block without an end")


def _statements(body: str, line: int) -> list[Statement]:
    """Braces that begin or end a statement are blocks; others hold an operand's parts."""
    pattern = re.compile(r"\s*([{}]|[$\w]+:(?=\s)|[^{};](?:[^{};]|\{[^{};]*\})*;)")
    statements, at, seen = [], 0, 0
    while found := pattern.match(body, at):
        line += body.count("\n", seen, found.start(1))
        statements.append(Statement(" ".join(found[1].rstrip(";").split()), line))
        seen, at = found.start(1), found.end()
    if body[at:].strip():
        raise ValueError(f"line {line}: not understood: {body[at : at + 200].strip()!r}")
    return statements
