"""Samples in a terminal: the prompt, and below it what people and models answered, side by side."""

from collections.abc import Iterator, Sequence

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from spin_core.reports.samples import Response, Sample, Samples

_WIDTH = 36
"""Columns of the terminal that a response gets at least, if it needs them."""

_STYLES = {"cut": "yellow", "empty": "red", "looping": "red", "same": "cyan"}

# Control characters in a model's text could move the cursor or change the terminal, so they are printed as visible
# characters: C0 as their pictures in Unicode (␀ …), all but tab and line feed; DEL; and C1 as a replacement character.
_VISIBLE = {code: 0x2400 + code for code in range(0x20) if code not in (0x09, 0x0A)} | {0x7F: 0x2421}
_VISIBLE |= dict.fromkeys(range(0x80, 0xA0), 0xFFFD)


def pages(samples: Samples, places: Sequence[int], find: str, console: Console | None = None) -> Iterator[str]:
    """Each sample as text for the terminal, rendered when it is asked for. `find` is marked where it occurs."""
    console = console or Console(highlight=False)
    for place in places:
        sample = samples.sample(place)
        with console.capture() as output:
            console.rule(Text(f"{sample.number:,} of {len(samples):,}  {sample.id}"), style="dim", align="left")
            for turn in sample.turns:
                console.print(_prompt(turn.role, turn.content, find))
            console.print()
            for table in _responses(sample, find, console.width):
                console.print(table)
                console.print()
        yield output.get()


def _prompt(role: str, content: str, find: str) -> Text:
    """A turn of the prompt."""
    text = _safe_text(content, find)
    text.stylize("bold", 0)
    return Text.assemble((f"{role}: ", "dim"), text) if role else text


def _responses(sample: Sample, find: str, width: int) -> Iterator[RenderableType]:
    """Tables of the responses, as many side by side as fit in the width."""
    sides = [sample.real, *sample.answers]
    labels = [_label(side) for side in sides]
    lines = [line for side in sides for line in side.text.splitlines()]
    widest = max(*(len(line) for line in lines), *(label.cell_len for label in labels), 1) + 2
    per_table = max(1, min(len(sides), width // min(_WIDTH, widest)))
    for first in range(0, len(sides), per_table):
        table = Table(box=None, padding=(0, 2, 0, 0), expand=True)
        for number in range(first, first + per_table):
            table.add_column(labels[number] if number < len(sides) else "", ratio=1, overflow="fold")
        table.add_row(*(_safe_text(side.text.strip(), find) for side in sides[first : first + per_table]))
        yield table


def _label(side: Response) -> Text:
    """`θ_1  256 tokens  cut  margin +1.3`."""
    name = Text(side.name, style="bold green" if side.t is None else "bold blue")
    count = f"{side.tokens:,} token{'' if side.tokens == 1 else 's'}"
    words = [name, Text(count, style="dim"), *(Text(mark, style=_STYLES[mark]) for mark in side.marks)]
    if side.margin is not None:
        words.append(Text(f"margin {side.margin:+.2f}", style="dim" if side.margin > 0 else "magenta"))
    return Text("  ").join(words)


def _safe_text(text: str, find: str) -> Text:
    """Text of a model or a person: never read as markup, nor as a command to the terminal."""
    safe = Text(visible(text))
    if find:
        safe.highlight_words([find], style="black on yellow", case_sensitive=False)
    return safe


def visible(text: str) -> str:
    """Text with its control characters as visible ones, except tabs and line feeds."""
    return text.translate(_VISIBLE)
