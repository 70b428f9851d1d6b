"""Phase `evaluate`: the player answers the held-out prompts, and what it says is scored. Suite `self-play`.

    heldout_nll         nats a token of the human responses, each response's mean; lower is better
    reward_margin       log p/p_opponent of the human response less that of the opponent's, without beta
    reward_accuracy     how often that margin is positive; .5 when the player is its opponent
    real_tokens         mean length of the human responses
    generated_tokens    and of the player's
    ipm                 the integral probability metric that the player estimates, see below
    length_classifier   accuracy of telling the two apart by length alone; .5 is best, 1 means length gives it away
    text_classifier     accuracy of telling them apart by their words and characters, .5 is best; a note says how likely
                        so much would be by chance (`texts.text_classifier`, a two-sample test)
    distinct_1, distinct_2, distinct_3    different words, word pairs and triples over all of the player's responses
                        together, if there are any; it falls as responses are added, so compare equal numbers of
                        prompts. An item is one response's part in it (`texts.distinct`)
    repeated_trigrams   share of a response's word trigrams that it has said before
    looping_share, cut_share, empty_share     responses that loop, that were cut, that hold no text
    total_variation, invalid_mass, forward_kl     distance to p_data, where it is known (`exact`), of the player as it
                        samples: at `evaluate.temperature`. Likelihoods and rewards are the model's own, at 1

The main player looks for the f in its class that parts p_data and p_θt most: E f(x, y) − E f(x, y') over human y and
the opponent's y' (eq. 4.1). Its class is λ log p_θ/p_θt, so what it has found is λ times `ipm`, the mean of
log p/p_opponent over the human responses less that over the opponent's, here on prompts that it was not trained on. It
is 0 for a player that is its opponent, and 0 but for chance for any player whose opponent is p_data: as the game
converges it falls to 0.
`reward_margin` leaves out the pairs with equal tokens on both sides, since it asks how well a player tells what can be
told; to the metric they are samples like all others, so `ipm` counts them, with a difference of 0.

Writes `held_out.parquet`, the responses with their log-probabilities, and `items.parquet`, one row for each score and
prompt, so that versions can be compared prompt by prompt. Every version is asked with the same random numbers.
"""

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import transformers
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from spin_core import demo, store
from spin_core.config import at
from spin_core.engine import transformers_engine
from spin_core.errors import DataError
from spin_core.exact import FORWARD_KL, INVALID_MASS, TOTAL_VARIATION, exact_distances
from spin_core.generate import answers, requests_for, stop_ids, texts
from spin_core.hygiene import lengths
from spin_core.jobs import EvaluateJob
from spin_core.logps import sequence_logps
from spin_core.models import load_model, load_tokenizer
from spin_core.pairs import is_looping
from spin_core.phase import Progress, main
from spin_core.records import EvalReport, Score
from spin_core.texts import (
    distinct,
    distinct_shares,
    length_classifier,
    repeated_trigrams,
    text_classifier,
    two_sample_p,
)

Floats = npt.NDArray[np.float64]
Values = dict[str, Floats]
"""A score's value at each held-out prompt; NaN where the prompt does not count."""

LOWER_IS_BETTER = {
    "heldout_nll",
    "length_classifier",
    "text_classifier",
    "repeated_trigrams",
    "looping_share",
    "cut_share",
    "empty_share",
    TOTAL_VARIATION,
    INVALID_MASS,
    FORWARD_KL,
}

NEITHER_IS_BETTER = {"real_tokens", "reward_margin", "reward_accuracy", "ipm"}
"""The data's own, and what is told against an opponent, which is another for each version."""

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("prompt", pa.string()),
        ("real", pa.string()),
        ("generated", pa.string()),
        ("prompt_ids", pa.list_(pa.int32())),
        ("real_ids", pa.list_(pa.int32())),
        ("generated_ids", pa.list_(pa.int32())),
        ("finish_reason", pa.string()),
        ("real_logps", pa.float32()),
        ("generated_logps", pa.float32()),
    ]
)


class Player:
    """A model version with what it takes to ask it."""

    def __init__(self, job: EvaluateJob) -> None:
        self.job = job
        self.model: PreTrainedModel = load_model(job.player.path, job.model)
        self.tokenizer: PreTrainedTokenizerBase = load_tokenizer(job.player.path, job.model)
        self.stop_ids = stop_ids(job.prompts, self.tokenizer)
        self.temperature = at(job.generate.temperature, job.player.t)

    def logps(self, prompt_ids: list[list[int]], response_ids: list[list[int]]) -> Floats:
        """log p(response | prompt) of each pair, (N,): the model's own, whatever temperature it samples at."""
        logps_N = sequence_logps(
            self.model, prompt_ids, response_ids, self.micro_batch_tokens(prompt_ids, response_ids)
        )
        return np.asarray(logps_N.double().numpy())

    def micro_batch_tokens(self, prompt_ids: list[list[int]], response_ids: list[list[int]]) -> int:
        """Room for `evaluate.batch_size` of the longest rows."""
        rows = zip(prompt_ids, response_ids, strict=True)
        return self.job.config.batch_size * max((len(prompt) + len(response) for prompt, response in rows), default=1)


def run(job: EvaluateJob, scratch: Path, progress: Progress) -> dict[str, Any]:
    """Answer and score the held-out prompts, or take what another lineage found out about this very model.

    What an earlier attempt left is done again.
    """
    if job.speed.scores is None or job.opponent is not None:
        return score(job, scratch, progress)
    asked = job.model_dump(mode="json")
    entry = job.speed.scores / store.digest_of(store.identity_of(asked))[:16]
    with store.locked(entry, wait=True):
        known = store.reusable(entry / "self-play", asked, EvalReport)
        if known is None:
            work = entry / ".self-play.partial"
            work.mkdir(exist_ok=True)
            fields = score(job, work, progress)
            known = store.publish(work, entry / "self-play", asked, fields, EvalReport)
        for path in known.path.iterdir():
            if path.name != store.MANIFEST:
                shutil.copy2(path, scratch)
    return known.model_dump(exclude={"path", "digest", "kind"})


def score(job: EvaluateJob, scratch: Path, progress: Progress) -> dict[str, Any]:
    """Answer and score the held-out prompts."""
    held_out = pq.read_table(job.prompts.path / "held_out.parquet")
    player = Player(job)
    progress.start(len(held_out), "prompt")
    values: Values = {}
    human: dict[str, float] = {}
    if job.config.self_play:
        table = play(player, held_out, progress)
        pq.write_table(table, scratch / "held_out.parquet")
        values |= quality(table) | diversity(table["generated"].to_pylist())
        human = targets(table)
        if job.opponent is not None and (job.opponent.path / "held_out.parquet").exists():
            values |= rewards(player, table, pq.read_table(job.opponent.path / "held_out.parquet", schema=SCHEMA))
        progress.check()
    if job.config.exact:
        values |= exact(player, held_out)
    scores = {
        name: mean(value_N, name, human.get(name)) for name, value_N in values.items() if np.isfinite(value_N).any()
    }
    write_items(scratch / "items.parquet", held_out["id"].to_pylist(), values)
    versions = f"transformers {transformers.__version__}, torch {torch.__version__}"
    return {
        "model": job.player.digest,
        "suite": "self-play",
        "harness": versions,
        "scores": scores,
        "notes": notes_on(values, scores),
    }


def play(player: Player, held_out: pa.Table, progress: Progress) -> pa.Table:
    """The player's answer to each held-out prompt, and the log-probability of both sides."""
    job = player.job
    ids, prompt_ids, real_ids = (held_out[name].to_pylist() for name in ("id", "prompt_ids", "response_ids"))
    # The model is loaded to score both sides, so the engine that shares it is the one to take.
    engine = transformers_engine(player.model, player.tokenizer, player.stop_ids, job.generate, job.player.t)
    requests = requests_for(ids, prompt_ids, job.seed, "held out")
    found = answers(engine, requests, lambda rows, _tokens: progress.tell(rows))
    generated_ids = [answer.response_ids for answer in found]
    columns = {
        "id": ids,
        "prompt": held_out["prompt"],
        "real": held_out["response"],
        "generated": texts(player.tokenizer, requests, found),
        "prompt_ids": prompt_ids,
        "real_ids": real_ids,
        "generated_ids": generated_ids,
        "finish_reason": [answer.finish_reason for answer in found],
        "real_logps": player.logps(prompt_ids, real_ids),
        "generated_logps": player.logps(prompt_ids, generated_ids),
    }
    return pa.table(columns).cast(SCHEMA)


def diversity(texts: Sequence[str]) -> Values:
    """distinct-1, -2, -3: of all texts together, with each text's part in it."""
    return {f"distinct_{n}": distinct(texts, n) for n in (1, 2, 3)}


def targets(table: pa.Table) -> dict[str, float]:
    """What the human responses have of the scores that can be too high as well as too low."""
    shares = distinct_shares(table["real"].to_pylist())
    return {f"distinct_{n}": share for n, share in enumerate(shares, 1)} | {
        "generated_tokens": float(lengths(table["real_ids"]).mean())
    }


def quality(table: pa.Table) -> Values:
    """What the player's answers, and its view of the human ones, say by themselves."""
    generated: list[str] = table["generated"].to_pylist()
    generated_ids = table["generated_ids"].to_pylist()
    real_tokens, generated_tokens = (lengths(table[name]).astype(np.float64) for name in ("real_ids", "generated_ids"))
    return {
        "heldout_nll": -table["real_logps"].to_numpy().astype(np.float64) / np.maximum(1, real_tokens),
        "real_tokens": real_tokens,
        "generated_tokens": generated_tokens,
        "length_classifier": length_classifier(real_tokens, generated_tokens),
        "text_classifier": text_classifier(table["real"].to_pylist(), generated),
        "repeated_trigrams": shares(repeated_trigrams(text) for text in generated),
        "looping_share": shares(is_looping(ids) for ids in generated_ids),
        "cut_share": shares(reason == "length" for reason in table["finish_reason"].to_pylist()),
        "empty_share": shares(not text.strip() for text in generated),
    }


def rewards(player: Player, table: pa.Table, opponent: pa.Table) -> Values:
    """How well the player tells the human responses from its opponent's, in the opponent's own words.

    A pair with the same tokens on both sides counts for the integral probability metric alone: no player can tell it
    apart.
    """
    if any(not table[name].equals(opponent[name]) for name in ("id", "prompt_ids", "real_ids")):
        raise DataError(
            "the opponent's report is about other held-out prompts than the player's: evaluate the opponent on these, "
            "or start a new lineage"
        )
    prompt_ids, real_ids, theirs = (opponent[name].to_pylist() for name in ("prompt_ids", "real_ids", "generated_ids"))
    real_N = table["real_logps"].to_numpy().astype(np.float64) - opponent["real_logps"].to_numpy()
    generated_N = player.logps(prompt_ids, theirs) - opponent["generated_logps"].to_numpy()
    same_N = np.array([real == generated for real, generated in zip(real_ids, theirs, strict=True)])
    difference_N = np.where(same_N, 0.0, real_N - generated_N)
    margin_N = np.where(same_N, np.nan, difference_N)
    # A player that is its opponent, to the bit, has margins of 0.
    accuracy_N = np.where(same_N, np.nan, (np.sign(margin_N) + 1) / 2)
    return {"reward_margin": margin_N, "reward_accuracy": accuracy_N, "ipm": difference_N}


def exact(player: Player, held_out: pa.Table) -> Values:
    """The exact distance to the demo's distribution at each held-out prompt."""
    prompt_ids = held_out["prompt_ids"].to_pylist()
    longest = max(map(len, prompt_ids)) + demo.MAX_RESPONSE_CHARS + 1
    return exact_distances(
        player.model,
        player.tokenizer,
        demo.support,
        held_out["prompt"].to_pylist(),
        prompt_ids,
        end_id=player.stop_ids[0],
        temperature=player.temperature,
        micro_batch_tokens=player.job.config.batch_size * longest,
    )


def mean(value_N: Floats, name: str, target: float | None = None) -> Score:
    """A score over the items that count, with the standard error of their mean. Nearer to a `target` is better."""
    value_N = value_N[~np.isnan(value_N)]
    n = len(value_N)
    stderr = float(value_N.std(ddof=1) / np.sqrt(n)) if n > 1 else None
    better = None if target is not None or name in NEITHER_IS_BETTER else name not in LOWER_IS_BETTER
    return Score(value=float(value_N.mean()), stderr=stderr, n=n, higher_is_better=better, target=target)


def notes_on(values: Values, scores: dict[str, Score]) -> list[str]:
    """The two-sample test in words, if it was made."""
    if "text_classifier" not in scores:
        return []
    score = scores["text_classifier"]
    error = "" if score.stderr is None else f" ± {score.stderr:.3f}"
    by_chance = two_sample_p(values["text_classifier"])
    return [
        f"a classifier tells human from generated text in {score.value:.3f}{error} of cases; if there "
        f"were no difference, so much would come by chance with probability {by_chance:.2g}"
    ]


def write_items(path: Path, ids: Sequence[str], values: Values) -> None:
    """Write `items.parquet`: task, item, value."""
    rows = [
        (task, id, float(value))
        for task, value_N in values.items()
        for id, value in zip(ids, value_N, strict=True)
        if not np.isnan(value)
    ]
    schema = pa.schema([("task", pa.string()), ("item", pa.string()), ("value", pa.float64())])
    columns = zip(*rows, strict=True) if rows else ([], [], [])
    pq.write_table(pa.table([pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)], schema=schema), path)


def shares(values: Iterable[float]) -> Floats:
    """Values between 0 and 1, one an item."""
    return np.fromiter(values, dtype=np.float64)


if __name__ == "__main__":
    main(EvaluateJob, EvalReport, run)
