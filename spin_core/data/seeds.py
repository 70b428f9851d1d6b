"""Random seeds that are derived from names and numbers."""

import hashlib
import json


def seed_of(*parts: str | int) -> int:
    """A seed of 64 bits from a digest of the parts: the same on every machine, another for other parts."""
    return int.from_bytes(hashlib.sha256(json.dumps(parts).encode()).digest()[:8], "big")
