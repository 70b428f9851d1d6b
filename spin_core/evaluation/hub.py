"""Whether this process may ask the hub, and whether the hub answers."""

import os
import sys

import huggingface_hub


def go_offline() -> None:
    """Keep this process from asking the hub. The hub's library reads its settings only when it is imported."""
    os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")
    huggingface_hub.constants.HF_HUB_OFFLINE = True
    if "datasets" in sys.modules:
        sys.modules["datasets"].config.HF_HUB_OFFLINE = True


def is_hub_reachable() -> bool:
    """Return whether the hub may be asked and answers within seconds. If it does, there is a network."""
    import httpx

    if huggingface_hub.constants.HF_HUB_OFFLINE:
        return False
    try:
        httpx.head(huggingface_hub.constants.ENDPOINT, timeout=5.0)
    except httpx.HTTPError:
        return False
    return True
