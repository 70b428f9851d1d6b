"""What `spin data` prints: the first rows with the trained part marked, and what becomes of each source.

The mark is a gutter next to the text, so that it needs no colour and stays in a copy of the terminal.
"""

from collections.abc import Iterator, Sequence

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from flows.command_line.printing.console import console
from flows.command_line.printing.samples import visible
from spin_core.errors import count, printable
from spin_core.reports.data_preview import QUANTILES, SampleRow, SourcePreview

_LABELS = {
    "prompt": ("  prompt │ ", "dim", ""),
    "trained": (" trained ▌ ", "bold green", "green"),
    "chosen": ("  chosen ▌ ", "bold green", "green"),
    "rejected": ("rejected ▌ ", "bold red", "red"),
}
"""The gutter of each part, its style, and the style of the text."""

_WIDEST = 120
"""The most columns of the terminal that are used. Longer lines are hard to read."""

_FIRST, _LAST = 8, 4
"""How many of a long text's lines are shown from its beginning and from its end."""

_MOST_CHARACTERS = 200_000
"""The most characters of a text that are shown with `--full`."""


def print_sources(sources: Sequence[SourcePreview], *, full: bool) -> None:
    """Print each source: its first rows, then its numbers."""
    width = min(console.width, _WIDEST)
    if any(source.samples for source in sources):
        console.print(
            "[dim]│ prompt[/]   [bold green]▌[/][dim] trained   ↵ line break   · space at a line's edge[/]\n",
            width=width,
        )
    for source in sources:
        console.rule(Text(f"{printable(source.name, 60)}: {source.use}", style="bold"), align="left", style="dim")
        console.print()
        for number, sample in enumerate(source.samples, start=1):
            _print_sample(sample, number, source, width, full)
        _print_numbers(source, width)


def _print_sample(sample: SampleRow, number: int, source: SourcePreview, width: int, full: bool) -> None:
    """One row, with a gutter before each line."""
    cut = f", cut at {source.max_new_tokens}: its end is not trained" if sample.cut else ""
    parts = [("prompt", sample.prompt), ("trained" if sample.rejected is None else "chosen", sample.response)]
    lengths = f"{sample.response_tokens:,}"
    if sample.rejected is not None:
        parts.append(("rejected", sample.rejected))
        lengths += f" or {sample.rejected_tokens:,}"
    sizes = f"{sample.prompt_tokens:,} + {lengths} tokens"
    console.print(f"[bold]{number}[/]  [dim]{sizes}[/][yellow]{cut}[/]", width=width)
    for part, content in parts:
        label, label_style, style = _LABELS[part]
        for index, line in enumerate(_lines(content, width - len(label), full)):
            gutter = label if index == 0 else " " * (len(label) - 2) + label[-2:]
            console.print(Text.assemble((gutter, label_style), (line, style)), no_wrap=True, crop=True, width=width)
    console.print()


def _lines(content: str, width: int, full: bool) -> list[str]:
    """A text as lines of at most `width` columns, with visible line breaks; the middle of a long one is left out."""
    lines: list[str] = []
    breaks = content[:_MOST_CHARACTERS].split("\n")
    for index, line in enumerate(breaks):
        is_last = index == len(breaks) - 1
        if is_last and not line and index:
            break  # the text ends in a line break, which is shown already
        lines += _wrap(_mark_edges(visible(line)) + ("" if is_last else "↵"), width)
    if full or len(lines) <= _FIRST + _LAST + 1:
        return lines
    left = len(lines) - _FIRST - _LAST
    return [*lines[:_FIRST], f"… {count(left, 'more line')}: --full shows them …", *lines[-_LAST:]]


def _mark_edges(line: str) -> str:
    """Make spaces at both edges of a line visible."""
    bare = line.strip(" ")
    if not bare:
        return "·" * len(line)
    before, after = len(line) - len(line.lstrip(" ")), len(line) - len(line.rstrip(" "))
    return "·" * before + bare + "·" * after


def _wrap(line: str, width: int) -> Iterator[str]:
    """Break a line between words, or within a word that is too long."""
    for wrapped in Text(line).wrap(console, max(width, 10), overflow="fold", tab_size=4) or [Text()]:
        yield wrapped.plain.rstrip(" ")


def _print_numbers(source: SourcePreview, width: int) -> None:
    """How many rows there are, what is left out, and how long texts are."""
    kept = {
        "held out": [f"{count(source.held_out, 'prompt')} held out"],
        "preferences for DPO": [f"{count(source.train, 'preference')} to train on"],
    }
    train, held_out = f"{count(source.train, 'prompt')} with a response to train on", f"{source.held_out:,} held out"
    parts = kept.get(source.use, [train] if source.use == "train" else [train, held_out])
    basis = f" (judged by the first {source.read:,})" if source.read < source.rows else ""
    console.print(f"[bold]{count(source.rows, 'row')}[/]: {', '.join(parts)}{basis}", width=width)
    if source.left_out:
        table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
        table.add_column(justify="right")
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for reason, number in source.left_out.items():
            table.add_row(f"{number:,}", reason, f"[dim]{escape(source.fixes.get(reason, ''))}[/]")
        console.print("\nleft out")
        console.print(table, width=width)
    if source.unused_columns:
        names = ", ".join(printable(name, 40) for name in source.unused_columns)
        console.print(f"\ncolumns without influence: {escape(names)}", width=width)
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("tokens")
    for name in QUANTILES:
        table.add_column(name, justify="right")
    table.add_column("limit", justify="right")
    for title, values, limit in (
        ("prompt", source.prompt_tokens, source.max_prompt_tokens),
        ("trained", source.response_tokens, source.max_new_tokens),
    ):
        table.add_row(title, *(f"{values[name]:,}" for name in QUANTILES), f"{limit:,}")
    console.print()
    console.print(table, width=width)
    if source.cut:
        console.print(
            f"[yellow]{source.cut:.0%} of the responses are cut: raise generate.max_new_tokens, "
            "so that the player sees how they end[/]",
            width=width,
        )
    console.print()
