"""The settings of a lineage's copy."""

import pytest
from click.testing import CliRunner

from flows.command_line.main import main
from spin_core.config.push import PushConfig
from spin_core.config.resolve import resolve
from spin_core.errors import ConfigError
from spin_core.lineage.lineage import Lineage
from tests.support.lineages.small_lineage import NLLS, build_lineage


@pytest.fixture(scope="module")
def lineage(tmp_path_factory: pytest.TempPathFactory) -> Lineage:
    """A lineage of one iteration."""
    return build_lineage(tmp_path_factory.mktemp("runs"), nlls=NLLS[:2])


@pytest.mark.parametrize("url", ["s3://AKIA:hush@bucket/x", "sftp://me:hush@host/x", "https://host/x?token=hush", "x"])
def test_a_url_with_a_secret_is_rejected_and_not_repeated(url, lineage):
    with pytest.raises(ConfigError, match=r"push\.url must be like s3://") as raised:
        resolve("demo", sets=[f"push.url={url}"])
    done = CliRunner().invoke(main, ["push", "tale", url, "--runs", str(lineage.runs)])
    assert (done.exit_code, len(done.stderr.splitlines())) == (2, 1)
    assert "hush" not in str(raised.value) + done.output


@pytest.mark.parametrize("url", ["s3://b/x", "abfs://box@account.dfs.core.windows.net/x", "file:///mnt/x", ""])
def test_urls_without_secrets_are_accepted(url):
    assert PushConfig(url=url).url == url
