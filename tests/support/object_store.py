"""An S3 server on this machine, moto's, in a process of its own, and a bucket in it that keeps every version."""

import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NO_ACCOUNT = {"AWS_EC2_METADATA_DISABLED": "true", "AWS_CONFIG_FILE": "/none", "AWS_SHARED_CREDENTIALS_FILE": "/none"}
ACCOUNT = {"AWS_ACCESS_KEY_ID": "tester", "AWS_SECRET_ACCESS_KEY": "not-a-secret", "AWS_DEFAULT_REGION": "us-east-1"}


@dataclass(frozen=True)
class Bucket:
    """A folder in a bucket named `models`."""

    environment: dict[str, str]
    fs: Any
    folder: str = "spin"

    @property
    def url(self) -> str:
        return f"s3://models/{self.folder}"

    def versions(self) -> Counter[str]:
        """How often each object below the folder was written."""
        answer = self.fs.call_s3("list_object_versions", Bucket="models", Prefix=f"{self.folder}/")
        return Counter(one["Key"].removeprefix(f"{self.folder}/") for one in answer.get("Versions", ()))


@contextmanager
def serve(folder: Path) -> Iterator[Bucket]:
    """The server while this lasts."""
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
    # Its log goes to a file: nobody would read a pipe.
    with (folder / "moto.log").open("w") as log, subprocess.Popen(command, stderr=log, stdout=log) as server:
        try:
            environment = {**NO_ACCOUNT, **ACCOUNT, "AWS_ENDPOINT_URL": address(folder / "moto.log")}
            yield Bucket(environment, bucket(environment))
        finally:
            server.terminate()


def address(log: Path) -> str:
    """Where the server listens."""
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline:
        if found := re.search(r"http://127\.0\.0\.1:\d+", log.read_text()):
            return found[0]
        time.sleep(0.05)
    raise AssertionError(f"the server did not start: {log.read_text()}")


def bucket(environment: dict[str, str]) -> Any:
    """Make the bucket; returns its driver."""
    import s3fs

    had = dict(os.environ)
    os.environ.update(environment)
    try:
        fs = s3fs.S3FileSystem(skip_instance_cache=True, use_listings_cache=False)
        fs.mkdir("models")
        settings = {"Status": "Enabled"}
        fs.call_s3("put_bucket_versioning", Bucket="models", VersioningConfiguration=settings)
        return fs
    finally:
        os.environ.clear()
        os.environ.update(had)
