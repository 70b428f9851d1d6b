"""Upload a folder to the hub: `hf://user/name`."""

import importlib.util
import re
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from spin_core.errors import ConfigError, TryAgain, first_line

SCHEME = "hf://"

_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def repository(url: str) -> str:
    """The name of the repository that a URL means. Raises `ConfigError` if it means none."""
    name = url.removeprefix(SCHEME)
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{url} is not a repository of the hub: write hf://user/name")
    return name


def upload(
    folder: Path, url: str, kind: Literal["model", "dataset"], *, private: bool, confirm: Callable[[str], bool]
) -> str:
    """Upload a folder as a repository of the hub, in one commit; large files that are there are not sent again.

    Args:
        folder: What to upload.
        url: `hf://user/name`.
        kind: The kind of the repository.
        private: Whether a new repository is private.
        confirm: Asked before an existing repository is changed.

    Returns:
        The address of the commit.

    Raises:
        ConfigError: The token is missing or may not write there, or the user does not confirm.
        TryAgain: The hub does not answer.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

    api, name = HfApi(), repository(url)
    try:
        if api.repo_exists(name, repo_type=kind):
            if not confirm(f"{url} exists: replace its files of the same names?"):
                raise ConfigError(f"{url} exists and is left as it is: choose another name, or confirm with --yes")
        else:
            api.create_repo(name, repo_type=kind, private=private)
        done = api.upload_folder(
            repo_id=name, repo_type=kind, folder_path=folder, commit_message=f"Upload {folder.name}"
        )
    except LocalTokenNotFoundError as error:
        raise ConfigError("the hub needs a token that may write: set HF_TOKEN, or run hf auth login") from error
    except OfflineModeIsEnabled as error:
        raise ConfigError("HF_HUB_OFFLINE is set, so nothing can be uploaded: unset it") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise ConfigError(
                f"the hub refuses {url} ({status}): set HF_TOKEN to a token that may write there"
            ) from error
        raise TryAgain(f"the hub did not take {url} ({first_line(error)}): run the same command again") from error
    except _network_errors() as error:
        raise TryAgain(f"the hub does not answer ({first_line(error)}): run the same command again") from error
    return str(done.commit_url)


def _network_errors() -> tuple[type[Exception], ...]:
    """The errors of the client by which the hub's library asks: `httpx2` in its newer versions, `httpx` before."""
    clients = [name for name in ("httpx", "httpx2") if importlib.util.find_spec(name)]
    return (ConnectionError, *(importlib.import_module(name).HTTPError for name in clients))
