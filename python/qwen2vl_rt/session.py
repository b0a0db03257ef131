"""Session: a loaded bundle that answers questions about pictures and videos."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from qwen2vl_rt import _core
from qwen2vl_rt.answer import Answer
from qwen2vl_rt.answer_builder import build_answer, cancelled_answer
from qwen2vl_rt.backends.backend import Backend
from qwen2vl_rt.backends.select import select_backend
from qwen2vl_rt.bundle import Bundle
from qwen2vl_rt.calls import CancelledError, call_token, under_way
from qwen2vl_rt.errors import BackendError, InputError, MemoryLimitError, PromptTooLongError, Qwen2VLError
from qwen2vl_rt.loaded_model import LoadedModel, OnText
from qwen2vl_rt.options import GenerationOptions, check_session_options, split_options
from qwen2vl_rt.plan import MemoryPlan
from qwen2vl_rt.processing.processor import PROMPT_KEYWORDS, PreparedPrompt, Processor, TokenizedPrompt
from qwen2vl_rt.refusal import check_plan
from qwen2vl_rt.session_limits import PREFILL_CHUNK, AskedLimits, SessionLimits
from qwen2vl_rt.stream import AnswerStream

# Seconds that the interpreter's end waits for a prompt's preparation, which may hang in a caller's own file.
_PREPARATION_PATIENCE = 10.0

# Models closed in a forked child. They are never freed there: ONNX Runtime would wait for threads that only
# the parent has.
_inherited: list[LoadedModel] = []


class Session:
    """A loaded bundle that answers questions about pictures and videos.

        with qwen2vl_rt.Session("bundle") as session:
            print(session.generate("What is on the desk?", images=["desk.jpg"]).text)

    It may be used from several threads: pictures are prepared side by side, generation queues in order of
    arrival. A picture or open file that several calls were given is read by one of them at a time. When the
    interpreter ends, calls of daemon threads are cancelled and waited for.

    Consecutive prompts that begin alike (a conversation that goes on) reuse the KV cache; the answer is the
    one that a fresh session would give. The same prompt again gives the same tokens and log-probabilities,
    to the last bit, on a CPU, in quantized bundles and with one thread; several threads part float32's
    products by their size, and its log-probabilities can differ by some 1e-6. What changes the order of
    additions (that, a batch, an earlier answer in the prompt, prompt_lookup, prefill_chunk below 9) leaves
    float32's greedy tokens as they are, and in quantized bundles a greedy answer can turn where its two best
    tokens are about as good (docs/prompt-lookup.md).

    Args:
        bundle: folder that `qwen2vl-export` wrote.
        backend: `"auto"`, `"cpu"`, `"cuda"` or `"tensorrt"` (on engines that `qwen2vl build` made).
        max_length: positions a cache row holds (prompt, visual tokens, answer); 8192 if None. With
            tensorrt it is what the engines were built for, and this at most that.
        max_batch: answers that `generate_batch` generates side by side.
        memory_limit: bytes the session may use; the machine's available memory if None.
        threads: threads of one operator and of picture preparation; 0 takes all cores. Pictures of all the
            process's sessions are prepared with as many as the newest session says.
        max_pixels: the largest picture or frame after resizing, in pixels; the bundle's own setting if None.
        prefill_chunk: prompt tokens computed in one step: fewer take less memory, the answer stays the same
            (in int8 and int4 and with fewer than 9: as likely).

    Raises:
        InputError: a number that is none, or out of range.
        BundleError: the bundle is incomplete or damaged.
        BackendError: the backend is unknown or not installed, or the bundle has no TensorRT engines for it.
        MemoryLimitError: the plan exceeds the limit; nothing was loaded. Where TensorRT engines exceed it,
            `"auto"` goes on to the next backend.
    """

    def __init__(
        self,
        bundle: str | Path,
        *,
        backend: str = "auto",
        max_length: int | None = None,
        max_batch: int = 1,
        memory_limit: int | None = None,
        threads: int = 0,
        max_pixels: int | None = None,
        prefill_chunk: int = PREFILL_CHUNK,
    ) -> None:
        asked = AskedLimits(max_length, max_batch, max_pixels, prefill_chunk)
        numbers = check_session_options(memory_limit=memory_limit, threads=threads)
        memory_limit, threads = numbers["memory_limit"], numbers["threads"]
        self._bundle = Bundle.open(bundle)
        limits = asked.for_bundle(self._bundle)
        self._backend = select_backend(backend, self._bundle, asked)
        refused = self._refusal(backend, limits, memory_limit, threads)
        if refused:  # outside of the handler: a traceback would keep the engines' memory for the next backend
            self._backend = select_backend(backend, self._bundle, asked, refused=refused)
            try:
                self._load(limits, memory_limit, threads)
            except MemoryLimitError as error:
                raise MemoryLimitError(f"{error}\n({self._backend.name}: {self._backend.reason})") from error
        self._turns = _core.FairLock()
        self._process = os.getpid()

    def _refusal(self, backend: str, limits: SessionLimits, memory_limit: int | None, threads: int) -> str:
        """Load the chosen backend. Why `auto` must take another than tensorrt: engines that don't open here,
        don't fit, or whose numbers are wrong; "" if it is loaded.
        """
        try:
            self._load(limits, memory_limit, threads)
        except (BackendError, MemoryLimitError) as error:
            if backend != "auto" or self._backend.name != "tensorrt":
                raise
            return str(error).splitlines()[0]
        return ""

    def _load(self, limits: SessionLimits, memory_limit: int | None, threads: int) -> None:
        """Plan, then load, the chosen backend."""
        with under_way(_core.CancelToken()):
            self._plan = self._backend.plan(self._bundle, limits, memory_limit)
            check_plan(self._bundle, self._backend, self._plan)
            limits = self._plan.limits
            _core.set_threads(threads)
            self._processor = Processor(self._bundle.path, self._bundle.geometry, limits.max_pixels)
            self._model: LoadedModel | None = LoadedModel(
                self._bundle, limits, self._processor.tokenizer, threads, self._backend
            )
            self._processor.device_frames = self._model.device_frames

    # --- answers ------------------------------------------------------------------------------------------

    def generate(self, prompt: Any, **keywords: Any) -> Answer:
        """Answer one prompt.

        Args:
            prompt: the question as a string, with `images=` and `videos=` beside it; or a list of messages in
                the transformers/OpenAI content-list form, which carry their own pictures.
            **keywords: what `Processor.tokenize` takes (images, videos, system, add_vision_id, chat_template,
                min_pixels, max_pixels, resized_height, resized_width, fps, nframes, ...), the fields of
                `GenerationOptions` (max_new_tokens, temperature, seed, stop, ...), and `cancel`, a
                `CancelToken` that another thread may set.

        Returns:
            The answer; after a cancel the part so far, with finish_reason `"cancelled"`. A cancel is looked
            at between pictures and frames, during downloads, in the queue, between calls of the vision tower,
            chunks of the prompt and tokens.

        Raises:
            InputError: a prompt, picture, video or option that cannot be used.
            BackendError: the engine failed.
            MemoryLimitError: a GPU has no room for the pictures.
            Qwen2VLError: no token can be chosen, the logits being no numbers; the session is closed; the
                interpreter is ending.

            The session stays usable after each of them, unless it is closed.
        """
        cancel = call_token(keywords.pop("cancel", None))
        options, prompt_keywords = split_options(keywords, PROMPT_KEYWORDS)
        question = self._tokenize(prompt, options, prompt_keywords, cancel)
        prepare = partial(self._load_visuals, question, options, cancel)
        return self._answer([prepare], [options], None, cancel)[0]

    def stream(self, prompt: Any, **keywords: Any) -> AnswerStream:
        """Answer one prompt piece by piece; arguments and errors of `generate`.

            with session.stream("Describe it.", images=["desk.jpg"]) as stream:
                for piece in stream:
                    print(piece, end="", flush=True)
                print(stream.answer.timings)

        A piece never ends inside a UTF-8 character or inside what may become a stop string. What was passed
        may change as soon as this returns: arrays, PIL images and open files have been read by then; paths
        and addresses are read by the stream. Closing the stream sets `cancel`, where one was given.
        """
        cancel = call_token(keywords.pop("cancel", None))
        options, prompt_keywords = split_options(keywords, PROMPT_KEYWORDS)
        try:
            question = self._tokenize(prompt, options, prompt_keywords, cancel)
            prepare = partial(self._load_visuals, question, options, cancel)
            if not question.named_only:
                prepared = prepare()

                def prepare() -> PreparedPrompt:
                    return prepared

        except (Qwen2VLError, CancelledError) as error:
            failure = [error]  # told where the text is read, as what fails later

            def prepare() -> PreparedPrompt:
                raise failure.pop()  # a kept one would hold its traceback, hence the pictures, hence itself

        def produce(on_piece: Callable[[str], None], cancel: _core.CancelToken) -> Answer:
            return self._answer([prepare], [options], lambda _row, piece: on_piece(piece), cancel)[0]

        return AnswerStream(produce, cancel)

    def generate_batch(self, prompts: Iterable[Any], **keywords: Any) -> list[Answer]:
        """Answer several prompts, `max_batch` of them side by side; each as `generate` would.

        All options and texts are checked before anything runs. Pictures and videos are loaded a group of
        `max_batch` at a time, so that their number takes no memory; one that cannot be used ends the call,
        and the error's `answers` are those of the groups before.

        Args:
            prompts: strings, message lists, or dicts of `generate`'s arguments
                (`{"prompt": ..., "images": ...}`).
            **keywords: arguments for all of them; a dict's own come first. `cancel` is for all.

        Raises:
            InputError: as `generate`, naming the prompt's index.
        """
        cancel = call_token(keywords.pop("cancel", None))
        if isinstance(prompts, str | bytes | Mapping) or not isinstance(prompts, Iterable):
            raise InputError(
                f"prompts is {prompts!r:.80}: give a list of them; generate() answers a single one."
            )
        questions, options = [], []
        for index, item in enumerate(prompts):
            own = dict(item) if isinstance(item, Mapping) else {"prompt": item}
            if "prompt" not in own:
                raise InputError(f"prompts[{index}] has no 'prompt': it has {sorted(map(str, own))}.")
            prompt = own.pop("prompt")
            with _naming(index):
                call_options, prompt_keywords = split_options({**keywords, **own}, PROMPT_KEYWORDS)
                questions.append(self._tokenize(prompt, call_options, prompt_keywords, cancel))
            options.append(call_options)
        answers: list[Answer] = []

        def prepare(index: int) -> PreparedPrompt:
            with _naming(index, answers):
                return self._load_visuals(questions[index], options[index], cancel)

        prepares = [partial(prepare, index) for index in range(len(questions))]
        step = self._plan.limits.max_batch
        for start in range(0, len(questions), step):
            group = slice(start, start + step)
            answers += self._answer(prepares[group], options[group], None, cancel)
        return answers

    # --- memory, life --------------------------------------------------------------------------------------

    def plan(self) -> MemoryPlan:
        """The memory plan of this session by part, beside a measurement of now.

        `measured` is the process's resident memory with the cpu backend; with cuda and tensorrt the GPU's
        memory in use, by whomever.
        """
        return self._plan.with_measured(self._backend.memory_in_use())

    @property
    def backend(self) -> Backend:
        """The engine in use, and why it was chosen."""
        return self._backend

    @property
    def bundle(self) -> Bundle:
        """The opened bundle."""
        return self._bundle

    def close(self) -> None:
        """Free the engine, the cache and the mapped weights, after the calls in the queue. Idempotent."""
        with self._turns.turn():
            if self._model is not None:
                self._model.close()
                if os.getpid() != self._process:
                    _inherited.append(self._model)
            self._model = None

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- the way of a request ------------------------------------------------------------------------------

    def _tokenize(
        self, prompt: Any, options: GenerationOptions, keywords: dict[str, Any], cancel: _core.CancelToken
    ) -> TokenizedPrompt:
        self._check_open()
        room = max(0, self._plan.limits.max_length - options.max_new_tokens)
        with under_way(cancel, _PREPARATION_PATIENCE), self._naming_limits(options):
            return self._processor.tokenize(prompt, max_tokens=room, **keywords)

    def _load_visuals(
        self, question: TokenizedPrompt, options: GenerationOptions, cancel: _core.CancelToken
    ) -> PreparedPrompt:
        self._check_open()
        with under_way(cancel, _PREPARATION_PATIENCE), self._naming_limits(options):
            prepared = self._processor.load(question, cancel)
        self._check_pixels(prepared)
        return prepared

    def _answer(
        self,
        prepares: Sequence[Callable[[], PreparedPrompt]],
        options: Sequence[GenerationOptions],
        on_text: OnText | None,
        cancel: _core.CancelToken,
    ) -> list[Answer]:
        """Prepare up to max_batch prompts; vision, prefill and decode in this call's turn."""
        prompts: list[PreparedPrompt | None] = [None] * len(prepares)
        try:
            for index, prepare in enumerate(prepares):
                prompts[index] = prepare()
            with under_way(cancel), self._turns.turn(cancel) as came:
                if not came:
                    raise CancelledError
                self._check_open()
                results, vision_seconds = self._model.generate(prompts, options, on_text, cancel)
        except CancelledError:
            return [cancelled_answer(prompt, self._processor) for prompt in prompts]
        stop_ids = self._bundle.geometry.special_ids.eos
        return [
            build_answer(prompt, result, self._processor, stop_ids, vision_seconds)
            for prompt, result in zip(prompts, results, strict=True)
        ]

    def _check_open(self) -> None:
        if self._model is None:
            raise Qwen2VLError("This session is closed: make a new one.")

    @contextlib.contextmanager
    def _naming_limits(self, options: GenerationOptions) -> Iterator[None]:
        try:
            yield
        except PromptTooLongError as error:
            raise PromptTooLongError(
                f"{error}. This session holds max_length={self._plan.limits.max_length} tokens, of which "
                f"max_new_tokens={options.max_new_tokens} are kept for the answer."
            ) from error

    def _check_pixels(self, prompt: PreparedPrompt) -> None:
        limit = self._plan.limits.max_pixels
        for visual in prompt.visuals:
            pixels = math.prod(visual.grid_thw[1:]) * self._bundle.geometry.vision.patch_size**2
            if pixels > limit:
                raise InputError(
                    f"The {visual.kind} would be resized to {pixels} pixels, and this session's memory is "
                    f"planned for {limit}: ask for a smaller one (max_pixels, min_pixels, resized_height and "
                    f"resized_width decide) or open the session with max_pixels={pixels}."
                )


@contextlib.contextmanager
def _naming(index: int, answers: Sequence[Answer] = ()) -> Iterator[None]:
    """Errors say which prompt of a batch is meant, and carry the answers before it."""
    try:
        yield
    except InputError as error:
        named = type(error)(f"prompts[{index}]: {error}")
        named.answers = tuple(answers)
        raise named from error
