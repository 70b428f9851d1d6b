"""The judge: a model behind an endpoint that gives verdicts, many at a time.

Each verdict is written to a journal before it counts. So whatever ends this process, a restart requests only the
missing ones. An item that the endpoint rejects, while it takes the others, has no verdict.
"""

import logging
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from functools import cached_property
from pathlib import Path

from spin_core.config.evaluate import JudgeConfig
from spin_core.errors import ConfigError, SpinError
from spin_core.evaluation.mt_bench.endpoint import JudgeEndpoint, Refused, TooLong
from spin_core.evaluation.mt_bench.retries import Cancelled
from spin_core.evaluation.mt_bench.verdicts import PARSERS, REMINDERS, VERSION, VerdictRequest
from spin_core.runtime.progress import Progress
from spin_core.store import identity
from spin_core.store.evaluation_jobs import MtBenchJob
from spin_core.store.journal import Journal, Row

log = logging.getLogger("spin_core")

REFUSALS = 10
"""A judge that refuses this many requests before it answers one refuses all. A single refusal may be due to the item,
and the verdicts of other items take longer than a refusal, so the first few prove nothing."""

_TRIES = 3
"""How often a judge is asked for a verdict that can be read."""

_VERDICTS = ".verdicts"
"""The folder of all verdicts, next to the folder of all models' answers."""


def verdicts_folder(job: MtBenchJob) -> Path:
    """Return the folder of this judge's verdicts on this model, which lineages share.

    Each verdict has the digest of its prompt, answers included. Lock the folder while verdicts are requested, so that
    two jobs do not request the same ones.
    """
    judge = identity.identity_of(job.judge)
    settings = {"phase": "verdicts", "version": VERSION, "model": job.player.digest, "judge": judge}
    return job.speed.answers.with_name(_VERDICTS) / identity.digest_of(settings)[:16]


class Judge:
    """A model that gives verdicts. Any number of threads may ask it."""

    def __init__(self, config: JudgeConfig) -> None:
        """Raise `ConfigError` if a key is needed and not set; nothing is sent."""
        self.config, self.endpoint = config, JudgeEndpoint(config)
        self.has_answered = False
        """Whether it has answered a request, rather than only refused some."""
        self.refusals: list[str] = []
        """What is wrong with the settings if it answers nothing, once for each refusal."""

    def verdict(self, request: VerdictRequest) -> Row:
        """Return a verdict as the journal has it.

        It is asked again with a reminder if its reply has no verdict that can be read.

        Returns:
            `value` is the grade or choice, or None without a verdict; then `fault` is `unreadable`, `too long` or
            `refused`. `asked` is the number of replies, and the other fields are those of the last reply.

        Raises:
            ConfigError: The judge refuses all requests, because of the settings.
        """
        conversation = list(request.messages)
        row: Row = {"key": request.key, "value": None, "fault": "unreadable", "asked": 0, "reply": ""}
        while row["value"] is None and row["asked"] < _TRIES:
            try:
                row |= self.endpoint.complete(conversation)
            except (TooLong, Refused) as error:
                if row["asked"]:  # the reminder made it too long, or the endpoint rejects this form of conversation
                    return row
                if isinstance(error, TooLong):
                    return {**row, "fault": "too long"}
                self._count_refusal(error)
                return {**row, "fault": "refused", "reply": error.message}
            self.has_answered = True
            row["asked"] += 1
            # In a reply that was cut, the last verdict may be one that the judge quotes or considers on its way.
            row["value"] = None if row["finish_reason"] == "length" else PARSERS[request.kind](row["reply"])
            reply = {"role": "assistant", "content": row["reply"] or "…"}
            conversation = [*request.messages, reply, {"role": "user", "content": REMINDERS[request.kind]}]
        return row if row["value"] is None else {**row, "fault": ""}

    def cancel(self) -> None:
        """Make the threads that wait for the endpoint raise `Cancelled`; requests in flight are completed."""
        self.endpoint.pause.cancel()

    def _count_refusal(self, error: Refused) -> None:
        """Take a refusal as due to the item, unless there were too many before any answer."""
        if error.settings_error is not None:
            self.refusals.append(error.settings_error)
            if not self.has_answered and len(self.refusals) >= REFUSALS:
                self.cancel()
                raise ConfigError(error.settings_error)


class Verdicts:
    """The verdicts in a journal, to which missing ones are added."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal

    @cached_property
    def by_key(self) -> dict[str, Row]:
        """The verdicts by their request's key."""
        return {row["key"]: row for row in self.journal.rows}

    def missing(self, requests: Sequence[VerdictRequest]) -> dict[str, VerdictRequest]:
        """Return the requests without a verdict, by key."""
        return {request.key: request for request in requests if request.key not in self.by_key}

    def request_all(self, requests: Sequence[VerdictRequest], judge: Judge, progress: Progress) -> None:
        """Request all missing verdicts, and close the judge's connections.

        What the endpoint refused is not written to the journal: it costs nothing to ask again, and the endpoint's
        rules may change.

        Raises:
            SpinError: The first error that ended the work; the verdicts before it are in the journal.
        """
        keys = {request.key for request in requests}
        missing = self.missing(requests)
        log.info("%d of %d verdicts are there already", len(keys) - len(missing), len(keys))
        judge.has_answered = judge.has_answered or bool(self.by_key)
        progress.start(len(keys), "verdict")

        def work(request: VerdictRequest) -> None:
            judge.endpoint.pause.sleep(0)  # raises if the work was cancelled before this request began
            row = judge.verdict(request)
            if row["asked"]:
                self.journal.add(row)
            self.by_key[request.key] = row

        failure: BaseException | None = None
        with ThreadPoolExecutor(judge.config.speed.parallel, "judge") as pool:
            pending: set[Future[None]] = {pool.submit(work, request) for request in missing.values()}
            while pending:
                finished, pending = wait(pending, timeout=0.25, return_when=FIRST_COMPLETED)
                errors = [error for future in finished if (error := future.exception()) is not None]
                failure = failure or next((error for error in errors if not isinstance(error, Cancelled)), None)
                if failure or progress.stopping:
                    judge.cancel()  # requests in flight are waited for, and kept
                progress.show(len(self.by_key.keys() & keys))
        judge.endpoint.client.close()
        if isinstance(failure, SpinError):
            log.info("%d of %d verdicts are kept", len(keys) - len(self.missing(requests)), len(keys))
        if failure:
            raise failure
        progress.check()
        if judge.refusals and not judge.has_answered:
            raise ConfigError(judge.refusals[0])
