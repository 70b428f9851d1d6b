"""Samples in a terminal: the prompt, and below it what people and models answered, side by side."""

from collections.abc import Iterator, Sequence

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from spin_core.reports.samples import Response, Sample, Samples

WIDTH = 36
"""Columns of the terminal that a response gets at least, if it needs so many."""

STYLES = {"cut": "yellow", "empty": "red", "looping": "red", "same": "cyan"}

# A model's control characters are shown as signs: they could move the cursor, or worse.
VISIBLE = {code: 0x2400 + code for code in range(0x20) if code not in (0x09, 0x0A)} | {0x7F: 0x2421}

VISIBLE |= dict.fromkeys(range(0x80, 0xA0), 0xFFFD)


def pages(samples: Samples, places: Sequence[int], find: str, console: Console | None = None) -> Iterator[str]:
    """Each sample as it is to be printed, made when it is its turn. `find` is marked where it occurs."""
    console = console or Console(highlight=False)
    for place in places:
        sample = samples.sample(place)
        with console.capture() as said:
            console.rule(Text(f"{sample.number:,} of {len(samples):,}  {sample.id}"), style="dim", align="left")
            for turn in sample.turns:
                console.print(prompt(turn.role, turn.content, find))
            console.print()
            for table in responses(sample, find, console.width):
                console.print(table)
                console.print()
        yield said.get()


def prompt(role: str, content: str, find: str) -> Text:
    """A turn of the prompt."""
    text = shown(content, find)
    text.stylize("bold", 0)
    return Text.assemble((f"{role}: ", "dim"), text) if role else text


def responses(sample: Sample, find: str, width: int) -> Iterator[RenderableType]:
    """The responses side by side, as many beside one another as have room."""
    sides = [sample.real, *sample.answers]
    labels = [label(side) for side in sides]
    lines = [line for side in sides for line in side.text.splitlines()]
    widest = max(*(len(line) for line in lines), *(one.cell_len for one in labels), 1) + 2
    beside = max(1, min(len(sides), width // min(WIDTH, widest)))
    for first in range(0, len(sides), beside):
        table = Table(box=None, padding=(0, 2, 0, 0), expand=True)
        for number in range(first, first + beside):
            table.add_column(labels[number] if number < len(sides) else "", ratio=1, overflow="fold")
        table.add_row(*(shown(side.text.strip(), find) for side in sides[first : first + beside]))
        yield table


def label(side: Response) -> Text:
    """`θ_1  256 tokens  cut  margin +1.3`."""
    name = Text(side.name, style="bold green" if side.t is None else "bold blue")
    count = f"{side.tokens:,} token{'' if side.tokens == 1 else 's'}"
    parts = [name, Text(count, style="dim"), *(Text(mark, style=STYLES[mark]) for mark in side.marks)]
    if side.margin is not None:
        parts.append(Text(f"margin {side.margin:+.2f}", style="dim" if side.margin > 0 else "magenta"))
    return Text("  ").join(parts)


def shown(text: str, find: str) -> Text:
    """A model's or a person's text, which is never taken for markup or for a command to the terminal."""
    found = Text(text.translate(VISIBLE))
    if find:
        found.highlight_words([find], style="black on yellow", case_sensitive=False)
    return found
