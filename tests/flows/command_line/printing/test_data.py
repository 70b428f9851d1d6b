"""What `spin data` prints fits the terminal, and marks the trained part without colour."""

import dataclasses

import pytest
from rich.console import Console

from flows.command_line.printing import data as printing
from spin_core.reports.data_preview import QUANTILES, SampleRow, SourcePreview

LENGTHS = dict.fromkeys(QUANTILES, 7)
SAMPLE = SampleRow(
    prompt="<s>Why\nnot? \n", response=" because" + " it is so" * 30 + "\x1b[31m</s>", prompt_tokens=5,
    response_tokens=1234, cut=True,
)  # fmt: skip
SOURCE = SourcePreview(
    name="mine.jsonl", use="train and held out", rows=1000, read=500, train=900, held_out=32,
    left_out={"empty-response": 60, "duplicate": 8}, fixes={"empty-response": "give rows with a response"},
    unused_columns=["id", "[bold]"], prompt_tokens=LENGTHS, response_tokens=LENGTHS, max_prompt_tokens=512,
    max_new_tokens=256, cut=0.4, samples=[SAMPLE],
)  # fmt: skip


@pytest.fixture
def printed(monkeypatch):
    """What is printed for sources in a terminal of some width."""

    def print_in(width: int, *sources: SourcePreview, full: bool = False) -> list[str]:
        console = Console(width=width, highlight=False, record=True, force_terminal=False)
        monkeypatch.setattr(printing, "console", console)
        with console.capture() as output:
            printing.print_sources(sources, full=full)
        return output.get().splitlines()

    return print_in


@pytest.mark.parametrize("width", [80, 100, 200])
def test_every_line_fits(printed, width):
    lines = printed(width, SOURCE)
    assert max(len(line) for line in lines) <= width
    assert sum("▌" in line for line in lines) > 2


def test_prompt_and_trained_part_have_gutters_of_their_own(printed):
    lines = printed(80, SOURCE)
    assert "  prompt │ <s>Why↵" in lines
    assert "         │ not?·↵" in lines
    assert any(line.startswith(" trained ▌ ·because it is so it is so") for line in lines)
    assert lines[lines.index("  prompt │ <s>Why↵") - 1] == "1  5 + 1,234 tokens, cut at 256: its end is not trained"


def test_numbers_reasons_and_columns_are_listed(printed):
    text = "\n".join(line.rstrip() for line in printed(80, SOURCE))
    assert "1,000 rows: 900 prompts with a response to train on, 32 held out (judged" in text
    assert "60  empty-response  give rows with a response\n 8  duplicate\n" in text
    assert "columns without influence: id, [bold]\n" in text
    assert "40% of the responses are cut: raise generate.max_new_tokens" in text


def test_a_long_text_is_shown_from_both_ends_or_whole(printed):
    long = dataclasses.replace(SAMPLE, response="\n".join(f"line {i}" for i in range(50)))
    source = dataclasses.replace(SOURCE, samples=[long])
    shortened = "\n".join(printed(80, source))
    assert "line 0↵" in shortened
    assert "line 49" in shortened
    assert "line 25" not in shortened
    assert "… 38 more lines: --full shows them …" in shortened
    assert "line 25↵" in "\n".join(printed(80, source, full=True))


def test_a_text_cannot_command_the_terminal(printed):
    assert "\x1b" not in "\n".join(printed(80, SOURCE, full=True))


def test_a_preference_is_shown_with_both_sides(printed):
    sample = dataclasses.replace(SAMPLE, response="So.</s>", rejected="No.</s>", rejected_tokens=4, cut=False)
    text = "\n".join(printed(80, dataclasses.replace(SOURCE, use="preferences for DPO", samples=[sample])))
    assert "  chosen ▌ So.</s>\nrejected ▌ No.</s>" in text
    assert "1  5 + 1,234 or 4 tokens" in text
    assert "1,000 rows: 900 preferences to train on" in text
