"""The exact distance between a player and p_data, for a source whose distribution is known in closed form.

Every right response to a prompt is scored, so nothing is estimated. With p the data's distribution on its support S
and q the player's on all texts:

    invalid mass      1 - sum_S q                                  the player's probability of wrong responses
    total variation   1/2 (sum_S |p - q| + invalid mass)           the share of the answers that would have to change
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
    """Return the three distances at one prompt, by name.

    Args:
        p: The data's probabilities on the support, (S,).
        log_q: The player's log-probabilities there in nats, (S,).
    """
    q = np.exp(log_q)
    invalid = max(0.0, 1.0 - float(q.sum()))
    positive = p > 0
    return {
        TOTAL_VARIATION: 0.5 * (float(np.abs(p - q).sum()) + invalid),
        INVALID_MASS: invalid,
        FORWARD_KL: float((p[positive] * (np.log(p[positive]) - log_q[positive])).sum()),
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
    """Return the three distances at each prompt, (prompts,) each, by name.

    A response is its tokens and then `end_id`; other tokens that spell the same text count as invalid.

    Args:
        model: The player.
        tokenizer: The player's.
        support: Returns a prompt's right responses and their probabilities, which sum to 1. It raises `DataError` for a
            prompt that the source does not have.
        prompts: The texts of the prompts.
        prompt_ids: The tokens of the prompts.
        end_id: The token that ends a response.
        temperature: The player's sampling temperature.
        micro_batch_tokens: Most tokens in a forward pass.
    """
    supports = [support(prompt) for prompt in prompts]
    prompt_index = [i for i, responses in enumerate(supports) for _ in responses]
    response_ids = tokenizer([text for responses in supports for text in responses], add_special_tokens=False)[
        "input_ids"
    ]
    log_q = sequence_logps(
        model,
        [prompt_ids[i] for i in prompt_index],
        [[*ids, end_id] for ids in response_ids],
        micro_batch_tokens,
        temperature,
    )
    by_prompt = np.split(log_q.double().numpy(), np.flatnonzero(np.diff(prompt_index)) + 1)
    results = [
        distances(np.fromiter(responses.values(), np.float64), logs)
        for responses, logs in zip(supports, by_prompt, strict=True)
    ]
    return {
        name: np.array([result[name] for result in results]) for name in (TOTAL_VARIATION, INVALID_MASS, FORWARD_KL)
    }
