"""Tasks on a Ray cluster whose machines see the runs folder under the same path, through prefect-ray."""

import contextlib
from collections.abc import Iterator
from typing import Any, Protocol

from prefect.tasks import Task

from spin_core.config.generate import RayConfig
from spin_core.errors import ConfigError, TryAgain, first_line

LOOK_SECONDS = 1.0
"""How long one check of a task on the cluster waits for its end."""


class Future(Protocol):
    """The interface of Prefect's futures that is used here."""

    def wait(self, timeout: float | None = None) -> None:
        """Return when the task has ended, or after `timeout` seconds."""

    def result(self, timeout: float | None = None, raise_on_failure: bool = True) -> Any:
        """Return the task's result or its error; raise `TimeoutError` while it is running."""


class Runner(Protocol):
    """The interface of prefect-ray's task runner that is used here."""

    def submit(self, task: Task[..., Any], parameters: dict[str, Any]) -> Future:
        """Run a task on the cluster."""


@contextlib.contextmanager
def runner_on(ray: RayConfig, section: str, restarts: int) -> Iterator[Runner]:
    """Provide a runner of tasks on the cluster, each with its GPUs.

    Args:
        ray: The cluster, and the GPUs of each task.
        section: The section of the configuration that these settings belong to, for messages.
        restarts: How often a task whose process died, alone or with its machine, is started again; -1 for no limit.
            A task that failed with an error is retried by Prefect.
    """
    try:
        from prefect_ray import RayTaskRunner
        from prefect_ray.context import remote_options
    except ImportError as error:
        raise ConfigError(
            f"{section}.speed.ray needs prefect-ray, which is not installed: install spin-loop with its extra `ray`, "
            f"or set {section}.speed.ray to null"
        ) from error
    with contextlib.ExitStack() as stack:
        try:
            runner = stack.enter_context(RayTaskRunner(address=ray.address))
        except ConnectionError as error:
            raise TryAgain(
                f"the Ray cluster of {section}.speed.ray cannot be reached ({first_line(error)}): check that it is "
                "running, and that RAY_AUTH_MODE=token is set if it needs a token"
            ) from error
        stack.enter_context(remote_options(num_gpus=ray.gpus, max_retries=restarts))
        yield runner


def has_ended(future: Future, seconds: float = LOOK_SECONDS) -> bool:
    """Wait for a task for at most `seconds`, and return whether it has ended."""
    future.wait(seconds)
    try:
        future.result(0, raise_on_failure=False)
    except TimeoutError:
        return False
    return True
