"""Requests for prompts, and answers to them, with a smaller batch when memory runs out."""

import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

import torch
from transformers import PreTrainedTokenizerBase

from spin_core.data.chat import decode_responses
from spin_core.data.seeds import seed_of
from spin_core.errors import ModelError
from spin_core.inference.engine import Answer, Engine, Request
from spin_core.store.records import PromptSet

log = logging.getLogger("spin_core")


def stop_ids(prompts: PromptSet, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The tokens that end an answer."""
    return prompts.stop_ids or (tokenizer.eos_token_id,)


def requests_for(
    ids: Sequence[str], prompt_ids: Sequence[Sequence[int]], seed: int, purpose: str, answers: int = 1
) -> list[Request]:
    """So many requests a prompt, side by side.

    A request's seed is a digest of the seed, the purpose, the prompt's id, how often that came before, and for the
    second answer and later ones its number: to ask for more answers leaves the first ones as they were.
    """
    seen: defaultdict[str, Iterator[int]] = defaultdict(lambda: iter(range(len(ids))))
    return [
        Request(prompt, seed_of(seed, purpose, id, before, *([number] if number else [])))
        for id, prompt in zip(ids, prompt_ids, strict=True)
        for before in (next(seen[id]),)
        for number in range(answers)
    ]


def answers(
    engine: Engine,
    requests: Sequence[Request],
    note: Callable[[int, int], None] = lambda _rows, _tokens: None,
    keep: Callable[[int, Answer], None] = lambda _place, _answer: None,
) -> list[Answer]:
    """The answers in the requests' order. `note` is told answers and tokens so far, `keep` gets each as it comes.

    Where memory runs out, what is left is asked again with half the batch, and so are all later requests.
    """
    found: dict[int, Answer] = {}
    tokens = 0
    while len(found) < len(requests):
        left = [i for i in range(len(requests)) if i not in found]
        try:
            for i, answer in engine.answer([requests[i] for i in left]):
                found[left[i]] = answer
                keep(left[i], answer)
                tokens += len(answer.response_ids)
                note(len(found), tokens)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            if engine.batch_size == 1:
                raise ModelError(
                    "there is not enough memory to answer one prompt at a time: lower prompts.max_prompt_tokens or "
                    "generate.max_new_tokens, set model.dtype to bfloat16, or take a larger device"
                ) from error
            engine.batch_size //= 2
            log.warning("out of memory: going on with %d prompts at a time", engine.batch_size)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return [found[i] for i in range(len(requests))]


def out_of_memory(error: Exception) -> bool:
    """Whether memory ran out: on a GPU torch has an error for that, on a CPU only words."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)


def texts(tokenizer: PreTrainedTokenizerBase, requests: Sequence[Request], found: Sequence[Answer]) -> list[str]:
    """Answers as people read them, without special tokens."""
    return decode_responses(
        tokenizer, [request.prompt_ids for request in requests], [answer.response_ids for answer in found]
    )
