"""What a model does to the logits of its output layer: nothing, a scale, or a cap.

Only where this is known can `logps.py` compute logits a chunk at a time, because it then has to do the same by itself.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

_SCALES = ("logit_scale", "logits_scaling", "lm_head_multiplier")
"""What configurations call a scale (Cohere, Granite). Some models multiply by it and some divide."""

_CAP = "final_logit_softcapping"
"""What configurations call a cap (Gemma 2)."""


@dataclass(frozen=True)
class LogitTransform:
    """Logits are multiplied by `scale`; or, with a cap, they become cap tanh(logits / cap), which stays below it."""

    scale: float = 1.0
    cap: float | None = None

    def apply(self, logits: Tensor) -> Tensor:
        """The model's logits, from those of its output layer."""
        return logits * self.scale if self.cap is None else torch.tanh(logits / self.cap) * self.cap


@torch.no_grad()
def logit_transform_of(model: PreTrainedModel) -> LogitTransform | None:
    """What comes after the model's output layer; None if that is not known.

    The configuration may name a scale or a cap. Whether the model uses it, and does nothing else, is found by running
    the model on a few tokens and trying each transform that the configuration allows.
    """
    head, body = model.get_output_embeddings(), model.base_model
    if type(head) is not nn.Linear or body is model:
        return None
    ids = torch.arange(1, 1 + min(8, head.out_features - 1), device=head.weight.device)[None]
    want = model(input_ids=ids, use_cache=False).logits
    hidden = body(input_ids=ids, use_cache=False)[0]
    if hidden.shape[-1] != head.in_features:
        return None
    settings, logits = model.config.get_text_config().to_dict(), head(hidden)
    scales = [settings[name] for name in _SCALES if settings.get(name)]
    candidates = [LogitTransform(scale=factor) for scale in scales for factor in (scale, 1 / scale)]
    candidates += [LogitTransform(cap=settings[_CAP])] if settings.get(_CAP) else []
    candidates.append(LogitTransform())
    tolerance = 4 * torch.finfo(logits.dtype).eps
    want = want.to(logits.dtype)
    return next((each for each in candidates if torch.allclose(each.apply(logits), want, tolerance, 0)), None)
