"""Rows and models as users have them: each case has the result that is right, in `spin data`, `spin check` and a phase.

The cases are small files next to the real data, in the folder `cases`.
"""

import io
import json
import os
import re
from pathlib import Path
from typing import NamedTuple

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from flows.command_line.main import main
from spin_core.config.resolve import resolve
from spin_core.lineage import phase_jobs
from spin_core.lineage.lineage import Lineage
from spin_core.phases import prompts
from spin_core.runtime.progress import Progress
from spin_core.store.records import ModelVersion
from tests.support.helpers import ROOT

NATALIA = (
    "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May. "
    "How many clips did Natalia sell altogether in April and May?"
)
WENG = (
    "Weng earns $12 an hour for babysitting. Yesterday, she just did 50 minutes of babysitting. How much did she earn?"
)
CLIPS = "Natalia sold 48/2 = <<48/2=24>>24 clips in May."
END, OPEN = "<|im_end|>", "<|im_start|>assistant\n"


def turn(role: str, text: str) -> str:
    """A turn as the models' templates write it."""
    return f"<|im_start|>{role}\n{text}{END}\n"


class Right(NamedTuple):
    """What is made of a case."""

    train: int
    """Training prompts; four more are held out."""
    left_out: dict[str, int] = {}
    prompt: str = turn("user", NATALIA) + OPEN
    """The first prompt, as generation is given it."""
    response: str = CLIPS + END
    """What is trained after it."""
    unused: list[str] = []
    model: str = "multieos"
    sets: tuple[str, ...] = ()


class Refused(NamedTuple):
    """The line that a case ends in."""

    line: str
    model: str = "multieos"
    sets: tuple[str, ...] = ()


SHORT = ("prompts.max_prompt_tokens=128",)
THOUGHT = f"<think>\n{CLIPS}\n</think>\n\nIt is 72.{END}"
SYSTEM, ASK_AGAIN = turn("system", "You are a maths teacher."), turn("user", "And how is that done? (0)")
PLAIN = "m_[v2] data/train.jsonl"

CASES: dict[tuple[str, str], Right | Refused] = {
    ("data/a2_toolcall_empty.jsonl", ""): Right(35, {"tools-not-in-template": 1}),
    ("data/a_toolcall_null.jsonl", ""): Right(35, {"tools-not-in-template": 1}),
    ("data/a5_null_response.jsonl", ""): Right(35, {"empty-response": 1}),
    ("data/aa_unified_turns.parquet", ""): Right(36),
    ("data/b_parts.jsonl", ""): Right(36),
    ("data/c_alpaca_history.jsonl", ""): Right(
        36, prompt=SYSTEM + turn("user", NATALIA) + turn("assistant", "I can solve that.") + ASK_AGAIN + OPEN
    ),
    ("data/d_sharegpt_system.jsonl", ""): Right(
        36, prompt=turn("system", "You are a pirate. Answer as one.") + turn("user", NATALIA) + OPEN
    ),
    ("data/e_rename.jsonl", "onto a column that exists"): Refused(
        r"row 1: prompts\.columns gives question the name prompt, but prompt has that name too: give prompt another",
        sets=("prompts.columns={question: prompt, answer: response}",),
    ),
    ("data/e_rename.jsonl", "with the other column left out"): Right(
        36, unused=["prompt"], sets=("prompts.columns={question: prompt, answer: response, prompt: unused}",)
    ),
    ("data/f_mixed.jsonl", ""): Refused(r"row 21: the row has prompt and response, while others have messages: put"),
    ("data/g_firstrow.jsonl", ""): Right(
        35,
        {"empty-response": 1},
        prompt=turn("user", WENG) + OPEN,
        response=f"Weng earns 12/60 = $<<12/60=0.2>>0.2 per minute.{END}",
    ),
    ("data/h_wrapped.json", ""): Right(36),
    ("data/j3_tsfar.parquet", ""): Right(36, unused=["when"]),
    ("data/j6_corrupt.parquet", ""): Refused(r"is damaged at or after row 1 \(Corrupt snappy .*\): write it again"),
    ("data/k2_semicolon.csv", ""): Right(36),
    ("data/k3_duphdr.csv", ""): Refused(r"has two columns named response: rename one of them in the first line"),
    ("data/m_[v2] data", ""): Right(36),
    ("data/m_mixed", ""): Right(16, {"tools-not-in-template": 20}, unused=["extra"]),
    ("data/n_think.jsonl", "on a template that writes thoughts"): Right(36, response=THOUGHT, model="qwen3"),
    ("data/n_think.jsonl", "on a template that does not"): Right(36, response=THOUGHT),
    ("data/y_guanaco_multi.jsonl", ""): Right(
        34,
        {"prompt-too-long": 2},
        prompt=turn("user", NATALIA) + turn("assistant", CLIPS) + turn("user", "Are you sure?") + OPEN,
        response=f"Yes, I am.{END}",
    ),
    ("data/z_weight.jsonl", ""): Right(36),
    ("models/qwen3", ""): Right(
        23,
        {"prompt-too-long": 13},
        prompt=turn("user", NATALIA) + OPEN + "<think>\n\n</think>\n\n",
        model="qwen3",
        sets=SHORT,
    ),
    ("models/multieos", ""): Right(25, {"prompt-too-long": 11}, sets=SHORT),
    ("models/nonspecial", ""): Right(25, {"prompt-too-long": 11}, model="nonspecial", sets=SHORT),
    ("models/nomarkers", ""): Right(18, {"prompt-too-long": 18}, model="nomarkers", sets=SHORT),
    ("models/gemma3mm", ""): Right(25, {"prompt-too-long": 11}, model="gemma3mm", sets=SHORT),
}
RIGHT = [pytest.param(name, case, id=" ".join(name)) for name, case in CASES.items() if isinstance(case, Right)]
REFUSED = [pytest.param(name, case, id=" ".join(name)) for name, case in CASES.items() if isinstance(case, Refused)]


@pytest.fixture(scope="module")
def cases() -> Path:
    """The folder of the cases; skips where it is absent."""
    folder = Path(os.environ.get("SPIN_TEST_DATA", ROOT.parent / "shared" / "data")).parent / "cases"
    if not folder.exists():
        pytest.skip(f"no cases at {folder}: set SPIN_TEST_DATA to the folder next to it")
    return folder


def sets_of(cases: Path, name: tuple[str, str], case: Right | Refused) -> list[str]:
    """The settings of a case."""
    data = name[0] if name[0].startswith("data/") else f"data/{PLAIN}"
    return [
        *(f"model.path={cases / 'models' / case.model}", "model.device=cpu", "model.dtype=float32"),
        *(f"prompts.source={{path: '{cases / data}'}}", "prompts.held_out=4", "prompts.sample=null"),
        *("prompts.max_prompt_tokens=256", "generate.max_new_tokens=128", "evaluate.lm_eval.tasks=[]"),
        *("evaluate.main_metric=heldout_nll", *case.sets),
    ]


def spin(command: str, sets: list[str], *more: str) -> tuple[int, str]:
    """The exit status and the output of a command."""
    words = [word for setting in sets for word in ("--set", setting)]
    done = CliRunner().invoke(main, [command, "smollm2-135m", *words, *more])
    assert done.exception is None or isinstance(done.exception, SystemExit), repr(done.exception)
    return done.exit_code, done.output


def test_every_file_and_model_is_a_case(cases):
    present = {f"{folder}/{path.name}" for folder in ("data", "models") for path in (cases / folder).iterdir()}
    assert present == {name for name, _ in CASES}


@pytest.mark.parametrize(("name", "case"), RIGHT)
def test_a_case_is_shown_as_it_is_trained(cases, name, case, tmp_path):
    sets = sets_of(cases, name, case)
    status, output = spin("data", sets, "--json")
    assert status == 0, output
    (shown,) = json.loads(output)
    assert (shown["train"], shown["held_out"], shown["left_out"]) == (case.train, 4, case.left_out)
    assert shown["unused_columns"] == case.unused
    first = shown["samples"][0]
    assert (first["prompt"], first["response"]) == (case.prompt, case.response)
    config = resolve("smollm2-135m", sets=sets)
    version = ModelVersion(path=cases / "models" / case.model, digest="", t=0, parent=None)
    job = phase_jobs.prompts_job(Lineage(tmp_path, "case", config), version)
    record = prompts.run(job, tmp_path, Progress(out=io.StringIO()))
    assert (record["rows"], record["held_out"], record["drops"]) == (case.train, 4, case.left_out)
    assert pq.read_metadata(tmp_path / "train.parquet").num_rows == case.train


@pytest.mark.parametrize(("name", "case"), REFUSED)
def test_a_case_that_cannot_be_right_ends_in_one_line(cases, name, case):
    status, output = spin("data", sets_of(cases, name, case))
    assert status == 2
    assert len(output.strip().splitlines()) == 1
    assert re.search(case.line, output), output


@pytest.mark.slow
@pytest.mark.parametrize(("name", "case"), RIGHT + REFUSED)
def test_a_check_finds_what_the_phase_finds(cases, name, case):
    status, output = spin("check", sets_of(cases, name, case), "--json")
    texts = [finding["text"] for finding in json.loads(output)["findings"]]
    if isinstance(case, Refused):
        assert status == 2
        assert any(re.search(case.line, text) for text in texts), texts
        return
    assert status == 0, output
    lost = ", ".join(f"{number} {reason}" for reason, number in sorted(case.left_out.items()))
    assert f"{case.train} to train on and 4 held out" + (f"; left out: {lost}" if lost else "") in texts
    assert ("has no token for '<|im_end|>'" in output) == (case.model == "nomarkers")


@pytest.mark.slow
@pytest.mark.parametrize("model", ["gemma3mm", "multieos", "nomarkers", "nonspecial", "qwen3"])
def test_a_model_runs_an_iteration_and_keeps_its_ends(cases, model, player_in, tmp_path):
    data = "n_think.jsonl" if model == "qwen3" else PLAIN
    sizes = ["prompts.sample=16", "generate.max_new_tokens=48", "train.batch_size=8", "train.epochs=1", "controls={}"]
    loose = ["pairs.drop_empty=false", "pairs.drop_looping=false", "train.warmup=0", *SHORT]
    case = Right(0, model=model, sets=(*sizes, *loose))
    sets = [f"--set={setting}" for setting in sets_of(cases, (f"data/{data}", ""), case)]
    player = player_in(tmp_path / "runs")
    player.spin("run", "smollm2-135m", "--lineage", "one", "--iterations", "1", *sets, one_process=True)
    published = player.runs / "one" / "iter_00" / "model" / "generation_config.json"
    own = json.loads((cases / "models" / model / "generation_config.json").read_text())["eos_token_id"]
    kept = json.loads(published.read_text())["eos_token_id"]
    ends = [set(value if isinstance(value, list) else [value]) for value in (own, kept)]
    assert ends[0] <= ends[1]
    shard = next((player.runs / "one" / "iter_00" / "generations").glob("shard-*.parquet"))
    answers = pq.read_table(shard).to_pylist()
    assert answers
    assert not any("<|im_end|>" in answer["response"] for answer in answers)
