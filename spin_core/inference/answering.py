"""Requests for prompts, and their answers, with a smaller batch when memory runs out."""

import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

import torch
from transformers import PreTrainedTokenizerBase

from spin_core.data.seeds import seed_of
from spin_core.data.templates.responses import Ends, decode_responses
from spin_core.errors import ModelError
from spin_core.inference.engine import Answer, Engine, Request
from spin_core.runtime.memory.free import is_out_of_memory
from spin_core.store.records import PromptSet

log = logging.getLogger("spin_core")


def requests_for(
    ids: Sequence[str],
    prompt_ids: Sequence[Sequence[int]],
    seed: int,
    purpose: str,
    answers: int = 1,
    came_before: Sequence[int] | None = None,
) -> list[Request]:
    """`answers` requests for each prompt, one after another for each prompt.

    A request's seed is a digest of the seed, the purpose, the prompt's id and how often that id came before; the second
    answer and later ones add their number. So asking for more answers does not change the first ones.

    `came_before` says how often each id came before, where these prompts are a part of all; by default they are all.
    """
    if came_before is None:
        counters: defaultdict[str, Iterator[int]] = defaultdict(lambda: iter(range(len(ids))))
        came_before = [next(counters[id]) for id in ids]
    return [
        Request(prompt, seed_of(seed, purpose, id, before, *([number] if number else [])))
        for id, prompt, before in zip(ids, prompt_ids, came_before, strict=True)
        for number in range(answers)
    ]


def answer_requests(
    engine: Engine,
    requests: Sequence[Request],
    on_progress: Callable[[int, int], None] = lambda _answers, _tokens: None,
    on_answer: Callable[[int, Answer], None] = lambda _index, _answer: None,
) -> list[Answer]:
    """The answers in the order of the requests.

    When memory runs out, the batch is halved, for later calls too, and the remaining requests are repeated.

    Args:
        engine: Answers the requests; its `batch_size` may be lowered.
        requests: What to answer.
        on_progress: Is called after each answer with the answers and tokens so far.
        on_answer: Is called with each answer and the index of its request as soon as it is available.

    Raises:
        ModelError: There is not enough memory for one prompt at a time.
    """
    answers: dict[int, Answer] = {}
    tokens = 0
    while len(answers) < len(requests):
        remaining = [index for index in range(len(requests)) if index not in answers]
        try:
            for position, answer in engine.answer([requests[index] for index in remaining]):
                index = remaining[position]
                answers[index] = answer
                on_answer(index, answer)
                tokens += len(answer.response_ids)
                on_progress(len(answers), tokens)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if engine.batch_size == 1:
                raise ModelError(
                    "there is not enough memory to answer one prompt at a time: lower prompts.max_prompt_tokens or "
                    "generate.max_new_tokens, set model.dtype to bfloat16, or use a larger device"
                ) from error
            engine.batch_size //= 2
            log.warning("out of memory: continuing with %d prompts at a time", engine.batch_size)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return [answers[index] for index in range(len(requests))]


def ends_of(prompts: PromptSet, tokenizer: PreTrainedTokenizerBase) -> Ends:
    """What ends an answer: the ends of the prompts' chat format, or else the tokenizer's EOS."""
    return Ends(prompts.stop_ids or (tokenizer.eos_token_id,), prompts.stop_strings)


def decode_answers(
    tokenizer: PreTrainedTokenizerBase, requests: Sequence[Request], answers: Sequence[Answer], ends: Ends
) -> list[str]:
    """The answers as text, without special tokens and without their end."""
    return decode_responses(
        tokenizer, [request.prompt_ids for request in requests], [answer.response_ids for answer in answers], ends
    )
