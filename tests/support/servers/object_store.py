"""A local S3 server (moto's) in its own process, with a bucket that keeps every version of an object."""

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
        return Counter(version["Key"].removeprefix(f"{self.folder}/") for version in answer.get("Versions", ()))


@contextmanager
def serve(folder: Path) -> Iterator[Bucket]:
    """A running server with its bucket."""
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
    # The log goes to a file, because a pipe that is not read would fill up.
    with (folder / "moto.log").open("w") as log, subprocess.Popen(command, stderr=log, stdout=log) as server:
        try:
            environment = {**NO_ACCOUNT, **ACCOUNT, "AWS_ENDPOINT_URL": address(folder / "moto.log")}
            yield Bucket(environment, bucket(environment))
        finally:
            server.terminate()


def address(log: Path) -> str:
    """The address on which the server listens, from its log."""
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline:
        if match := re.search(r"http://127\.0\.0\.1:\d+", log.read_text()):
            return match[0]
        time.sleep(0.05)
    raise AssertionError(f"the server did not start: {log.read_text()}")


def bucket(environment: dict[str, str]) -> Any:
    """Create the bucket. Returns its driver."""
    import s3fs

    before = dict(os.environ)
    os.environ.update(environment)
    try:
        fs = s3fs.S3FileSystem(skip_instance_cache=True, use_listings_cache=False)
        fs.mkdir("models")
        settings = {"Status": "Enabled"}
        fs.call_s3("put_bucket_versioning", Bucket="models", VersioningConfiguration=settings)
        return fs
    finally:
        os.environ.clear()
        os.environ.update(before)
