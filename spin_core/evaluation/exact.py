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
import pyarrow as pa
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from spin_core.data import demo
from spin_core.models.logps import sequence_logps_at

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
    temperatures: Sequence[float],
    micro_batch_tokens: int,
) -> list[dict[str, Floats]]:
    """Return the three distances at each prompt, (prompts,) each, by name, for each temperature.

    A response is its tokens and then `end_id`; other tokens that spell the same text count as invalid.

    Args:
        model: The player.
        tokenizer: The player's.
        support: Returns a prompt's right responses and their probabilities, which sum to 1. It raises `DataError` for a
            prompt that the source does not have.
        prompts: The texts of the prompts.
        prompt_ids: The tokens of the prompts.
        end_id: The token that ends a response.
        temperatures: The player's sampling temperatures. More than one cost little, since logits do not depend on them.
        micro_batch_tokens: Most tokens in a forward pass.
    """
    supports = [support(prompt) for prompt in prompts]
    prompt_index = [i for i, responses in enumerate(supports) for _ in responses]
    response_ids = tokenizer([text for responses in supports for text in responses], add_special_tokens=False)[
        "input_ids"
    ]
    log_q_KS = sequence_logps_at(
        model,
        [prompt_ids[i] for i in prompt_index],
        [[*ids, end_id] for ids in response_ids],
        micro_batch_tokens,
        temperatures,
    )
    probabilities = [np.fromiter(responses.values(), np.float64) for responses in supports]
    ends = np.flatnonzero(np.diff(prompt_index)) + 1
    results = []
    for log_q_S in log_q_KS.double().numpy():
        by_prompt = [distances(p, log_q) for p, log_q in zip(probabilities, np.split(log_q_S, ends), strict=True)]
        results.append(
            {name: np.array([each[name] for each in by_prompt]) for name in (TOTAL_VARIATION, INVALID_MASS, FORWARD_KL)}
        )
    return results


def demo_distances(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    held_out: pa.Table,
    *,
    end_id: int,
    temperatures: Sequence[float],
    batch_size: int,
) -> list[dict[str, Floats]]:
    """Return the distances to the demo's distribution at each held-out prompt, by name, for each temperature.

    Args:
        model: The player.
        tokenizer: The player's.
        held_out: The held-out prompts, with the columns `prompt` and `prompt_ids`.
        end_id: The token that ends a response.
        temperatures: The player's sampling temperatures.
        batch_size: Most rows in a forward pass.
    """
    prompt_ids = held_out["prompt_ids"].to_pylist()
    longest = max(map(len, prompt_ids)) + demo.MAX_RESPONSE_CHARS + 1
    return exact_distances(
        model,
        tokenizer,
        demo.support,
        held_out["prompt"].to_pylist(),
        prompt_ids,
        end_id=end_id,
        temperatures=temperatures,
        micro_batch_tokens=batch_size * longest,
    )
