"""Settings of the copy that a lineage has in a store."""

import re
from typing import Annotated

from pydantic import AfterValidator, WithJsonSchema

from spin_core.config.base import Frozen

STORE_URL = re.compile(r"[a-z][a-z0-9+.-]*://([^:@/?#]+@)?[^@?#]+")
"""A user's name may be in it, as in `abfs://container@account…`; a password, a key or a token may not."""


def check_url(url: str) -> str:
    """The URL of a folder in a store. The error leaves out what was given, since that may be a secret."""
    if not STORE_URL.fullmatch(url):
        raise ValueError(
            "push.url must be like s3://bucket/folder, gs://bucket/folder, hf://buckets/me/name/folder or "
            "file:///mnt/backup, without passwords, keys or tokens: those belong in the environment"
        )
    return url


StoreUrl = Annotated[
    str,
    AfterValidator(lambda url: url and check_url(url)),
    WithJsonSchema({"type": "string", "pattern": f"^({STORE_URL.pattern})?$"}),
]


class PushConfig(Frozen):
    """A copy of the lineage in a store, brought up to date after every iteration. Credentials are the environment's."""

    url: StoreUrl = ""
    """The folder that shall hold the copy, for anything that fsspec reaches: `s3://bucket/spin`, `gs://…`, `hf://…`,
    `file:///mnt/backup`. The lineage's name is added to it. Empty makes no copy."""

    read_back: bool = True
    """Read every file back once it is there, and compare its SHA-256. Off, the store's word is taken for it, which
    halves the traffic."""
