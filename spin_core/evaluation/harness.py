"""lm-eval's view of a model, on either engine. Heavy imports wait until the engine is chosen: each has an environment.

What is longer than the model's context loses its beginning, as in lm-eval, and is counted. Answers are kept as they
come, batch by batch, so that a task that was killed asks for the rest alone.
"""

import contextlib
import dataclasses
import importlib.metadata
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from spin_core.data.tokenizer import load_tokenizer
from spin_core.errors import ConfigError
from spin_core.inference import vllm_engine
from spin_core.models.files import check_safetensors, is_stacked, weights_of
from spin_core.models.loading import load_model
from spin_core.store import identity
from spin_core.store.jobs import BenchmarkJob
from spin_core.store.journal import Journal, Row

VLLM_BATCH = 1024
"""Requests that vLLM has at a time, which batches them itself. So many are lost by a kill at most."""


class Answers:
    """A task's answers to single requests, in a journal.

    It is lm-eval's cache hook, which is told of every answer. lm-eval's own cache would look requests up before they
    are made to fit and counted, and knows nothing of whole batches: here those that are left are as they would have
    been, and so is what comes of them, to the last bit.
    """

    def __init__(self, path: Path, tell: Callable[[float], None]) -> None:
        """`tell` is told what share of the task is answered, where all of that is kept: it may stop the work."""
        self.journal, self.tell = Journal(path), tell
        self.known = {row["key"]: row["answer"] for row in self.journal.rows}
        self.fresh: list[Row] = []
        self.wanted = self.answered = 0

    def get(self, kind: str, request: Any) -> Any:
        """The answer to a request; None if there is none yet."""
        answer = self.known.get(identity.digest_of([kind, request]))
        return tuple(answer) if isinstance(answer, list) else answer

    def add_partial(self, kind: str, request: Any, answer: Any) -> None:
        """Note an answer of the batch that is being read: lm-eval calls this."""
        asked = request if kind == "loglikelihood" else request[0]  # what comes with a prompt, an engine may rewrite
        self.fresh.append({"key": identity.digest_of([kind, asked]), "answer": answer})
        self.answered += 1

    def keep(self) -> None:
        """Write down the batch that has been read."""
        for row in self.fresh:
            self.journal.add(row)
        self.fresh = []
        self.tell(min(1.0, self.answered / self.wanted) if self.wanted else 0.0)


class Fitting:
    """What makes requests fit into a model's context, before the class of lm-eval's that answers them."""

    room: int
    """Most tokens of a prompt and what follows it."""
    max_length: int
    max_gen_toks: int
    tok_encode: Any
    cache_hook: Answers

    def reset(self, answers: Answers) -> None:
        """Count from 0 on, for another task."""
        self.cache_hook = answers
        self.asked = self.cut = 0
        self.longest: tuple[int, int] | None = None
        """Tokens of an answer that there is room for, and that the task would allow, where those are more."""

    def _loglikelihood_tokens(self, requests: Sequence[Any], *args: Any, **kwargs: Any) -> Any:
        fitting = []
        for text, context, continuation in requests:
            # lm-eval itself refuses a continuation that is longer than the model's context.
            kept = continuation[-(self.room - 1) :]
            before = context[-(self.room - len(kept)) :]
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
            # lm-eval itself refuses to answer where that would leave no room for a prompt.
            longest = min(allowed, self.max_length // 2)
            if longest < allowed:
                self.longest = (longest, allowed)
                request = dataclasses.replace(request, arguments=(prompt, {**given, "max_gen_toks": longest}))
            self.cut += len(self.tok_encode(prompt)) > self.max_length - longest
            fitting.append(request)
            # The same prompt may be asked several times for as many samples.
            known.append(None if settings.get("do_sample") else self.cache_hook.get("generate_until", prompt))
        ask = super().generate_until  # type: ignore[misc]
        return self.answer(fitting, known, lambda rest: ask(rest, *args, **kwargs))

    def answer(self, requests: Sequence[Any], known: Sequence[Any], ask: Callable[[list[Any]], Any]) -> list[Any]:
        """All answers, of which some are known, and the others are asked for."""
        rest = [request for request, answer in zip(requests, known, strict=True) if answer is None]
        self.asked += len(requests)
        self.cache_hook.wanted += len(requests)
        self.cache_hook.answered += len(requests) - len(rest)
        fresh = iter(ask(rest) if rest else ())
        self.cache_hook.keep()
        return [next(fresh) if answer is None else answer for answer in known]

    def _model_call(self, *args: Any, **kwargs: Any) -> Any:
        self.cache_hook.keep()  # the batch before has been read
        return super()._model_call(*args, **kwargs)  # type: ignore[misc]

    def _model_generate(self, *args: Any, **kwargs: Any) -> Any:
        self.cache_hook.keep()
        return super()._model_generate(*args, **kwargs)  # type: ignore[misc]

    def fit(self) -> dict[str, Any]:
        """What did and did not fit since the last `reset`."""
        return {"asked": self.asked, "cut": self.cut, "context": int(self.max_length), "longest": self.longest}


def notes_of(task: str, fits: Sequence[Mapping[str, Any]]) -> list[str]:
    """What did not fit in a task, or in all tasks of a group, for people."""
    asked, cut = (sum(fit[name] for fit in fits) for name in ("asked", "cut"))
    found = []
    if cut:
        found.append(
            f"{task}: {cut:,} of {asked:,} prompts are longer than the model's context of "
            f"{fits[0]['context']:,} tokens, and lost their beginning"
        )
    shortened = sorted({tuple(fit["longest"]) for fit in fits if fit["longest"]})
    return found + [f"{task}: answers have room for {room:,} tokens, not {wanted:,}" for room, wanted in shortened]


def load(job: BenchmarkJob) -> Any:
    """The model as lm-eval wants it. `SpinError` says in one line why it cannot be."""
    if job.config.apply_chat_template and not load_tokenizer(job.player.path, job.model).chat_template:
        raise ConfigError(
            "evaluate.lm_eval.apply_chat_template is on, but the tokenizer has no chat template: turn it off"
        )
    return on_vllm(job) if job.config.engine == "vllm" else on_transformers(job)


def has_template(job: BenchmarkJob) -> bool:
    """Whether requests are to be wrapped in the model's chat template, where that is up to the model."""
    wanted = job.config.apply_chat_template
    return bool(load_tokenizer(job.player.path, job.model).chat_template) if wanted is None else wanted


def on_transformers(job: BenchmarkJob) -> Any:
    """lm-eval's `hf` model."""
    from lm_eval.models.huggingface import HFLM

    class Harness(Fitting, HFLM):  # type: ignore[misc]
        pass

    tokenizer = load_tokenizer(job.player.path, job.model)
    harness = Harness(
        pretrained=load_model(job.player.path, job.model),
        tokenizer=tokenizer,
        batch_size=job.config.speed.batch_size,
    )
    harness.room = int(harness.max_length) + 1  # the last token is asked for, and never read
    return harness


def lm_evals_vllm() -> Any:
    """lm-eval's class for vLLM, whose version it asks for by that name; the CPU build is installed under another."""
    vllm, version = vllm_engine.import_vllm(), importlib.metadata.version
    with mock.patch("importlib.metadata.version", lambda name: vllm.__version__ if name == "vllm" else version(name)):
        from lm_eval.models.vllm_causallms import VLLM
    return VLLM


def on_vllm(job: BenchmarkJob) -> Any:
    """lm-eval's `vllm` model. It asks for many at once, and vLLM batches by what it has room for."""
    base: Any = lm_evals_vllm()

    class Harness(Fitting, base):  # type: ignore[misc]
        pass

    folder = job.player.path
    settings = vllm_engine.settings_of(job.model, job.config.vllm, on_cpu=vllm_engine.check_device(job.model))
    with contextlib.ExitStack() as while_loading:
        weights = weights_of(folder)
        if is_stacked(folder):
            weights = while_loading.enter_context(vllm_engine.merged(folder, job.model))
        check_safetensors(weights)
        try:
            harness = Harness(pretrained=str(weights), tokenizer=str(folder), batch_size=VLLM_BATCH, **settings)
        except (ValueError, RuntimeError, OSError, MemoryError, AssertionError, LookupError, ImportError) as error:
            raise vllm_engine.start_error(error, folder) from error
    harness.room = int(harness.max_length) - 1  # vLLM answers each prompt with a token at least
    return harness
