"""The exact distance between a player and p_data, for a source whose distribution is known in closed form.

Every right response to a prompt is scored, so nothing is estimated. With p the data's distribution on its support S
and q the player's on all texts:

    invalid mass      1 - sum_S q                                  what the player spends on wrong responses
    total variation   1/2 (sum_S |p - q| + invalid mass)           the part of the answers that would have to change
    forward KL        sum_S p log(p / q)                           nats
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from spin_core.models.logps import sequence_logps

Floats = npt.NDArray[np.float64]

TOTAL_VARIATION, INVALID_MASS, FORWARD_KL = "total_variation", "invalid_mass", "forward_kl"


def distances(p: Floats, log_q: Floats) -> dict[str, float]:
    """The three distances at one prompt: p on the support, (S,), and the player's log-probabilities there, (S,)."""
    q = np.exp(log_q)
    invalid = max(0.0, 1.0 - float(q.sum()))
    said = p > 0
    return {
        TOTAL_VARIATION: 0.5 * (float(np.abs(p - q).sum()) + invalid),
        INVALID_MASS: invalid,
        FORWARD_KL: float((p[said] * (np.log(p[said]) - log_q[said])).sum()),
    }


def exact_distances(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    support: Callable[[str], Mapping[str, float]],
    prompts: Sequence[str],
    prompt_ids: Sequence[Sequence[int]],
    *,
    end_id: int,
    temperature: float,
    micro_batch_tokens: int,
) -> dict[str, Floats]:
    """The three distances at each prompt, (prompts,) each, for a player that samples at this temperature.

    `support` gives a prompt's right responses and their probabilities, which sum to 1. A response is its own tokens
    and then `end_id`; the player's other ways to spell the same text count as invalid. Raises `DataError` for a
    prompt that the source does not know.
    """
    right = [support(prompt) for prompt in prompts]
    owner = [i for i, responses in enumerate(right) for _ in responses]
    spelled = tokenizer([text for responses in right for text in responses], add_special_tokens=False)["input_ids"]
    log_q = sequence_logps(
        model,
        [prompt_ids[i] for i in owner],
        [[*ids, end_id] for ids in spelled],
        micro_batch_tokens,
        temperature,
    )
    by_prompt = np.split(log_q.double().numpy(), np.flatnonzero(np.diff(owner)) + 1)
    found = [
        distances(np.fromiter(responses.values(), np.float64), logs)
        for responses, logs in zip(right, by_prompt, strict=True)
    ]
    return {name: np.array([one[name] for one in found]) for name in (TOTAL_VARIATION, INVALID_MASS, FORWARD_KL)}
