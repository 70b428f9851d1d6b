"""Start the ranks of a training or a scoring with torchrun."""

import contextlib
import logging
import os
import signal
import socket
import sys
from pathlib import Path
from typing import NoReturn

from spin_core import errors
from spin_core.config.train import SpeedConfig
from spin_core.runtime import grace, launch, process, ranks
from spin_core.store import identity
from spin_core.store.jobs import Job

log = logging.getLogger("spin_core")

NODE_RANK = "SPIN_NODE_RANK"
"""The environment variable with the number of this node, from 0, when several train together. Node 0 runs the flow."""


def start_ranks(job: Job, job_file: Path, speed: SpeedConfig) -> NoReturn:
    """Become torchrun: start this node's ranks, wait for all, and exit as the first that failed, or with 0.

    torchrun puts each rank into a session of its own, so signals to the process group of this process do not reach it.
    Therefore each rank asks the kernel to end it with this process (`process.die_with_parent`).

    Args:
        job: What the ranks do.
        job_file: The file with the job.
        speed: How many ranks and nodes there are, and where they join.

    Raises:
        TryAgain: torchrun could not start the ranks.
    """
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    node = int(os.environ.get(NODE_RANK, "0"))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    os.environ |= {**process.DEFAULTS, "OMP_NUM_THREADS": str(max(1, cores // speed.ranks)), **os.environ}
    os.environ["SPIN_PARENT"] = str(os.getpid())
    if network := _interface_to(speed.rendezvous.rpartition(":")[0] or "127.0.0.1"):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", network)
    if speed.nodes > 1 and node == 0:
        line = " ".join(launch.command(job_file, job.phase))
        log.info(
            "this is node 0 of %d: on each other node, run %s=1 %s, with its own number", speed.nodes, NODE_RANK, line
        )
    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)  # failures are reported below
    try:
        run.main(rank_arguments(job, job_file, speed, node))
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        if failure.exitcode == -signal.SIGKILL:
            os.kill(os.getpid(), signal.SIGKILL)  # so that the parent sees a kill
        sys.exit(failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode)
    except SignalException:
        sys.exit(errors.Stopped.exit_code)
    except RuntimeError as error:
        raise errors.TryAgain(
            f"the ranks could not be started ({(str(error).splitlines() or [type(error).__name__])[0]}): see that "
            f"{speed.rendezvous or 'this machine'} can be reached and that its port is free"
        ) from error
    sys.exit(0)


def rank_arguments(job: Job, job_file: Path, speed: SpeedConfig, node: int) -> list[str]:
    """The arguments of torchrun on one node. The id keeps nodes apart that were started for different jobs."""
    name = ranks.RUN_ID + identity.digest_of(job.model_dump(mode="json"))[:16]
    host, _, port = speed.rendezvous.rpartition(":")
    module = sys.modules["__main__"].__spec__  # None for a phase that is a script
    rendezvous = (
        ["--node-rank", str(node), "--master-addr", host, "--master-port", port]
        if speed.nodes > 1
        else ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", "--local-addr", "127.0.0.1"]
    )
    return [
        "--nnodes", str(speed.nodes),
        "--nproc-per-node", str(speed.ranks),
        "--log-dir", os.devnull,  # ranks print into this process's log; torchrun would leave an empty folder in /tmp
        "--rdzv-id", name,
        "--rdzv-conf", f"timeout={int(ranks.TIMEOUT.total_seconds())}",
        *(["--shutdown-timeout", str(int(grace.grace_of(job)))] if torchrun_has("--shutdown-timeout") else []),
        *rendezvous,
        *(["--module", module.name] if module else [str(Path(sys.argv[0]).resolve())]),
        str(job_file),
    ]  # fmt: skip


def torchrun_has(option: str) -> bool:
    """Whether this version of torchrun has an option."""
    from torch.distributed import run

    return any(option in action.option_strings for action in run.get_args_parser()._actions)


def _interface_to(host: str) -> str:
    """The network interface from which a host is reached; empty if it cannot be found.

    Without it gloo takes the interface of this machine's own name, which other nodes may be unable to reach.
    """
    if sys.platform != "linux":
        return ""
    import fcntl

    SIOCGIFADDR = 0x8915
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, 9))  # sends nothing
        own_address = socket.inet_aton(probe.getsockname()[0])
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):
                if fcntl.ioctl(probe, SIOCGIFADDR, name.encode().ljust(256, b"\0"))[20:24] == own_address:
                    return name
    return ""
