"""`qwen2vl bench`: what it counts, what it writes, what it refuses."""

from __future__ import annotations

import json
import math
import sys

import numpy as np
import onnx
import pytest
from PIL import Image

from qwen2vl_rt import _core
from qwen2vl_rt.benchmark import limits as machine_limits
from qwen2vl_rt.benchmark.limits import Limits, measure_limits
from qwen2vl_rt.benchmark.work import Work, decode_work, vision_work
from qwen2vl_rt.bundle import DECODER_GRAPH, VISION_GRAPH, Bundle
from qwen2vl_rt.cli import main
from qwen2vl_rt.errors import InputError
from qwen2vl_rt.peak_memory import peak_memory, reset_peak, resident_memory

SMALL = [
    "--pictures",
    "56x56",
    "84x56",
    "--lengths",
    "16",
    "24",
    "--batches",
    "1",
    "2",
    "--decode-tokens",
    "4",
]


def matrix_sizes(opened: Bundle, graph: str) -> list[int]:
    model = onnx.load(opened.file(graph), load_external_data=False)
    return [math.prod(tensor.dims) for tensor in model.graph.initializer if len(tensor.dims) == 2]


def test_decode_reads_and_multiplies_every_matrix_of_the_graph(bundle):
    opened = Bundle.open(bundle)
    weights = sum(matrix_sizes(opened, DECODER_GRAPH))
    work = decode_work(opened, context=0, batch=1)
    assert work.operations == 2 * weights
    # Norms and biases are read, too; they are small.
    assert 4 * weights <= work.read_bytes <= 4 * weights * 1.02
    cached = decode_work(opened, context=1000, batch=3).read_bytes - work.read_bytes
    d = opened.geometry.decoder
    assert cached == 3 * 1000 * 2 * 4 * d.layers * d.kv_heads * d.head_dim


def test_vision_multiplies_every_matrix_of_the_graph(bundle):
    opened = Bundle.open(bundle)
    v = opened.geometry.vision
    merged = v.embed_dim * v.merge_size**2
    sizes = matrix_sizes(opened, VISION_GRAPH)
    merger = [
        size for size in sizes if size in (merged * merged, merged * opened.geometry.decoder.hidden_size)
    ]
    assert len(merger) == 2
    a_patch = sum(sizes) - sum(merger) + sum(merger) / v.merge_size**2
    attention = 4 * 96**2 * v.embed_dim * v.depth  # scores and weighted values
    assert vision_work(opened, (1, 8, 12)).operations == 2 * 96 * a_patch + attention


def test_the_limit_is_the_slower_of_multiplying_and_reading():
    limits = Limits(100.0, 50.0, 200.0, "int8")
    assert limits.seconds(Work(400, 0)) == 2
    assert limits.seconds(Work(400, 1000)) == 10


@pytest.mark.parametrize(
    ("instruction", "product", "limit"), [(300.0, 200.0, 300.0), (200.0, 300.0, 300.0), (0.0, 300.0, 300.0)]
)
def test_the_rate_is_the_better_of_the_instruction_and_the_product(monkeypatch, instruction, product, limit):
    """Each of float32 and int8 on its own; without the instruction's rate (0) the product's is the limit."""
    factors = {False: 1, True: 4}
    asked = []

    def instruction_rate(integers: bool, threads: int) -> float:
        asked.append(threads)
        return instruction * factors[integers]

    monkeypatch.setattr(_core, "multiply_rate", instruction_rate)
    monkeypatch.setattr(
        machine_limits, "_product_rate", lambda threads, integers: product * factors[integers]
    )
    monkeypatch.setattr(machine_limits, "_read_rate", lambda threads: 100.0 * threads)
    assert measure_limits(3, quantized=True) == Limits(300.0, limit, 4 * limit, "int8")
    assert measure_limits(3, quantized=False) == Limits(300.0, limit, limit, "float32")
    assert set(asked) == {3}


@pytest.mark.parametrize("integers", [False, True])
def test_the_instruction_has_a_rate_where_one_is_known(integers):
    sets = _core.instruction_sets()
    assert (_core.multiply_rate(integers, 2) > 0) == ("avx2" in sets)
    try:
        for name in sets:
            _core.limit_instruction_set(name)
            assert (_core.multiply_rate(integers, 1) > 0) == (name != "portable")
    finally:
        _core.limit_instruction_set("")
    with pytest.raises(InputError, match="0 threads"):
        _core.multiply_rate(integers, 0)


def test_peak_memory_begins_anew():
    reset_peak()
    block = np.ones(200 << 20, np.uint8)
    held = peak_memory()
    assert held >= block.nbytes
    del block
    reset_peak()
    assert peak_memory() < held - (150 << 20)
    assert peak_memory() >= resident_memory() * 0.9


def test_bench_writes_table_json_and_plot(bundle, tmp_path, capsys):
    files = {name: tmp_path / f"bench.{name}" for name in ("json", "markdown", "plot")}
    written = [word for name, file in files.items() for word in (f"--{name}", str(file))]
    assert main(["bench", str(bundle), *SMALL, *written]) == 0
    table = capsys.readouterr().out
    assert files["markdown"].read_text().strip() == table.strip()
    report = json.loads(files["json"].read_text())
    names = [figure["name"] for figure in report["figures"]]
    for name in ("vision 84x56", "first token, 56x56 and a question", "prefill of 24", "decode after 16 x 2"):
        assert name in names and f"| {name} |" in table
    for figure in report["figures"]:
        assert figure["value"] > 0 and figure["limit"] > 0 and figure["ratio"] > 0
    assert Image.open(files["plot"]).format == "PNG"


def test_a_plot_without_matplotlib_is_refused_before_anything_is_measured(
    bundle, tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    plot = tmp_path / "bench.png"
    assert main(["bench", str(bundle), "--plot", str(plot)]) == 1
    output = capsys.readouterr()
    assert "pip install" in output.err and not output.out
    assert not plot.exists()


@pytest.mark.parametrize("wrong", [["--lengths", "0"], ["--decode-tokens", "1"], ["--pictures", "20x20"]])
def test_sizes_that_cannot_be_measured_are_refused(bundle, wrong):
    with pytest.raises(SystemExit) as stop:
        main(["bench", str(bundle), *wrong])
    assert stop.value.code == 2
