"""The interface of engines: requests in, answers out.

A finish reason starts here, at `Answer`; every engine decides it, and all later columns and counts copy it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from spin_core.data.chat import FinishReason
from spin_core.errors import DataError, ModelError
from spin_core.inference.sampling import Sampling


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt to answer."""

    prompt_ids: Sequence[int]
    seed: int
    """Seed of this answer's random numbers, 0 <= seed < 2**128."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The tokens that the model gave, and why they end."""

    response_ids: list[int]
    """At least one token. If `finish_reason` is `stop`, the last token is a stop token or completes a stop string; no
    other token does."""
    finish_reason: FinishReason
    """`stop`: the model ended its answer. `length`: the answer was cut."""


class Engine(Protocol):
    """Answers requests with one model."""

    batch_size: int
    """Prompts in memory at a time. May be lowered between calls when memory runs out."""

    sampling: Sampling
    """How tokens are drawn. Temperature and length may be changed between calls."""

    @property
    def context(self) -> int | None:
        """Longest prompt and answer together, in tokens; None if the model has no limit."""

    def answer(self, requests: Sequence[Request]) -> Iterator[tuple[int, Answer]]:
        """Answer every request once; yields (index of the request, answer) as answers end, in any order."""


def token_limit(prompt_ids: Sequence[int], limit: int, context: int | None, vocabulary: int) -> int:
    """The number of tokens that the answer to a prompt may have.

    Args:
        prompt_ids: The prompt's tokens.
        limit: The most that the answer may have.
        context: Longest prompt and answer together; None without a limit.
        vocabulary: How many tokens the model has.

    Raises:
        DataError: The prompt has no tokens, or leaves no space in the context.
        ModelError: The prompt has a token that the model does not have.
    """
    length = len(prompt_ids)
    if not length:
        raise DataError("a prompt has no tokens, so there is nothing to answer: remove it, or set chat.add_bos")
    if max(prompt_ids) >= vocabulary:
        raise ModelError(
            f"a prompt has token {max(prompt_ids)}, and the model knows tokens 0 to {vocabulary - 1}: the "
            "tokenizer belongs to another model; set model.tokenizer to the model's own"
        )
    if context is not None:
        limit = min(limit, context - length)
    if limit < 1:
        raise DataError(
            f"a prompt of {length} tokens leaves no room in the model's context of {context}: "
            "lower prompts.max_prompt_tokens"
        )
    return limit
