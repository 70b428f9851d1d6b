"""A model version's answers to MT-Bench's questions.

Answers are kept in a folder that all lineages share, so that another judge reads the same answers, and a run that was
killed continues. An answer that is sampled after a restart shares its batch with fewer others, which may change the
last bits of a logit.
"""

import dataclasses
import gc
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from spin_core.config.base import at_iteration
from spin_core.data.chat import Message, Renderer
from spin_core.data.seeds import seed_of
from spin_core.data.templates.responses import decode_responses
from spin_core.data.tokenizer import load_tokenizer, model_ends
from spin_core.evaluation.mt_bench.questions import HUMAN, Answers, Question, TurnKey
from spin_core.inference.answering import answer_requests
from spin_core.inference.engine import Answer, Engine, Request
from spin_core.inference.factory import make_engine
from spin_core.inference.sampling import Sampling
from spin_core.runtime.progress import Progress
from spin_core.store import identity
from spin_core.store.evaluation_jobs import MtBenchJob
from spin_core.store.journal import Journal

TEMPERATURES = {
    "writing": 0.7, "roleplay": 0.7, "extraction": 0.0, "math": 0.0, "coding": 0.0, "reasoning": 0.0, "stem": 0.1,
    "humanities": 0.1,
}  # fmt: skip
"""The sampling temperature that MT-Bench sets for each category."""

_OTHER_TEMPERATURE = 0.7


def answers_folder(job: MtBenchJob) -> Path:
    """Return the folder of this model's answers under these sampling settings. It does not depend on the judge."""
    settings = {
        "model": job.player.digest,
        "dtype": job.model.dtype,
        "chat": job.chat.model_dump(mode="json"),
        "generate": identity.identity_of(at_iteration(job.generate, job.player.t)),
        "max_new_tokens": job.config.max_new_tokens,
        "seed": job.seed,
    }
    return job.speed.answers / identity.digest_of(settings)[:16]


class Answerer:
    """A model version that answers questions. It loads the weights only if an answer is missing."""

    def __init__(self, job: MtBenchJob, journal: Journal, questions: Sequence[Question]) -> None:
        """Take the answers to these questions from the journal; new ones are added to it."""
        self.job, self.journal, self.questions = job, journal, questions
        keys = {question.key for question in questions}
        self.rows: dict[TurnKey, dict[str, Any]] = {
            (row["id"], row["turn"]): row for row in journal.rows if row["key"] in keys
        }
        """The rows of `answers.parquet`, by question and turn."""

    def answer_all(self, progress: Progress) -> None:
        """Sample all missing answers: all first turns, then all second turns, whose prompts contain the first."""
        progress.start(sum(len(question.turns) for question in self.questions), "answer")
        progress.report(len(self.rows))
        if not any(self._missing(turn) for turn in (1, 2)):
            return
        job = self.job
        ends = self._renderer.ends
        engine = make_engine(job.player.path, job.model, ends.ids, job.generate, job.player.t, ends.strings)
        configured = engine.sampling
        for turn in (1, 2):
            # An engine has one way of sampling at a time, and categories differ in theirs.
            groups: dict[Sampling, list[Question]] = {}
            for question in self._missing(turn):
                groups.setdefault(self._sampling(question, configured), []).append(question)
            for sampling, group in groups.items():
                engine.sampling = sampling
                self._answer_turn(engine, group, turn, progress)
        del engine
        gc.collect()  # a judge on this machine may need the memory
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def answers(self) -> Answers:
        """Return all answers."""
        turns: dict[str, list[str]] = {}
        for (id, _), row in sorted(self.rows.items()):
            turns.setdefault(id, []).append(row["answer"])
        return turns

    def notes(self) -> list[str]:
        """Return notes on prompts and answers that were cut."""
        prompts = sum(row["prompt_cut"] for row in self.rows.values())
        texts = sum(row["finish_reason"] == "length" for row in self.rows.values())
        notes = [f"{prompts} of {len(self.rows)} prompts are too long for the model and lost their beginning"]
        notes += [f"{texts} of {len(self.rows)} answers were cut at the length limit"]
        return [note for note, count in zip(notes, (prompts, texts), strict=True) if count]

    @cached_property
    def _renderer(self) -> Renderer:
        folder = self.job.player.path
        return Renderer(load_tokenizer(folder, self.job.model), self.job.chat, model_ends(folder))

    def _missing(self, turn: int) -> list[Question]:
        """Return the questions without an answer to this turn."""
        return [
            question
            for question in self.questions
            if len(question.turns) >= turn and (question.id, turn) not in self.rows
        ]

    def _sampling(self, question: Question, configured: Sampling) -> Sampling:
        """Return how to sample: as configured for a held-out prompt, as MT-Bench sets it for its own questions."""
        if question.category == HUMAN:
            return configured
        return dataclasses.replace(
            configured,
            temperature=TEMPERATURES.get(question.category, _OTHER_TEMPERATURE),
            max_new_tokens=self.job.config.max_new_tokens,
            top_p=1.0,
            top_k=0,
            min_p=0.0,
            repetition_penalty=1.0,
        )

    def _answer_turn(self, engine: Engine, questions: Sequence[Question], turn: int, progress: Progress) -> None:
        """Answer one turn of these questions, and write each answer to the journal as soon as it is complete."""
        prompts = [self._prompt_ids(question, turn) for question in questions]
        fitted = [fit_prompt(prompt, engine.sampling.max_new_tokens, engine.context) for prompt in prompts]
        requests = [
            Request(prompt, seed_of(self.job.seed, "mt-bench", question.id, turn))
            for prompt, question in zip(fitted, questions, strict=True)
        ]

        def keep(index: int, answer: Answer) -> None:
            renderer = self._renderer
            text = decode_responses(renderer.tokenizer, [fitted[index]], [answer.response_ids], renderer.ends)[0]
            id = questions[index].id
            row = {
                "key": questions[index].key,
                "id": id,
                "turn": turn,
                "answer": text,
                "response_ids": answer.response_ids,
                "finish_reason": answer.finish_reason,
                "prompt_cut": len(fitted[index]) < len(prompts[index]),
            }
            self.journal.add(row)
            self.rows[id, turn] = row
            progress.report(len(self.rows))

        answer_requests(engine, requests, on_answer=keep)

    def _prompt_ids(self, question: Question, turn: int) -> list[int]:
        """Return the tokens of a turn's prompt. In the second turn it contains the first turn and its answer."""
        if question.prompt_ids:
            return list(question.prompt_ids)
        turns: list[Message] = [{"role": "user", "content": question.turns[0]}]
        if turn == 2:
            turns.append({"role": "assistant", "content": self.rows[question.id, 1]["answer"]})
            turns.append({"role": "user", "content": question.turns[1]})
        return self._renderer.prompt_ids(turns)


def fit_prompt(prompt_ids: list[int], max_new_tokens: int, context: int | None) -> list[int]:
    """Cut the beginning of a prompt that leaves too little room for an answer.

    Args:
        prompt_ids: The prompt's tokens.
        max_new_tokens: The longest answer, in tokens. At most a quarter of the context is kept free for it.
        context: Most tokens of prompt and answer together; None for no limit.
    """
    if context is None:
        return prompt_ids
    return prompt_ids[-(context - min(max_new_tokens, max(1, context // 4))) :]
