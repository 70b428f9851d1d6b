"""A model as lm-eval calls it, on either engine.

A prompt that is longer than the model's context loses its beginning, as in lm-eval, and is counted. Answers are written
to a journal batch by batch, so that a task that was killed requests only the missing ones.

lm-eval is imported inside functions, since vLLM's environment need not have it.
"""

import contextlib
import dataclasses
import importlib.metadata
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from spin_core.data.templates.chat_template import ChatTemplate, Input
from spin_core.data.tokenizer import load_tokenizer
from spin_core.errors import ConfigError
from spin_core.inference import vllm_engine
from spin_core.models.files import check_safetensors, is_stacked, weights_of
from spin_core.models.loading import load_model
from spin_core.store import identity
from spin_core.store.evaluation_jobs import BenchmarkJob
from spin_core.store.journal import Journal, Row

_VLLM_BATCH = 1024
"""Requests that vLLM gets at a time; it batches them itself. A kill loses at most this many answers."""


class AnswerJournal:
    """A task's answers to single requests, in a journal.

    It is lm-eval's cache hook, which gets every answer. lm-eval's own cache looks requests up before they are cut to
    fit and counted, and writes single answers instead of whole batches. With whole batches in the journal, the
    remaining requests form the same batches as in a run without a restart, so their results are the same to the last
    bit.
    """

    def __init__(self, path: Path, report: Callable[[float], None]) -> None:
        """Read the journal.

        Args:
            path: The journal's file.
            report: Called after each batch is written, with the share of the task's requests that are answered. It may
                raise to stop the work.
        """
        self.journal, self.report = Journal(path), report
        self.known = {row["key"]: row["answer"] for row in self.journal.rows}
        self.unwritten: list[Row] = []
        self.requested = self.answered = 0

    def get(self, kind: str, request: Any) -> Any:
        """Return the answer to a request; None if there is none yet."""
        answer = self.known.get(identity.digest_of([kind, request]))
        return tuple(answer) if isinstance(answer, list) else answer

    def add_partial(self, kind: str, request: Any, answer: Any) -> None:
        """Take an answer of the current batch: lm-eval calls this."""
        # Of a request for text only the prompt is its key: an engine may change the settings next to it.
        prompt = request if kind == "loglikelihood" else request[0]
        self.unwritten.append({"key": identity.digest_of([kind, prompt]), "answer": answer})
        self.answered += 1

    def write_batch(self) -> None:
        """Write the answers of the batch that is complete."""
        for row in self.unwritten:
            self.journal.add(row)
        self.unwritten = []
        self.report(min(1.0, self.answered / self.requested) if self.requested else 0.0)


class FittingMixin:
    """Cuts requests to fit into a model's context, before lm-eval's class answers them. Comes before that class."""

    max_tokens: int
    """Most tokens of a prompt and its continuation together."""
    max_length: int
    max_gen_toks: int
    tok_encode: Any
    cache_hook: AnswerJournal

    def reset(self, answers: AnswerJournal) -> None:
        """Begin another task: its journal, and counts from 0."""
        self.cache_hook = answers
        self.asked = self.cut = 0
        self.longest: tuple[int, int] | None = None
        """The longest answer in tokens, and what the task allows, if that is more; None if answers are not cut."""

    def _loglikelihood_tokens(self, requests: Sequence[Any], *args: Any, **kwargs: Any) -> Any:
        fitting = []
        for text, context, continuation in requests:
            # lm-eval itself fails at a continuation that is longer than the model's context.
            kept = continuation[-(self.max_tokens - 1) :]
            before = context[-(self.max_tokens - len(kept)) :]
            self.cut += len(before) + len(kept) < len(context) + len(continuation)
            fitting.append((text, before, kept))
        known = [self.cache_hook.get("loglikelihood", text) for text, _, _ in fitting]
        ask = super()._loglikelihood_tokens  # type: ignore[misc]
        return self.answer(fitting, known, lambda rest: ask(rest, *args, **kwargs))

    def generate_until(self, requests: Sequence[Any], *args: Any, **kwargs: Any) -> Any:
        from lm_eval.models.utils import normalize_gen_kwargs

        fitting, known = [], []
        for request in requests:
            prompt, given = request.args
            settings = normalize_gen_kwargs(given, self.max_gen_toks)
            allowed = settings["max_gen_toks"]
            # lm-eval itself fails if the answer would leave no room for a prompt.
            longest = min(allowed, self.max_length // 2)
            if longest < allowed:
                self.longest = (longest, allowed)
                request = dataclasses.replace(request, arguments=(prompt, {**given, "max_gen_toks": longest}))
            self.cut += len(self.tok_encode(prompt)) > self.max_length - longest
            fitting.append(request)
            # With sampling, the same prompt may be requested several times for different answers.
            known.append(None if settings.get("do_sample") else self.cache_hook.get("generate_until", prompt))
        ask = super().generate_until  # type: ignore[misc]
        return self.answer(fitting, known, lambda rest: ask(rest, *args, **kwargs))

    def answer(self, requests: Sequence[Any], known: Sequence[Any], ask: Callable[[list[Any]], Any]) -> list[Any]:
        """Return all answers: the known ones (not None), and those of `ask` for the other requests."""
        rest = [request for request, answer in zip(requests, known, strict=True) if answer is None]
        self.asked += len(requests)
        self.cache_hook.requested += len(requests)
        self.cache_hook.answered += len(requests) - len(rest)
        new = iter(ask(rest) if rest else ())
        self.cache_hook.write_batch()
        return [next(new) if answer is None else answer for answer in known]

    def _model_call(self, *args: Any, **kwargs: Any) -> Any:
        self.cache_hook.write_batch()  # the previous batch is complete
        return super()._model_call(*args, **kwargs)  # type: ignore[misc]

    def _model_generate(self, *args: Any, **kwargs: Any) -> Any:
        self.cache_hook.write_batch()
        return super()._model_generate(*args, **kwargs)  # type: ignore[misc]

    def fit(self) -> dict[str, Any]:
        """Return how many requests there were and were cut since the last `reset`: the content of `fit.json`."""
        return {"asked": self.asked, "cut": self.cut, "context": int(self.max_length), "longest": self.longest}


def fit_notes(task: str, fits: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return notes on what was cut in a task, or in all tasks of a group, from the `fit` of each."""
    asked, cut = (sum(fit[name] for fit in fits) for name in ("asked", "cut"))
    notes = []
    if cut:
        notes.append(
            f"{task}: {cut:,} of {asked:,} prompts are longer than the model's context of "
            f"{fits[0]['context']:,} tokens, and lost their beginning"
        )
    shortened = sorted({tuple(fit["longest"]) for fit in fits if fit["longest"]})
    return notes + [f"{task}: answers have room for {room:,} tokens, not {allowed:,}" for room, allowed in shortened]


def load(job: BenchmarkJob) -> Any:
    """Load the model for lm-eval, on the configured engine. Raises `SpinError` if it cannot be loaded."""
    tokenizer = load_tokenizer(job.player.path, job.model)
    if job.config.apply_chat_template and not tokenizer.chat_template:
        raise ConfigError(
            "evaluate.lm_eval.apply_chat_template is on, but the tokenizer has no chat template: turn it off"
        )
    if uses_chat_template(job):
        # lm-eval runs the template in this process, without limits. One that never ends is found out here.
        ChatTemplate.of(tokenizer, {}).render([Input([{"role": "user", "content": "?"}], opens_answer=True)])
    return _load_on_vllm(job) if job.config.engine == "vllm" else _load_on_transformers(job)


def uses_chat_template(job: BenchmarkJob) -> bool:
    """Return whether prompts are wrapped in the chat template: as configured, or if the model has one."""
    configured = job.config.apply_chat_template
    return bool(load_tokenizer(job.player.path, job.model).chat_template) if configured is None else configured


def _load_on_transformers(job: BenchmarkJob) -> Any:
    """Load the model as lm-eval's `hf`."""
    from lm_eval.models.huggingface import HFLM

    class Harness(FittingMixin, HFLM):  # type: ignore[misc]
        pass

    tokenizer = load_tokenizer(job.player.path, job.model)
    harness = Harness(
        pretrained=load_model(job.player.path, job.model),
        tokenizer=tokenizer,
        batch_size=job.config.speed.batch_size,
    )
    harness.max_tokens = int(harness.max_length) + 1  # the last token is predicted, but never an input
    return harness


def _import_vllm_class() -> Any:
    """Import lm-eval's class for vLLM.

    It looks up the version of a package named `vllm`, and the CPU build is installed under another name.
    """
    vllm, version = vllm_engine.import_vllm(), importlib.metadata.version
    with mock.patch("importlib.metadata.version", lambda name: vllm.__version__ if name == "vllm" else version(name)):
        from lm_eval.models.vllm_causallms import VLLM
    return VLLM


def _load_on_vllm(job: BenchmarkJob) -> Any:
    """Load the model as lm-eval's `vllm`. It gets many requests at once, and vLLM batches what fits into its memory."""
    base: Any = _import_vllm_class()

    class Harness(FittingMixin, base):  # type: ignore[misc]
        pass

    folder = job.player.path
    settings = vllm_engine.vllm_settings(job.model, job.config.vllm, on_cpu=vllm_engine.check_device(job.model))
    with contextlib.ExitStack() as stack:
        weights = weights_of(folder)
        if is_stacked(folder):
            weights = stack.enter_context(vllm_engine.merged_weights(folder, job.model))
        check_safetensors(weights)
        try:
            harness = Harness(pretrained=str(weights), tokenizer=str(folder), batch_size=_VLLM_BATCH, **settings)
        except (ValueError, RuntimeError, OSError, MemoryError, AssertionError, LookupError, ImportError) as error:
            raise vllm_engine.start_error(error, folder) from error
    harness.max_tokens = int(harness.max_length) - 1  # vLLM generates at least one token after each prompt
    return harness
