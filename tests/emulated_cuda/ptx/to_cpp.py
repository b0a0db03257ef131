"""C++ of the kernels in a file of PTX, for the emulated GPU: to_cpp.py KERNELS.ptx KERNELS.cc

What nvcc makes of csrc's kernels, the instructions that are written there as PTX included, then runs in the
place of what the C++ compiler makes of them. Of PTX the compiler of a GPU's driver makes machine code, which
is what remains unseen. Registers are variables, which hold bits; instructions are machine.h's.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path

from ptx import BITS, Function, Module, Statement, Variable, declared, parse

INDICES = {"tid": "threadIdx", "ctaid": "blockIdx", "ntid": "blockDim", "nctaid": "gridDim"}
SPECIAL = {f"%{name}.{axis}": f"{variable}.{axis}" for name, variable in INDICES.items() for axis in "xyz"}
OPERATORS = {"add": "+", "sub": "-", "mul": "*", "div": "/", "and": "&", "or": "|", "xor": "^"}
COMPARISONS = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
FLOATS = {"f16x2": "FloatType::kFloat16", "bf16x2": "FloatType::kBFloat16"}
INTEGERS_OF = {"rzi": "std::trunc", "rpi": "std::ceil", "rmi": "std::floor", "rni": "std::nearbyint"}


def c_type(kind: str) -> str:
    """Of a value of an instruction's type."""
    if kind in ("f32", "f64"):
        return {"f32": "float", "f64": "double"}[kind]
    if BITS[kind] == 1:
        return "bool"
    return f"{'int' if kind[0] == 's' else 'uint'}{BITS[kind]}_t"


def register_type(bits: int) -> str:
    """Of the variable that stands for a register."""
    return "bool" if bits == 1 else f"uint{bits}_t"


def placed(variables: list[Variable], at: int = 0) -> tuple[dict[str, int], int]:
    """Where variables lie one behind the other, and where the last one ends."""
    places = {}
    for variable in variables:
        at = -(-at // variable.align) * variable.align
        places[variable.name] = at
        at += variable.size
    return places, at


def host_name(name: str) -> str:
    """The C++ compiler's name for the same function: nvcc calls nameless namespaces by their file."""

    def nameless(found: re.Match[str]) -> str:
        length = re.match(r"\d+", found[0])[0]
        assert len(found[0]) - len(length) == int(length)
        return "12_GLOBAL__N_1"

    return re.sub(r"\d+_GLOBAL__N__[0-9a-f]+_\d+_\w+?_cu_[0-9a-f]{8}(?=\d)", nameless, name)


class Translation:
    """Of one function."""

    def __init__(self, module: Module, function: Function, number: int) -> None:
        self.function = function
        self.name = f"kernel_{number}" if function.is_kernel else function.name
        self.registers: dict[str, int] = {}  # and their bits
        self.shared, end = placed(module.shared + function.shared)
        dynamic = -(-end // 64) * 64
        self.shared_bytes = dynamic if module.dynamic else end
        self.shared |= dict.fromkeys(module.dynamic, dynamic)
        self.parameters: dict[str, str] = {}  # and the C++ pointers to them
        self.parameter_bytes = 0
        if function.is_kernel:
            places, self.parameter_bytes = placed(function.parameters)
            self.parameters = {name: f"(parameters + {place})" for name, place in places.items()}
        else:
            arguments = {one.name: f"argument_{i}" for i, one in enumerate(function.parameters)}
            self.parameters = arguments | {one.name: "result" for one in function.results}

    def prototype(self) -> str:
        if self.function.is_kernel:
            return f"void {self.name}(char* parameters)"
        results = ["char* result"] if self.function.results else []
        arguments = [f"char* argument_{i}" for i in range(len(self.function.parameters))]
        return f"void {self.name}({', '.join(results + arguments)})"

    def definition(self, file: str) -> Iterator[str]:
        """The lines of its C++."""
        yield f"{self.prototype()} {{"
        for statement in self.function.body:
            try:
                code = self.statement(statement)
            except (KeyError, IndexError, AssertionError) as error:
                sys.exit(f"{file}:{statement.line}: cannot translate: {statement.text} ({error!r})")
            if code:
                yield f'#line {statement.line} "{file}"\n{code}'
        yield "}"
        if self.function.is_kernel:
            kernel = f"{self.name}, {self.parameter_bytes}, {self.shared_bytes}"
            name = host_name(self.function.name)
            yield f'const ptx::Registered registered_{self.name}("{name}", {{{kernel}}});'

    def statement(self, statement: Statement) -> str:
        text = statement.text
        if text in ("{", "}"):
            return text
        if text.endswith(":"):
            return f"{label(text[:-1])}: ;"
        if text.startswith(".reg "):
            return self.declaration(text)
        if text.startswith(".param "):  # of a call
            variable = declared(text)
            self.parameters[variable.name] = variable.name
            return f"alignas(16) char {variable.name}[{variable.size}];"
        if text.startswith((".pragma ", ".shared ")):
            return ""
        guard, negated, predicate, opcode, rest = re.fullmatch(
            r"(@(!?)(%\w+) )?([\w.]+)\s*(.*)", text
        ).groups()
        code = self.instruction(opcode.split("."), operands(rest))
        return f"if ({negated}{variable_of(predicate)}) {{ {code} }}" if guard else code

    def declaration(self, text: str) -> str:
        kind, names = re.fullmatch(r"\.reg \.(\w+) (.*)", text).groups()
        lists = []
        for name in names.split(", "):
            stem, end = re.fullmatch(r"(%?\w+)(?:<(\d+)>)?", name).groups()
            lists += [f"{stem}{i}" for i in range(1, int(end))] if end else [stem]
        self.registers |= dict.fromkeys(lists, BITS[kind])
        return f"[[maybe_unused]] {register_type(BITS[kind])} {', '.join(map(variable_of, lists))};"

    # --- operands ------------------------------------------------------------------------------------------

    def raw(self, operand: str, bits: int) -> str:
        """The bits of an operand."""
        if operand in self.registers:
            return variable_of(operand)
        if operand in SPECIAL:
            return f"uint32_t{{{SPECIAL[operand]}}}"
        if operand in self.shared:
            return f"static_cast<{register_type(bits)}>({self.shared[operand]})"
        if operand in self.parameters:
            return f"reinterpret_cast<uint64_t>({self.parameters[operand]})"
        if number := re.fullmatch(r"0[fFdD]([0-9a-fA-F]+)", operand):
            return f"{register_type(4 * len(number[1]))}{{0x{number[1]}u}}"
        return f"static_cast<{register_type(bits)}>({int(operand, 0) % 2**64}u)"

    def value(self, operand: str, kind: str) -> str:
        """An operand as a value of a type."""
        return f"ptx::as<{c_type(kind)}>({self.raw(operand, BITS[kind])})"

    def into(self, register: str, value: str) -> str:
        """A value's bits into a register."""
        if register == "_":
            return f"static_cast<void>({value});"
        return f"{variable_of(register)} = ptx::as<{register_type(self.registers[register])}>({value});"

    def address(self, operand: str, space: str) -> str:
        """The pointer that "[base+offset]" stands for."""
        base, offset = re.fullmatch(r"\[([%$\w]+)(?:\+(-?\d+))?\]", operand).groups()
        if space == "shared":
            return f"ptx::shared({self.raw(base, 64)} + {offset or 0})"
        start = self.parameters.get(base) or f"reinterpret_cast<char*>({self.raw(base, 64)})"
        return f"({start} + {offset or 0})"

    # --- instructions --------------------------------------------------------------------------------------

    def instruction(self, opcode: list[str], given: list[str]) -> str:
        name, kind = opcode[0], opcode[-1]
        if method := getattr(self, f"do_{name}", None):
            return method(opcode, given)
        target, *sources = given
        values = [self.value(one, kind) for one in sources]
        words = [self.raw(one, 32) for one in sources]
        return self.into(target, computed(opcode, values, words))

    def do_bra(self, _opcode: list[str], given: list[str]) -> str:
        return f"goto {label(given[0])};"

    def do_ret(self, _opcode: list[str], _given: list[str]) -> str:
        return "return;"

    def do_call(self, _opcode: list[str], given: list[str]) -> str:
        arguments = [name for one in given if one[0] == "(" for name in operands(one[1:-1])]
        return f"{next(one for one in given if one[0] != '(')}({', '.join(arguments)});"

    def do_mov(self, opcode: list[str], given: list[str]) -> str:
        target, source = given
        whole = BITS[opcode[-1]]
        if target[0] == "{":
            parts = operands(target[1:-1])
            bits = whole // len(parts)
            taken = f"({self.raw(source, whole)} >> {{}})"
            return " ".join(
                self.into(part, f"static_cast<{register_type(bits)}>{taken.format(i * bits)}")
                for i, part in enumerate(parts)
            )
        if source[0] == "{":
            parts = operands(source[1:-1])
            bits = whole // len(parts)
            words = [f"{register_type(whole)}{{{self.raw(part, bits)}}}" for part in parts]
            return self.into(target, " | ".join(f"{word} << {i * bits}" for i, word in enumerate(words)))
        return self.into(target, self.raw(source, whole))

    def do_cvta(self, opcode: list[str], given: list[str]) -> str:
        source = self.raw(given[1], 64)
        if "shared" in opcode:
            source = f"ptx::{'to_shared' if 'to' in opcode else 'from_shared'}({source})"
        return self.into(given[0], source)

    def do_setp(self, opcode: list[str], given: list[str]) -> str:
        (_, comparison, kind), (target, first, second) = opcode, given
        x, y = self.value(first, kind), self.value(second, kind)
        unordered = f"ptx::unordered({x}, {y})"
        if comparison == "nan":
            return f"{variable_of(target)} = {unordered};"
        with_nan = kind[0] == "f" and comparison.endswith("u")
        compared = f"{x} {COMPARISONS[comparison.removesuffix('u') if with_nan else comparison]} {y}"
        if kind[0] == "f":
            compared = f"{unordered} || {compared}" if with_nan else f"!{unordered} && {compared}"
        return f"{variable_of(target)} = {compared};"

    def do_selp(self, opcode: list[str], given: list[str]) -> str:
        target, first, second, predicate = given
        bits = BITS[opcode[-1]]
        return self.into(
            target, f"({variable_of(predicate)} ? {self.raw(first, bits)} : {self.raw(second, bits)})"
        )

    def do_cvt(self, opcode: list[str], given: list[str]) -> str:
        target, *sources = given
        *how, to, of = opcode[1:]
        values = [self.value(one, of) for one in sources]
        if to in ("f16x2", "bf16x2"):
            assert how == ["rn"]
            high, low = values
            return self.into(target, f"ptx::rounded_pair<ptx::{FLOATS[to]}>({low}, {high})")
        (value,) = values
        floats = to[0] == "f", of[0] == "f"
        if how == ["sat"]:
            value = f"ptx::saturated({value})"
        elif floats == (False, True):
            value = f"ptx::integer<{c_type(to)}>({INTEGERS_OF[how[0]]}({value}))"
        elif to == of:
            value = f"{INTEGERS_OF[how[0]]}({value})"
        else:
            # From an integer, or a float to a narrower one: rounded as C++ does it.
            rounds = floats == (True, False) or (floats == (True, True) and BITS[to] < BITS[of])
            assert how == (["rn"] if rounds else [])
            value = f"static_cast<{c_type(to)}>({value})"
        return self.into(target, value)

    def do_ld(self, opcode: list[str], given: list[str]) -> str:
        parts = operands(given[0][1:-1]) if given[0][0] == "{" else [given[0]]
        kind, parameter = element(opcode, len(parts)), "_parameter" if "param" in opcode else ""
        loaded = f"ptx::load{parameter}<{kind}>({self.address(given[1], space(opcode))})"
        into = " ".join(self.into(part, f"loaded.each[{i}]") for i, part in enumerate(parts))
        return f"{{ const auto loaded = {loaded}; {into} }}"

    def do_st(self, opcode: list[str], given: list[str]) -> str:
        parts = operands(given[1][1:-1]) if given[1][0] == "{" else [given[1]]
        kind, parameter = element(opcode, len(parts)), "_parameter" if "param" in opcode else ""
        values = ", ".join(self.value(part, opcode[-1]) for part in parts)
        return f"ptx::store{parameter}<{kind}>({self.address(given[0], space(opcode))}, {{{{{values}}}}});"

    def do_atom(self, opcode: list[str], given: list[str]) -> str:
        target, address, value = given
        assert "add" in opcode
        pointer = f"reinterpret_cast<{c_type(opcode[-1])}*>({self.address(address, space(opcode))})"
        if "acq_rel" in opcode:
            assert value == "1"
            return self.into(target, f"emulated_cuda::count_up({pointer})")
        return self.into(target, f"atomicAdd({pointer}, {self.value(value, opcode[-1])})")

    def do_shfl(self, opcode: list[str], given: list[str]) -> str:
        target, *sources = given
        register, _, predicate = target.partition("|")
        words = ", ".join(self.raw(one, 32) for one in sources)
        known = f" {variable_of(predicate)} = true;" if predicate else ""
        return self.into(register, f"ptx::shuffled_{opcode[2]}({words})") + known

    def do_bar(self, opcode: list[str], given: list[str]) -> str:
        if opcode[1] == "warp":
            return f"ptx::warp_barrier({self.raw(given[0], 32)});"
        assert given == ["0"]
        return "__syncthreads();"

    def do_griddepcontrol(self, opcode: list[str], _given: list[str]) -> str:
        return {
            "wait": "cudaGridDependencySynchronize();",
            "launch_dependents": "cudaTriggerProgrammaticLaunchCompletion();",
        }[opcode[1]]

    def do_prefetch(self, _opcode: list[str], _given: list[str]) -> str:
        return ""

    def do_cp(self, opcode: list[str], given: list[str]) -> str:
        if opcode[2] == "commit_group":
            return "__pipeline_commit();"
        if opcode[2] == "wait_group":
            return f"__pipeline_wait_prior({given[0]});"
        to, source, size, *read = given
        assert read in ([], [size])
        assert size in {"cg": ("16",), "ca": ("4", "8", "16")}[opcode[2]]
        addresses = f"{self.address(to, 'shared')}, {self.address(source, 'global')}"
        return f"__pipeline_memcpy_async({addresses}, {size});"

    def do_ldmatrix(self, opcode: list[str], given: list[str]) -> str:
        assert ".".join(opcode) == "ldmatrix.sync.aligned.m8n8.x4.shared.b16"
        targets = operands(given[0][1:-1])
        into = " ".join(self.into(target, f"words[{i}]") for i, target in enumerate(targets))
        load = f"emulated_cuda::load_matrices(words, {self.address(given[1], 'shared')});"
        return f"{{ uint32_t words[4]; {load} {into} }}"

    def do_mma(self, opcode: list[str], given: list[str]) -> str:
        number = opcode[-2]
        assert ".".join(opcode) == f"mma.sync.aligned.m16n8k16.row.col.f32.{number}.{number}.f32"
        targets, first, second, sums = (operands(one[1:-1]) for one in given)
        assert [len(first), len(second), len(sums)] == [4, 2, 4]
        into = " ".join(self.into(target, f"sums[{i}]") for i, target in enumerate(targets))
        return (
            f"{{ float sums[] = {{{', '.join(self.value(one, 'f32') for one in sums)}}};"
            f" const uint32_t first[] = {{{', '.join(self.raw(one, 32) for one in first)}}},"
            f" second[] = {{{', '.join(self.raw(one, 32) for one in second)}}};"
            f" emulated_cuda::multiply_add({'true' if number == 'bf16' else 'false'}, sums, first, second);"
            f" {into} }}"
        )


def computed(opcode: list[str], x: list[str], words: list[str]) -> str:
    """The result of an instruction that computes, of values or of plain words."""
    *name, kind = opcode
    how = ".".join(name)
    if kind == "pred":
        return f"!{x[0]}" if how == "not" else f"({x[0]} {OPERATORS[how]} {x[1]})"
    if kind in ("f16x2", "bf16x2"):
        function = {"add.rn": "added_pairs", "fma.rn": "fused_pairs"}[how]
        return f"ptx::{function}<ptx::{FLOATS[kind]}>({', '.join(words)})"
    if how in ("prmt", "lop3"):
        return f"ptx::{how}({', '.join(words)})"
    if kind[0] == "f":
        return computed_float(how, kind, x)
    number = c_type(kind)
    if how in ("shl", "shr"):
        return f"ptx::{how}<{number}>({x[0]}, {words[1]})"
    if how == "bfi":
        return f"ptx::bfi<{number}>({x[0]}, {x[1]}, {words[2]}, {words[3]})"
    if how in ("not", "neg"):
        return f"static_cast<{number}>({'~' if how == 'not' else '0u - '}{unsigned(x[0], kind)})"
    if how in ("min", "max"):
        return f"std::{how}<{number}>({x[0]}, {x[1]})"
    if how in ("div", "rem", "mul.hi"):
        function = {"div": "quotient", "rem": "remainder", "mul.hi": "high_product"}[how]
        return f"ptx::{function}<{number}>({x[0]}, {x[1]})"
    if how == "mul.wide":
        wide = c_type(f"{kind[0]}{2 * BITS[kind]}")
        return f"(static_cast<{wide}>({x[0]}) * static_cast<{wide}>({x[1]}))"
    u = [unsigned(one, kind) for one in x]
    if how == "mad.lo":
        return f"static_cast<{number}>({u[0]} * {u[1]} + {u[2]})"
    return f"static_cast<{number}>({u[0]} {OPERATORS[how.removesuffix('.lo')]} {u[1]})"


def computed_float(how: str, kind: str, x: list[str]) -> str:
    """Roundings are named: a sum or product without one may be contracted, which csrc forbids."""
    one = "1.0f" if kind == "f32" else "1.0"
    if how in ("add.rn", "sub.rn", "mul.rn", "div.rn"):
        return f"({x[0]} {OPERATORS[how[:3]]} {x[1]})"
    return {
        "fma.rn": "std::fma({})",
        "fma.rm": "ptx::fused_down({})",
        "neg": "(-{})",
        "abs": "std::fabs({})",
        "min": "std::fmin({})",
        "max": "std::fmax({})",
        "sqrt.rn": "std::sqrt({})",
        "rcp.rn": f"({one} / {{}})",
        "ex2.approx.ftz": "ptx::exp2_approximately({})",
        "rcp.approx.ftz": "ptx::reciprocal_approximately({})",
    }[how].format(", ".join(x))


def unsigned(value: str, kind: str) -> str:
    """An integer whose sums and products wrap."""
    return f"static_cast<uint{max(BITS[kind], 32)}_t>({value})"


def element(opcode: list[str], count: int) -> str:
    """The type of what is loaded or stored at once."""
    assert ("v2" in opcode) * 2 + ("v4" in opcode) * 4 == (count if count > 1 else 0)
    return f"ptx::Vector<{c_type(opcode[-1])}, {count}>"


def space(opcode: list[str]) -> str:
    """The state space of an address."""
    assert "local" not in opcode
    return "shared" if "shared" in opcode else "global"


def operands(text: str) -> list[str]:
    """Parts between commas; those in braces, brackets and parentheses are one."""
    return [
        one.strip()
        for one in re.findall(r"(?:[^,{\[(]|\{[^}]*\}|\[[^\]]*\]|\([^)]*\))+", text)
        if one.strip()
    ]


def variable_of(register: str) -> str:
    return register.removeprefix("%")


def label(name: str) -> str:
    return name.replace("$", "_")


def main() -> None:
    source, output = map(Path, sys.argv[1:])
    module = parse(source.read_text())
    numbers = count()
    translations = [Translation(module, function, next(numbers)) for function in module.functions]
    lines = ['#include "machine.h"', '#include "translated.h"', "namespace {"]
    lines += [f"{one.prototype()};" for one in translations]
    for one in translations:
        lines += one.definition(str(source))
    output.write_text("\n".join([*lines, "}  // namespace", ""]))


if __name__ == "__main__":
    main()
