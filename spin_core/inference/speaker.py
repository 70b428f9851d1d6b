"""A version that talks: it answers a conversation piece by piece, as it answers prompts in a run."""

import dataclasses
from collections.abc import Iterator, Sequence

from spin_core.config.run import RunConfig
from spin_core.data.chat import Message, Renderer
from spin_core.data.templates.responses import decode_responses
from spin_core.data.tokenizer import load_tokenizer, model_ends
from spin_core.errors import DataError
from spin_core.inference.engine import Request
from spin_core.inference.transformers_engine import TransformersEngine
from spin_core.models.loading import load_model
from spin_core.store.records import ModelVersion

_HALF_CHARACTER = "\ufffd"
"""What a tokenizer decodes the first bytes of a character to."""


class Speaker:
    """A version with the chat format and the sampling of its lineage."""

    def __init__(self, version: ModelVersion, config: RunConfig) -> None:
        """Load the version. Raises `SpinError` if that fails."""
        tokenizer = load_tokenizer(version.path, config.model)
        self.renderer = Renderer(tokenizer, config.chat, model_ends(version.path))
        ends = self.renderer.ends
        model = load_model(version.path, config.model)
        self.engine = TransformersEngine.from_config(
            model, tokenizer, ends.ids, config.generate, version.t, ends.strings
        )

    @property
    def temperature(self) -> float:
        """The sampling temperature."""
        return self.engine.sampling.temperature

    @temperature.setter
    def temperature(self, value: float) -> None:
        self.engine.sampling = dataclasses.replace(self.engine.sampling, temperature=value)

    def answer(self, turns: Sequence[Message], seed: int) -> Iterator[str]:
        """The text of the answer to these turns, in pieces as they are sampled.

        Raises:
            DataError: The chat template refuses the conversation, or the last turn alone is too long.
        """
        prompt_ids = self._prompt_ids(list(turns))
        shown = text = ""
        for ids in self.engine.stream(Request(prompt_ids, seed)):
            text = decode_responses(self.renderer.tokenizer, [prompt_ids], [ids], self.renderer.ends)[0]
            sure = text[: len(text) - self._unsure(text)]
            if sure.startswith(shown) and sure != shown:
                yield sure[len(shown) :]
                shown = sure
        if text.startswith(shown) and text != shown:
            yield text[len(shown) :]

    def _prompt_ids(self, turns: list[Message]) -> list[int]:
        """The prompt, without the oldest questions and answers if it would leave too little of the context."""
        context, most = self.engine.context, self.engine.sampling.max_new_tokens
        while True:
            prompt_ids = self.renderer.prompt_ids(turns)
            if context is None or len(prompt_ids) + min(most, max(1, context // 4)) <= context:
                return prompt_ids
            oldest = 1 if turns[0]["role"] == "system" else 0
            if len(turns) <= oldest + 1:
                if len(prompt_ids) >= context:
                    raise DataError(
                        f"the question makes a prompt of {len(prompt_ids)} tokens, and the model's context has "
                        f"{context}: ask a shorter one"
                    )
                return prompt_ids
            del turns[oldest : oldest + 2]

    def _unsure(self, text: str) -> int:
        """How many of the last characters may change: half a character, or the beginning of what ends an answer."""
        if text.endswith(_HALF_CHARACTER):
            return 1
        ends = (*self.renderer.ends.strings, *self.engine.sampling.stop_strings)
        lengths = range(min(len(text), max(map(len, ends), default=1) - 1), 0, -1)
        return next((n for n in lengths if any(end.startswith(text[-n:]) for end in ends)), 0)
