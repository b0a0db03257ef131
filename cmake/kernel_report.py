"""Compile every kernel for every architecture of cmake/cuda.cmake and report what the compiler says of it.

    python cmake/kernel_report.py --output FILE [--architectures 90]   # `make kernel-report`

Fails on any warning and on any kernel whose registers spill to memory.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = (ROOT / "cmake" / "cuda.cmake").read_text()
FUNCTION = re.compile(r"(?:Compiling entry function|Function properties for) '?([^' \n]+)'?")
STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
USED = re.compile(r"Used (\d+) registers(?:.*?(\d+) bytes smem)?")


@dataclass
class Kernel:
    """One compiled function: `registers` is None for those that kernels call."""

    file: str
    architecture: str
    name: str
    stack: int = 0
    spills: int = 0
    registers: int | None = None
    shared: int = 0


def architectures() -> list[str]:
    """The project's one list."""
    return re.search(r'set\(QWEN2VL_CUDA_ARCHITECTURES "([\d;]+)"', BUILD)[1].split(";")


def flags() -> list[str]:
    """What a release build with QWEN2VL_WARNINGS_AS_ERRORS gives nvcc."""
    standard = re.search(r"set\(CMAKE_CUDA_STANDARD (\d+)\)", BUILD)[1]
    own = re.search(r"\$<\$<COMPILE_LANGUAGE:CUDA>:([^>]+)>", BUILD)[1]
    return [f"-std=c++{standard}", "-O3", *own.split(), "-Werror=all-warnings"]


def compile_file(nvcc: str, source: Path, architecture: str) -> list[Kernel]:
    """Compile one file for one architecture; raises RuntimeError with what the compiler said."""
    with tempfile.TemporaryDirectory() as folder:
        target = f"-gencode=arch=compute_{architecture},code=sm_{architecture}"
        command = [
            nvcc,
            *flags(),
            "-Xptxas=-v",
            target,
            "-I",
            str(ROOT / "csrc"),
            "-c",
            str(source),
            "-o",
            f"{folder}/kernel.o",
        ]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"TMPDIR": folder})
    if done.returncode != 0 or "warning" in done.stderr:
        raise RuntimeError(f"{source.name} for sm_{architecture}:\n{done.stdout}{done.stderr}")
    kernels: dict[str, Kernel] = {}
    name = ""
    for line in (done.stdout + done.stderr).splitlines():
        if match := FUNCTION.search(line):
            name = match[1]
            kernels.setdefault(name, Kernel(source.name, architecture, _short(name)))
        elif match := STACK.search(line):
            kernels[name].stack, kernels[name].spills = int(match[1]), int(match[2]) + int(match[3])
        elif (match := USED.search(line)) and name:
            # Printed after the entry's own properties, before those of what it calls.
            kernels[name].registers, kernels[name].shared = int(match[1]), int(match[2] or 0)
    return [kernel for kernel in kernels.values() if not kernel.name.startswith("__internal")]


def _short(mangled: str) -> str:
    """`for_each_kernel<AppendChunk>` for a kernel's mangled name; that itself without binutils."""
    if shutil.which("c++filt") is None:
        return mangled
    name = subprocess.run(["c++filt", mangled], capture_output=True, text=True, check=True).stdout.strip()
    name = re.sub(r"\(anonymous namespace\)::|qwen2vl::|cuda::", "", name).replace(", ", ",")
    name = re.sub(r"\(\w+\)(\d+)", r"\1", name)  # numbers of enumerations
    return re.sub(r"\(.*", "", name).removeprefix("void ").replace(" >", ">")


def main() -> int:
    """Write the report; 1 when something is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nvcc", default=os.environ.get("CUDACXX", "/usr/local/cuda/bin/nvcc"))
    parser.add_argument("--architectures", nargs="+", default=architectures(), metavar="N")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    version = subprocess.run([options.nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    known = subprocess.run(
        [options.nvcc, "--list-gpu-code"], capture_output=True, text=True, check=True
    ).stdout
    kernels: list[Kernel] = []
    for source in sorted(ROOT.glob("csrc/*/*.cu")):
        for architecture in options.architectures:
            if f"sm_{architecture}" in known.split():
                print(f"{source.name} sm_{architecture}", flush=True)
                kernels += compile_file(options.nvcc, source, architecture)
    release = re.search(r"release ([\d.]+), V([\d.]+)", version)
    lines = [
        f"Kernels as nvcc {release[2]} compiles them (`python cmake/kernel_report.py`): registers a thread "
        "by architecture; shared memory a block, stack and spills a thread, in bytes, the most of any. No "
        "warnings. Numbers in names: the format (0 float32, 1 bfloat16, 2 float16), then the template's own.",
        "",
        f"| file | kernel | {' | '.join(options.architectures)} | shared | stack | spills |",
        "|---|---|" + "---|" * (len(options.architectures) + 3),
    ]
    entries: dict[tuple[str, str], dict[str, Kernel]] = {}
    for kernel in kernels:
        if kernel.registers is not None:
            entries.setdefault((kernel.file, kernel.name), {})[kernel.architecture] = kernel
    for (file, name), found in entries.items():
        registers = [found[number].registers if number in found else "" for number in options.architectures]
        most = [max(getattr(one, field) for one in found.values()) for field in ("shared", "stack", "spills")]
        lines.append("| " + " | ".join(str(value) for value in (file, name, *registers, *most)) + " |")
    options.output.write_text("\n".join(lines) + "\n")
    spilling = [f"{kernel.name} (sm_{kernel.architecture})" for kernel in kernels if kernel.spills]
    if spilling:
        print(f"registers spill in {', '.join(spilling)}", file=sys.stderr)
    return 1 if spilling else 0


if __name__ == "__main__":
    raise SystemExit(main())
