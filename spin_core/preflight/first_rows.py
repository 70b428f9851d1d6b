"""The check of the data before every run: each source exists, and its first rows have a layout that can be read.

`spin check` and `spin data` read more rows. This reads one part of each source, so that a wrong path or wrong columns
are reported before anything is computed.
"""

from spin_core.config.data import PromptsConfig, SourceConfig
from spin_core.config.run import RunConfig
from spin_core.data.formats.columns import PREFERENCES, wanted_columns
from spin_core.data.sources import DEMO, no_rows, on_hub, open_source
from spin_core.preflight.data import rows_on_hub


def check_first_rows(config: RunConfig) -> None:
    """Raise `DataError` unless all data exist and the first rows of the SFT data are prompts with responses.

    Of a data set on the hub only the name is checked. Its rows are read by the phase that fetches them.
    """
    prompts, dpo = config.prompts, config.controls.dpo
    if not prompts.is_demo:
        for name, part in prompts.parts().items():
            setting = "prompts" if prompts.sources is None else f"prompts.sources.{name}"
            _check_rows(part, part.source, "prompts.source" if prompts.sources is None else setting, setting)
    if prompts.held_out_source is not None:
        _check_rows(prompts, prompts.held_out_source, "prompts.held_out_source", "prompts")
    if dpo is not None and dpo.source.path != DEMO and not on_hub(dpo.source):
        open_source(dpo.source, "controls.dpo.source", wanted_columns(dpo.columns, PREFERENCES))


def _check_rows(config: PromptsConfig, source: SourceConfig, path_setting: str, setting: str) -> None:
    """Raise `DataError` if a source does not exist, is empty, or its first rows cannot be read.

    Args:
        config: the layout of the rows.
        source: the source to read.
        path_setting: where the configuration names the source, for messages.
        setting: where the configuration has the layout, for messages.
    """
    from spin_core.data.conversations import ConversationReader

    if on_hub(source):
        rows_on_hub(source, path_setting)
        return
    parts, _ = open_source(source, path_setting, wanted_columns(config.columns))
    first = next(parts, None)
    if not first:
        raise no_rows(source, path_setting)
    ConversationReader(config, source.path, setting).read(first)
