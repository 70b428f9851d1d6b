"""Tasks on a Ray cluster whose machines see the runs folder under the same path, through prefect-ray."""

import contextlib
from collections.abc import Iterator
from typing import Any, Protocol

from prefect.tasks import Task

from spin_core.config.generate import RayConfig
from spin_core.errors import ConfigError, TryAgain, first_line

LOOK_SECONDS = 1.0
"""How long a look at a task on the cluster may wait for its end."""


class Future(Protocol):
    """What is asked of Prefect's futures."""

    def wait(self, timeout: float | None = None) -> None:
        """Return when the task has ended, or after so many seconds."""

    def result(self, timeout: float | None = None, raise_on_failure: bool = True) -> Any:
        """What the task gave, or its error; `TimeoutError` while it is at work."""


class Runner(Protocol):
    """What is asked of prefect-ray's task runner."""

    def submit(self, task: Task[..., Any], parameters: dict[str, Any]) -> Future:
        """Have a task run on the cluster."""


@contextlib.contextmanager
def runner_on(ray: RayConfig, section: str, restarts: int) -> Iterator[Runner]:
    """What runs tasks on the cluster while this lasts, each with its GPUs.

    A task whose process has died, alone or with its machine, is begun again so often, always if that is -1; one that
    failed is Prefect's to retry. `section` is whose settings these are.
    """
    try:
        from prefect_ray import RayTaskRunner
        from prefect_ray.context import remote_options
    except ImportError as error:
        raise ConfigError(
            f"{section}.speed.ray needs prefect-ray, which is not installed: install Spin with its extra `ray`, or set "
            f"{section}.speed.ray to null"
        ) from error
    with contextlib.ExitStack() as stack:
        try:
            runner = stack.enter_context(RayTaskRunner(address=ray.address))
        except ConnectionError as error:
            raise TryAgain(
                f"the Ray cluster of {section}.speed.ray cannot be reached ({first_line(error)}): see that it is up, "
                "and that RAY_AUTH_MODE=token is set if it wants a token"
            ) from error
        stack.enter_context(remote_options(num_gpus=ray.gpus, max_retries=restarts))
        yield runner


def has_ended(future: Future, seconds: float = LOOK_SECONDS) -> bool:
    """Whether a task has ended, as it turns out within so many seconds."""
    future.wait(seconds)
    try:
        future.result(0, raise_on_failure=False)
    except TimeoutError:
        return False
    return True
