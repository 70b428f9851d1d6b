"""The contract of an engine: requests in, answers out."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from spin_core.errors import DataError, ModelError
from spin_core.inference.sampling import Sampling


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt to answer."""

    prompt_ids: Sequence[int]
    seed: int
    """Where this answer's random numbers come from, 0 <= seed < 2**128."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model said."""

    response_ids: list[int]
    """At least one token. If `finish_reason` is `stop`, the last one is a stop token or completes a stop string, and
    no other one does."""
    finish_reason: Literal["stop", "length"]


class Engine(Protocol):
    """Whatever turns requests into answers."""

    batch_size: int
    """Prompts in memory at a time. Whoever runs out of memory may lower it and ask again."""

    sampling: Sampling
    """How tokens are drawn. Temperature and length may be changed between calls."""

    @property
    def context(self) -> int | None:
        """Longest prompt and answer together, in tokens; None if the model does not say."""

    def answer(self, requests: Sequence[Request]) -> Iterator[tuple[int, Answer]]:
        """Answer every request once; yields (index of the request, answer) as answers are finished."""


def room(prompt_ids: Sequence[int], limit: int, context: int | None, vocabulary: int) -> int:
    """How many tokens the answer to a prompt may have, at most `limit`.

    Raises `DataError` for a prompt without tokens, or one that leaves no room in the context, and `ModelError` for one
    with a token that the model does not have.
    """
    length = len(prompt_ids)
    if not length:
        raise DataError("a prompt has no tokens, so there is nothing to answer: drop it, or set chat.add_bos")
    if max(prompt_ids) >= vocabulary:
        raise ModelError(
            f"a prompt has token {max(prompt_ids)}, and the model knows tokens 0 to {vocabulary - 1}: its tokenizer is "
            "that of another model; set model.tokenizer to its own"
        )
    if context is not None:
        limit = min(limit, context - length)
    if limit < 1:
        raise DataError(
            f"a prompt of {length} tokens leaves no room in the model's context of {context}: "
            "lower prompts.max_prompt_tokens"
        )
    return limit
