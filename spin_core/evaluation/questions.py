"""MT-Bench's questions, from a folder in its own form or from the hub, held-out prompts as further ones, a model's
answers to them, and where answers and verdicts are kept for all lineages."""

import dataclasses
import gc
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq
import torch

from spin_core.config.base import resolved
from spin_core.config.data import SourceConfig
from spin_core.data.chat import Message, Renderer, decode_responses
from spin_core.data.seeds import seed_of
from spin_core.data.sources import read_file, read_rows
from spin_core.data.tokenizer import load_tokenizer
from spin_core.errors import DataError
from spin_core.evaluation.verdicts import VERSION
from spin_core.inference.answering import answers
from spin_core.inference.engine import Answer, Engine, Request
from spin_core.inference.factory import make_engine
from spin_core.inference.sampling import Sampling
from spin_core.runtime.progress import Progress
from spin_core.store import identity
from spin_core.store.jobs import MtBenchJob
from spin_core.store.journal import Journal
from spin_core.store.records import PromptSet

HUB = "HuggingFaceH4/mt_bench_prompts"

REFERENCES = "reference_answer_gpt-4.jsonl"

REFERENCED = ("math", "reasoning", "coding")
"""Categories whose answers are judged beside a reference."""

VERDICTS = ".verdicts"
"""Beside the folder of all models' answers: what judges said, by judge and model. Lineages share it."""

HUMAN = "human"
"""The category of held-out prompts."""

QUICK = 3
"""Questions of each category in the quick suite."""

TEMPERATURES = {
    "writing": 0.7, "roleplay": 0.7, "extraction": 0.0, "math": 0.0, "coding": 0.0, "reasoning": 0.0, "stem": 0.1,
    "humanities": 0.1,
}  # fmt: skip

OTHER_TEMPERATURE = 0.7

Where = tuple[str, int]
"""A question's id, and the turn."""

Said = Mapping[str, Sequence[str]]
"""Answers by question's id, turn by turn."""


class Question(NamedTuple):
    """What is asked, turn by turn."""

    id: str
    category: str
    """`human` for a held-out prompt, which has one turn."""
    turns: tuple[str, ...]
    references: tuple[str, ...] = ()
    """A good answer to each turn, where there are such."""
    prompt_ids: tuple[int, ...] = ()
    """A held-out prompt as the game tokenised it."""

    @property
    def key(self) -> str:
        """Digest of all that its answers hang on, beside the model and how it samples."""
        return identity.digest_of([self.id, self.category, self.turns, self.prompt_ids])


def load_questions(folder: Path | None) -> list[Question]:
    """All questions, with references where these are used. `DataError` says what is wrong with the data."""
    if folder is None:
        path = Path(HUB)
        found, _ = read_rows(SourceConfig(path=HUB), "evaluate.mt_bench.data")
        rows = [{**row, "question_id": row.get("prompt_id"), "turns": row.get("prompt")} for row in found]
        references = {str(row["question_id"]): row.get("reference") for row in rows}
    else:
        path = folder / "question.jsonl"
        for needed in (path, folder / REFERENCES):
            if not needed.is_file():
                raise DataError(
                    f"{needed} is not there: set evaluate.mt_bench.data to a folder in MT-Bench's own form, or unset "
                    "it to fetch the questions from the hub"
                )
        rows = read_file(path)
        references = {str(row.get("question_id")): turns_of(row) for row in read_file(folder / REFERENCES)}
    questions = [question_of(path, number, row, references) for number, row in enumerate(rows, start=1)]
    if len({question.id for question in questions}) < max(1, len(questions)):
        raise DataError(f"{path} holds no questions, or two of one question_id: copy it again")
    return questions


def question_of(path: Path, number: int, row: Mapping[str, Any], references: Mapping[str, Any]) -> Question:
    """A row's question. `DataError` if it is none of two turns."""
    id, category, turns = (row.get(name) for name in ("question_id", "category", "turns"))
    if id is None or not isinstance(category, str) or turns is None or not is_turns(turns):
        raise DataError(f"{path}, question {number} needs question_id, category and two turns of text: mend it")
    reference: Any = references.get(str(id)) if category in REFERENCED else None
    return Question(str(id), category, tuple(turns), tuple(reference) if is_turns(reference) else ())


def is_turns(value: Any) -> bool:
    """Two texts."""
    return isinstance(value, (list, tuple)) and len(value) == 2 and all(isinstance(text, str) for text in value)


def turns_of(row: Mapping[str, Any]) -> Any:
    """The turns of an answer in MT-Bench's own form; None if that is something else."""
    try:
        return row["choices"][0]["turns"]
    except (KeyError, IndexError, TypeError):
        return None


def quick(questions: Sequence[Question], seed: int) -> list[Question]:
    """`QUICK` questions of each category, by seed, in their order."""
    chosen: set[str] = set()
    for category in dict.fromkeys(question.category for question in questions):
        ids = [question.id for question in questions if question.category == category]
        chosen |= set(sorted(ids, key=lambda id: seed_of(seed, "mt-bench", id))[:QUICK])
    return [question for question in questions if question.id in chosen]


def held_out(prompts: PromptSet, count: int, seed: int) -> tuple[list[Question], dict[str, tuple[str, ...]]]:
    """So many held-out prompts, chosen by seed, and the human response to each."""
    rows = pq.read_table(prompts.path / "held_out.parquet").to_pylist()
    rows = sorted(rows, key=lambda row: seed_of(seed, "mt-bench", row["id"]))[:count]
    questions = [Question(row["id"], HUMAN, (row["prompt"],), prompt_ids=tuple(row["prompt_ids"])) for row in rows]
    return questions, {row["id"]: (row["response"],) for row in rows}


def answers_folder(job: MtBenchJob) -> Path:
    """Where the answers of this model, sampled in this way, are kept, whoever judges them."""
    asked = {
        "model": job.player.digest,
        "dtype": job.model.dtype,
        "chat": job.chat.model_dump(mode="json"),
        "generate": resolved(job.generate, job.player.t).model_dump(mode="json"),
        "max_new_tokens": job.config.max_new_tokens,
        "seed": job.seed,
    }
    return job.speed.answers / identity.digest_of(identity.identity_of(asked))[:16]


def verdicts_folder(job: MtBenchJob) -> Path:
    """Where this judge's verdicts on this model are kept. Each bears the digest of what was asked, answers and all.

    Whoever asks the same judge about the same model at the same time waits for the one that has begun.
    """
    judge = job.judge.model_dump(mode="json", exclude={"speed", "api_key_env"})
    asked = {"phase": "verdicts", "version": VERSION, "model": job.player.digest, "judge": judge}
    return job.speed.answers.with_name(VERDICTS) / identity.digest_of(asked)[:16]


class Speaker:
    """A model version, what it is asked, and its answers so far. The weights are loaded when they are first needed."""

    def __init__(self, job: MtBenchJob, journal: Journal, questions: Sequence[Question]) -> None:
        self.job, self.journal, self.questions = job, journal, questions
        keys = {question.key for question in questions}
        self.rows: dict[Where, dict[str, Any]] = {
            (row["id"], row["turn"]): row for row in journal.rows if row["key"] in keys
        }

    @cached_property
    def renderer(self) -> Renderer:
        """How the version is asked."""
        return Renderer(load_tokenizer(self.job.player.path, self.job.model), self.job.chat)

    def missing(self, turn: int) -> list[Question]:
        """The questions whose answer in that turn is not there."""
        return [one for one in self.questions if len(one.turns) >= turn and (one.id, turn) not in self.rows]

    def answer(self, progress: Progress) -> None:
        """Give all answers that are not there: all first turns, then the second ones, which see the first."""
        progress.start(sum(len(question.turns) for question in self.questions), "answer")
        progress.tell(len(self.rows))
        if not any(self.missing(turn) for turn in (1, 2)):
            return
        job = self.job
        engine = make_engine(job.player.path, job.model, self.renderer.stop_ids, job.generate, job.player.t)
        as_configured = engine.sampling
        for turn in (1, 2):
            groups: dict[Sampling, list[Question]] = {}
            for question in self.missing(turn):
                groups.setdefault(self.sampling(question, as_configured), []).append(question)
            for sampling, group in groups.items():
                engine.sampling = sampling
                self.answer_turn(engine, group, turn, progress)
        del engine
        gc.collect()  # a judge may want the memory
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def sampling(self, question: Question, as_configured: Sampling) -> Sampling:
        """How the answer is drawn: a held-out prompt's as in the game, MT-Bench's as that lays down."""
        if question.category == HUMAN:
            return as_configured
        return dataclasses.replace(
            as_configured,
            temperature=TEMPERATURES.get(question.category, OTHER_TEMPERATURE),
            max_new_tokens=self.job.config.max_new_tokens,
            top_p=1.0,
            top_k=0,
            min_p=0.0,
            repetition_penalty=1.0,
        )

    def answer_turn(self, engine: Engine, questions: Sequence[Question], turn: int, progress: Progress) -> None:
        """Answer one turn of these questions; each answer is in the journal as it comes."""
        prompts = [self.prompt_ids(question, turn) for question in questions]
        fitting = [fit(prompt, engine.sampling.max_new_tokens, engine.context) for prompt in prompts]
        requests = [
            Request(prompt, seed_of(self.job.seed, "mt-bench", question.id, turn))
            for prompt, question in zip(fitting, questions, strict=True)
        ]

        def keep(place: int, answer: Answer) -> None:
            text = decode_responses(self.renderer.tokenizer, [fitting[place]], [answer.response_ids])[0]
            id = questions[place].id
            row = {
                "key": questions[place].key,
                "id": id,
                "turn": turn,
                "answer": text,
                "response_ids": answer.response_ids,
                "finish_reason": answer.finish_reason,
                "prompt_cut": len(fitting[place]) < len(prompts[place]),
            }
            self.journal.add(row)
            self.rows[id, turn] = row
            progress.tell(len(self.rows))

        answers(engine, requests, keep=keep)

    def prompt_ids(self, question: Question, turn: int) -> list[int]:
        """What the model reads of a question: in the second turn, the first one and its own answer too."""
        if question.prompt_ids:
            return list(question.prompt_ids)
        turns: list[Message] = [{"role": "user", "content": question.turns[0]}]
        if turn == 2:
            turns.append({"role": "assistant", "content": self.rows[question.id, 1]["answer"]})
            turns.append({"role": "user", "content": question.turns[1]})
        return self.renderer.prompt_ids(turns)

    def said(self) -> Said:
        """All answers."""
        turns: dict[str, list[str]] = {}
        for (id, _), row in sorted(self.rows.items()):
            turns.setdefault(id, []).append(row["answer"])
        return turns

    def notes(self) -> list[str]:
        """What did not fit."""
        prompts = sum(row["prompt_cut"] for row in self.rows.values())
        texts = sum(row["finish_reason"] == "length" for row in self.rows.values())
        notes = [f"{prompts} of {len(self.rows)} prompts are too long for the model and lost their beginning"]
        notes += [f"{texts} of {len(self.rows)} answers were cut at their longest"]
        return [note for note, count in zip(notes, (prompts, texts), strict=True) if count]


def fit(prompt: list[int], longest: int, context: int | None) -> list[int]:
    """The prompt, or so much of its end that a quarter of the context is left for the answer, if that wants so much."""
    if context is None:
        return prompt
    return prompt[-(context - min(longest, max(1, context // 4))) :]
