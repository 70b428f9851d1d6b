"""An engine on transformers, with a batch whose rows come and go.

Shapes: N rows in the batch, T tokens of the longest prompt that is read, C columns of the cache's window (one per token
of the longest row), V vocabulary.
"""

import inspect
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from spin_core.config.generate import GenerateConfig
from spin_core.data.templates.responses import decode_responses
from spin_core.inference.engine import Answer, Request, token_limit
from spin_core.inference.kv_cache import RowCache
from spin_core.inference.sampling import Sampling, draw, penalised, probabilities, uniforms

_BATCH = 32
"""Prompts at a time where the configuration has `auto` and no phase has chosen a number."""


class TransformersEngine:
    """Samples from any causal language model of transformers, on a CPU or one GPU.

    A row that has stopped leaves the batch at once, and waiting prompts take free rows, a quarter of the batch at a
    time. Random numbers belong to the request, not to the batch, so an answer does not depend on the other rows of the
    batch, up to rounding: matrix products of another shape differ in their last bits, which can change a token where a
    random number is very close to a cumulative probability (in float32, none of 65,000 tokens between batches of 7 and
    32). The same requests with the same batch size give the same bits on the same machine and number of threads.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        stop_ids: Sequence[int],
        sampling: Sampling,
        batch_size: int = _BATCH,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> None:
        """Use a loaded model; `tokenizer` is needed only for stop strings."""
        self.model, self.sampling, self.batch_size = model, sampling, batch_size
        self.stop_ids = torch.tensor(sorted({*stop_ids, *sampling.stop_ids}), dtype=torch.int64, device=model.device)
        assert tokenizer is not None or not sampling.stop_strings
        self.tokenizer = tokenizer
        text = model.config.get_text_config()
        self.context: int | None = getattr(text, "max_position_embeddings", None)
        self.vocabulary: int = text.vocab_size
        accepts = inspect.signature(model.forward).parameters
        self._last_logits_only = {"logits_to_keep": 1} if "logits_to_keep" in accepts else {}
        self._takes_positions = "position_ids" in accepts
        # transformers 5.24 gave the argument a new name.
        self._cache_argument = "cache" if "cache" in accepts else "past_key_values"

    @classmethod
    def from_config(
        cls,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        stop_ids: Sequence[int],
        config: GenerateConfig,
        t: int,
        stop_strings: Sequence[str] = (),
    ) -> "TransformersEngine":
        """Use a loaded model with the settings of iteration `t`; `config.engine` is ignored."""
        batch_size = _BATCH if config.batch_size == "auto" else config.batch_size
        return cls(model, stop_ids, Sampling.of(config, t, stop_strings), batch_size, tokenizer)

    @torch.inference_mode()
    def answer(self, requests: Sequence[Request]) -> Iterator[tuple[int, Answer]]:
        """Answer every request once; yields (index of the request, answer) as answers end.

        An answer is cut, with `finish_reason` `length`, after `max_new_tokens`, or where the model's context ends.
        Raises the errors of `token_limit`.
        """
        if not requests:
            return
        most = self.sampling.max_new_tokens
        limits = [token_limit(request.prompt_ids, most, self.context, self.vocabulary) for request in requests]
        batch = _Batch(self.model, requests, limits, min(self.batch_size, len(requests)), self.sampling)
        # Longest first: a new row is never longer than the rows that it joins, so it needs no columns on their left,
        # and a batch that does not fit in memory fails at the start.
        waiting = deque(sorted(range(len(requests)), key=lambda i: -len(requests[i].prompt_ids)))
        while waiting or batch.size:
            free = batch.rows - batch.size
            if waiting and (4 * free >= batch.rows or not batch.size):
                added = [waiting.popleft() for _ in range(min(free, len(waiting)))]
                logits_NV = self.forward(batch.cache, **batch.admit(added))
                first = batch.size - len(added)
            else:
                logits_NV = self.forward(batch.cache, **batch.step())
                first = 0
            yield from batch.extend(first, logits_NV, self.sampling, self.stop_ids, self.tokenizer)

    @torch.inference_mode()
    def stream(self, request: Request) -> Iterator[list[int]]:
        """Answer one request; yields the tokens of its answer so far after each of them.

        They are those of `answer`, whose errors it raises.
        """
        limit = token_limit(request.prompt_ids, self.sampling.max_new_tokens, self.context, self.vocabulary)
        batch = _Batch(self.model, [request], [limit], 1, self.sampling)
        inputs = batch.admit([0])
        for count in range(1, limit + 1):
            logits_NV = self.forward(batch.cache, **inputs)
            ended = list(batch.extend(0, logits_NV, self.sampling, self.stop_ids, self.tokenizer))
            yield batch.tokens[0, :count].tolist()
            if ended:
                return
            inputs = batch.step()

    def forward(self, cache: RowCache, input_ids_NT: Tensor, position_ids_NT: Tensor, attention_mask: Tensor) -> Tensor:
        """The logits of the next token, (N, V)."""
        positions: dict[str, Any] = {"position_ids": position_ids_NT} if self._takes_positions else {}
        output = self.model(
            input_ids=input_ids_NT,
            attention_mask=attention_mask,
            use_cache=True,
            **{self._cache_argument: cache},
            **positions,
            **self._last_logits_only,
        )
        cache.window.end += input_ids_NT.shape[1]
        logits_NV: Tensor = output.logits[:, -1]
        return logits_NV


class _Batch:
    """The rows in progress: which request each one answers, and how far it is.

    Rows are kept without gaps, 0 to `size` - 1, and all end in the same column of the cache. A token's position is its
    column minus the row's first column, so positions need no storage.
    """

    def __init__(
        self, model: PreTrainedModel, requests: Sequence[Request], limits: list[int], rows: int, sampling: Sampling
    ) -> None:
        device = model.device
        self.requests, self.rows, self.size, self.device = requests, rows, 0, device
        self.cache = RowCache(model.config, rows)
        self.numbers = uniforms([request.seed for request in requests], sampling.max_new_tokens).to(device)
        self.limits = torch.tensor(limits, device=device)
        self.lengths = torch.tensor([len(request.prompt_ids) for request in requests], device=device)
        self.tokens = torch.zeros(len(requests), sampling.max_new_tokens, dtype=torch.int64, device=device)
        self.column = torch.arange(0, device=device)
        self.request_N = torch.zeros(0, dtype=torch.int64, device=device)
        """Which request each row answers."""
        self.first_N = torch.zeros(0, dtype=torch.int64, device=device)
        """The column of each row's first token."""
        self.last_N = torch.zeros(0, dtype=torch.int64, device=device)
        """The last token that each row has drawn, which the model has not read yet."""
        vocabulary = model.config.get_text_config().vocab_size if sampling.repetition_penalty != 1 else 0
        self.seen_NV = torch.zeros(0, vocabulary, dtype=torch.bool, device=device)
        """Which tokens each row has so far, for the repetition penalty; V is 0 without one."""

    def admit(self, added: list[int]) -> dict[str, Tensor]:
        """Add rows for these requests behind the others; returns the model's inputs for them alone."""
        prompts = [self.requests[i].prompt_ids for i in added]
        width = max(map(len, prompts))
        window = self.cache.window
        if not self.size:
            self.cache.begin(width)
        # The new prompts are written so that they end in the same column as the other rows.
        window.top, window.bottom = self.size, self.size + len(added)
        window.left = window.end = window.end - width
        assert window.left >= 0, "a new row is longer than the rows that it joins"
        ids_NT = torch.tensor([[0] * (width - len(ids)) + list(ids) for ids in prompts], device=self.device)
        request_N = torch.tensor(added, device=self.device)
        first_N = window.end + width - self.lengths[request_N]
        self.request_N = torch.cat([self.request_N, request_N])
        self.first_N = torch.cat([self.first_N, first_N])
        self.last_N = torch.cat([self.last_N, torch.zeros_like(request_N)])
        seen_NV = self.seen_NV.new_zeros(len(added), self.seen_NV.shape[1])
        if seen_NV.shape[1]:
            for row, ids in enumerate(prompts):
                seen_NV[row, list(ids)] = True
        self.seen_NV = torch.cat([self.seen_NV, seen_NV])
        self.size += len(added)
        return self._inputs(ids_NT, first_N)

    def step(self) -> dict[str, Tensor]:
        """The model's inputs for one more token of every row."""
        if moved := self.cache.grow_if_full():
            self.first_N = self.first_N - moved
        return self._inputs(self.last_N[:, None], self.first_N)

    def _inputs(self, ids_NT: Tensor, first_N: Tensor) -> dict[str, Tensor]:
        """Tokens with their positions, and the mask over every column of the window and the new ones."""
        window = self.cache.window
        after = window.end + ids_NT.shape[1]
        if len(self.column) < window.columns:
            self.column = torch.arange(window.columns, device=self.device)
        position_NC = self.column[window.left : after] - first_N[:, None]
        return {
            "input_ids_NT": ids_NT,
            "position_ids_NT": position_NC[:, window.end - window.left :].clamp(min=0),
            "attention_mask": (position_NC >= 0).long(),
        }

    def extend(
        self,
        first: int,
        logits_NV: Tensor,
        sampling: Sampling,
        stop_ids: Tensor,
        tokenizer: PreTrainedTokenizerBase | None,
    ) -> Iterator[tuple[int, Answer]]:
        """Draw a token for every row from `first` on; yields the answers that end, and removes their rows."""
        request_N = self.request_N[first:]
        # The tokens drawn so far: the model has read all of them, so they are the columns behind the prompt.
        drawn_N = self.cache.window.end - self.first_N[first:] - self.lengths[request_N]
        if self.seen_NV.shape[1]:
            logits_NV = penalised(logits_NV, self.seen_NV[first:], sampling.repetition_penalty)
        probs_NV = probabilities(logits_NV, sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p)
        token_N = draw(probs_NV, self.numbers[request_N, drawn_N])
        self.tokens[request_N, drawn_N] = token_N
        self.last_N[first:] = token_N
        if self.seen_NV.shape[1]:
            self.seen_NV[first:].scatter_(1, token_N[:, None], True)
        stopped_N = torch.isin(token_N, stop_ids)
        if sampling.stop_strings:
            stopped_N |= self._has_stop_string(request_N, drawn_N + 1, sampling.stop_strings, tokenizer)
        done_N = stopped_N | (drawn_N + 1 >= self.limits[request_N])
        ended = done_N.nonzero().squeeze(1).tolist()
        if ended:
            columns = (request_N, self.tokens[request_N], drawn_N + 1, stopped_N)
            rows = zip(*(column[ended].tolist() for column in columns), strict=True)
            answers = [(i, Answer(ids[:count], "stop" if stop else "length")) for i, ids, count, stop in rows]
            self._remove([first + row for row in ended])
            yield from answers
        elif first:
            self._show_all_rows()

    def _has_stop_string(self, request_N: Tensor, count_N: Tensor, strings: Sequence[str], tokenizer: Any) -> Tensor:
        """Whether the text of each row's first `count` tokens contains one of the strings, (N,) bool."""
        prompts = [self.requests[i].prompt_ids for i in request_N.tolist()]
        tokens = [ids[:n] for ids, n in zip(self.tokens[request_N].tolist(), count_N.tolist(), strict=True)]
        return torch.tensor(ends_in_stop_string(tokenizer, strings, prompts, tokens), device=self.device)

    def _remove(self, ended: list[int]) -> None:
        """Remove rows, and move the last rows into the gaps."""
        size = self.size - len(ended)
        holes = [row for row in ended if row < size]
        movers = sorted(set(range(size, self.size)) - set(ended))
        self._show_all_rows()
        if holes:
            self.cache.copy_rows(movers, holes)
            for state_N in (self.request_N, self.first_N, self.last_N, self.seen_NV):
                state_N[holes] = state_N[movers]
        self.request_N, self.first_N, self.last_N, self.seen_NV = (
            state_N[:size] for state_N in (self.request_N, self.first_N, self.last_N, self.seen_NV)
        )
        self.size = size
        self._show_all_rows()

    def _show_all_rows(self) -> None:
        """Set the window on all rows, without the columns that are masked in every row."""
        window = self.cache.window
        window.top, window.bottom = 0, self.size
        window.left = int(self.first_N.min()) if self.size else window.end


def ends_in_stop_string(
    tokenizer: Any, strings: Sequence[str], prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]
) -> list[bool]:
    """Whether each response's text contains one of the strings, given that it did not without its last token.

    A character has at most four tokens, so the end of a response is enough. A few tokens before it are decoded too,
    since many tokenizers drop the first space of a text.
    """
    tail_tokens, head_tokens = 4 * max(map(len, strings)), 4
    tails = [ids[-tail_tokens:] for ids in responses]
    heads = [
        [*prompt[-head_tokens:], *ids[: len(ids) - len(tail)]][-head_tokens:]
        for prompt, ids, tail in zip(prompts, responses, tails, strict=True)
    ]
    return [any(string in text for string in strings) for text in decode_responses(tokenizer, heads, tails)]
