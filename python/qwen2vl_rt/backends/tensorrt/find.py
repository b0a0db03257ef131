"""Which of a bundle's engines this machine can run, for what a session asks."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from qwen2vl_rt.backends.tensorrt import ATTENTION_FORMS, GRAPHS
from qwen2vl_rt.backends.tensorrt.description import EngineDescription, EngineKey
from qwen2vl_rt.backends.tensorrt.edition import MODULES, Edition, find_edition
from qwen2vl_rt.backends.tensorrt.engines import FOLDER, RECIPE_VERSION, EngineFile
from qwen2vl_rt.backends.tensorrt.profiles import SHORTEST
from qwen2vl_rt.backends.tensorrt.target import PORTABLE, PORTABLE_SINCE, Target
from qwen2vl_rt.bundle import PREFILL_GRAPH, Bundle
from qwen2vl_rt.errors import BackendError
from qwen2vl_rt.graph_format import INPUTS_EMBEDS, PATCHES, cached_keys
from qwen2vl_rt.session_limits import AskedLimits, SessionLimits


@dataclass(frozen=True)
class EngineSet:
    """The engines of one bundle that go together: same target, edition, arithmetic."""

    edition: Edition
    files: dict[str, EngineFile]
    """By graph: "vision", "decoder", and "prefill" where the bundle has it."""
    descriptions: dict[str, EngineDescription]
    patch_size: int

    @staticmethod
    def of(bundle: Bundle, edition: Edition, files: dict[str, EngineFile]) -> EngineSet:
        """A set of these files."""
        described = {graph: file.describe() for graph, file in files.items()}
        return EngineSet(edition, files, described, bundle.geometry.vision.patch_size)

    @property
    def decoder(self) -> EngineKey:
        """What the decoder was made from."""
        return self.descriptions["decoder"].key

    @property
    def attention(self) -> str:
        """How the decoder's attention knows its positions: see `lowering.tensorrt.Form`."""
        return self.decoder.form.attention

    @property
    def limits(self) -> SessionLimits:
        """The most that a session on these engines can have; its max_length is exactly this."""
        prompt = self.descriptions.get("prefill", self.descriptions["decoder"]).key
        rows, _, capacity, _ = self.decoder.profile("decode").largest[cached_keys(0).past]
        _, patches, _ = self.descriptions["vision"].key.profile("picture").largest[PATCHES]
        _, chunk, _ = prompt.profile("prefill").largest[INPUTS_EMBEDS]
        return SessionLimits(
            max_length=capacity,
            max_batch=rows,
            max_pixels=patches * self.patch_size**2,
            prefill_chunk=chunk,
        )

    def session_limits(self, limits: SessionLimits) -> SessionLimits:
        """The limits of a session that would have `limits` elsewhere."""
        most = self.limits
        return SessionLimits(
            max_length=most.max_length,
            max_batch=limits.max_batch,
            max_pixels=min(limits.max_pixels, most.max_pixels),
            prefill_chunk=min(limits.prefill_chunk, most.prefill_chunk),
        )


def build_command(bundle: Bundle, asked: AskedLimits | None = None) -> str:
    """What to run for engines of this machine's GPU that hold what is asked."""
    asked = asked or AskedLimits()
    length = None if asked.max_length is None else max(asked.max_length, SHORTEST)
    options = {"--max-length": length, "--max-pixels": asked.max_pixels}
    options |= {"--max-batch": asked.max_batch} if asked.max_batch > 1 else {}
    arguments = [f" {name} {value}" for name, value in options.items() if value is not None]
    return f"qwen2vl build {shlex.quote(str(bundle.path))} --this{''.join(arguments)}"


def find_engines(
    bundle: Bundle,
    here: tuple[int, int],
    asked: AskedLimits,
    editions: Callable[[str], Edition] = find_edition,
    folder: Path | None = None,
) -> list[EngineSet]:
    """The bundle's engines that run on the GPU here and hold what is asked: the best, then others with
    the same limits.

    Args:
        bundle: the model.
        here: compute capability of the GPU.
        asked: what the session needs.
        editions: gives an installed TensorRT by its module's name, or raises BackendError.
        folder: where they are; `engines` in the bundle if None.

    Raises:
        BackendError: there are none: why, and how to build them.
    """
    found: dict[str, list[tuple[EngineFile, EngineDescription]]] = {graph: [] for graph in GRAPHS}
    reasons: list[str] = []
    for path in sorted((folder or bundle.path / FOLDER).glob("*.engine")):
        file = EngineFile(path)
        try:
            description = file.describe()
            edition = editions(description.key.edition)
        except BackendError as error:
            reasons.append(str(error))
            continue
        if reason := _why_not(description.key, bundle, edition, here):
            reasons.append(f"{path.name} is {reason}")
        else:
            found[description.graph].append((file, description))
    # Before any other comes the vision engine that holds the largest picture, and no more than it must.
    wanted = asked.for_bundle(bundle).max_pixels // bundle.geometry.vision.patch_size**2
    found["vision"].sort(key=lambda vision: _fit(vision[1], wanted))
    sets = []
    for decoder in found["decoder"]:
        parts = {"decoder": decoder}
        for graph in ("prefill", "vision") if PREFILL_GRAPH in bundle.files else ("vision",):
            parts[graph] = next((other for other in found[graph] if _go_together(decoder[1], other[1])), None)
        if None in parts.values():
            reasons.append(f"{decoder[0].path.name} has no {_missing(parts)} beside it")
            continue
        edition = editions(decoder[1].key.edition)
        chosen = EngineSet.of(bundle, edition, {graph: file for graph, (file, _) in parts.items()})
        if reason := _too_small(chosen.limits, asked):
            reasons.append(f"{decoder[0].path.name} is {reason}")
        else:
            sets.append(chosen)
    if not sets:
        why = f" ({'; '.join(dict.fromkeys(reasons))})" if reasons else ""
        raise BackendError(
            f"{bundle.path} has no TensorRT engines for this session{why}. Build them: "
            f"{build_command(bundle, asked)}"
        )

    # Made for this very GPU before made for many; the form that `choose_attention` prefers; the smallest
    # cache that will do.
    def rank(one: EngineSet) -> tuple[bool, int, int]:
        form = ATTENTION_FORMS.index(one.attention)
        return one.decoder.target == PORTABLE, form, one.limits.max_length

    best = min(sets, key=rank)
    return sorted((one for one in sets if one.limits == best.limits), key=rank)


def _why_not(key: EngineKey, bundle: Bundle, edition: Edition, here: tuple[int, int]) -> str | None:
    """Why an engine is not for this bundle, TensorRT or GPU; None if it is."""
    hashes = {name: entry.sha256 for name, entry in bundle.files.items()}
    if any(hashes.get(name) != sha256 for name, sha256 in key.sources.items()):
        return "made from another export of this bundle"
    if key.recipe != RECIPE_VERSION:
        return "built by another version of this package"
    if key.version != edition.version:
        return f"made by {MODULES[key.edition]} {key.version}, and {edition.version} is installed"
    this = Target(here, is_this=True).name
    if key.target != this and not (key.target == PORTABLE and here >= PORTABLE_SINCE):
        return f"for {key.target}, and the GPU here is {this}"
    return None


def _go_together(decoder: EngineDescription, other: EngineDescription) -> bool:
    def common(key: EngineKey) -> tuple:
        return key.edition, key.target, key.form.number_format, key.form.fp8

    ours, theirs = decoder.key, other.key
    if common(ours) != common(theirs):
        return False
    if other.graph == "vision":
        return True
    keys = cached_keys(0).past
    caches = ours.profile("decode").largest[keys], theirs.profile("prefill").largest[keys]
    return caches[0][1:] == caches[1][1:] and ours.form.attention == theirs.form.attention


def _fit(vision: EngineDescription, wanted: int) -> tuple[int, int]:
    """How many of the patches that are wanted a vision engine lacks, and how many it takes."""
    _, patches, _ = vision.key.profile("picture").largest[PATCHES]
    return max(wanted - patches, 0), patches


def _missing(parts: dict[str, object]) -> str:
    return " and no ".join(f"{graph} engine" for graph, part in parts.items() if part is None)


def _too_small(most: SessionLimits, asked: AskedLimits) -> str | None:
    for name in ("max_length", "max_batch", "max_pixels"):
        wanted, has = getattr(asked, name), getattr(most, name)
        if wanted is not None and wanted > has:
            return f"built for {name}={has}, and {wanted} is asked for"
    return None
