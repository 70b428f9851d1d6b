"""Two machines on this one: network namespaces with an address each, joined by a cable. Needs root and `ip`."""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator

import pytest

ADDRESSES = ("10.213.77.1", "10.213.77.2")


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=20)


@contextlib.contextmanager
def two_nodes() -> Iterator[tuple[list[str], list[str]]]:
    """What to put before a command so that it runs on the one node or the other. Skips where there can be none."""
    if shutil.which("ip") is None:
        pytest.skip("there is no ip command to make network namespaces with")
    names = [f"spin-{os.getpid()}-{node}" for node in range(2)]
    with contextlib.ExitStack() as made:
        try:
            for name in names:
                ip("netns", "add", name)
                made.callback(subprocess.run, ["ip", "netns", "del", name], check=False, timeout=20)
            # The two ends have one name: the namespaces are strangers to each other.
            ip("link", "add", "cable", "netns", names[0], "type", "veth", "peer", "name", "cable", "netns", names[1])
            for name, address in zip(names, ADDRESSES, strict=True):
                ip("-n", name, "addr", "add", f"{address}/24", "dev", "cable")
                for link in ("cable", "lo"):
                    ip("-n", name, "link", "set", link, "up")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"network namespaces cannot be made here: {error.stderr.decode().strip()}")
        yield tuple(["ip", "netns", "exec", name] for name in names)
