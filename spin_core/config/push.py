"""Settings of the copy that a lineage has in a store."""

import re
from typing import Annotated

from pydantic import AfterValidator, WithJsonSchema

from spin_core.config.base import Frozen

STORE_URL = re.compile(r"[a-z][a-z0-9+.-]*://([^:@/?#]+@)?[^@?#]+")
"""A user's name may be in it, as in `abfs://container@account…`; a password, a key or a token may not."""


_NO_STORES = ("ftp", "http", "https", "data")


def check_url(url: str) -> str:
    """Return the URL of a folder in a store if it is valid. The error does not show it, since it may hold a secret."""
    if not STORE_URL.fullmatch(url):
        raise ValueError(
            "push.url must be like s3://bucket/folder, gs://bucket/folder, hf://buckets/me/name/folder or "
            "file:///mnt/backup, without passwords, keys or tokens: those belong in the environment"
        )
    protocol = url.partition("://")[0]
    if protocol in _NO_STORES:
        raise ValueError(
            f"push.url cannot begin with {protocol}://, where files cannot be replaced safely: use s3://, gs://, "
            "hf://, sftp:// or file://"
        )
    return url


StoreUrl = Annotated[
    str,
    AfterValidator(lambda url: url and check_url(url)),
    WithJsonSchema({"type": "string", "pattern": f"^({STORE_URL.pattern})?$"}),
]


class PushConfig(Frozen):
    """A copy of the lineage in a store, updated after every iteration. Credentials are read from the environment."""

    url: StoreUrl = ""
    """The folder for the copy, in any store that fsspec supports: `s3://bucket/spin`, `gs://…`, `hf://…`,
    `file:///mnt/backup`. The lineage's name is added to it. Empty makes no copy."""

    read_back: bool = True
    """Read every file back after the upload, and compare its SHA-256. Off: trust the store,
    which halves the traffic."""
