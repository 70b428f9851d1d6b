"""The suite `self-play`: the player answers the held-out prompts, and its answers are scored.

    heldout_nll         nats per token of the human responses, each response's mean; lower is better
    reward_margin       log p/p_opponent of the human response minus that of the opponent's, in nats, without beta
    reward_accuracy     how often that margin is positive; .5 if the player is its opponent
    real_tokens         mean length of the human responses, in tokens
    generated_tokens    mean length of the player's responses, in tokens
    ipm                 the integral probability metric that the player estimates, in nats, see below
    length_classifier   accuracy of telling the two apart by length alone; .5 is best, 1 means length gives it away
    text_classifier     accuracy of telling them apart by their words and characters; .5 is best. A note gives the
                        probability of such an accuracy by chance (`classifiers.text_classifier`, a two-sample test)
    distinct_1, distinct_2, distinct_3    share of different words, word pairs and triples in all of the player's
                        responses together, if there are any. It falls as responses are added, so compare equal numbers
                        of prompts. An item is one response's part in it (`repetition.distinct`)
    repeated_trigrams   share of a response's word trigrams that occurred in it before
    looping_share, cut_share, empty_share     shares of responses that loop, that were cut, that have no text
    total_variation, invalid_mass, forward_kl     distances to p_data, if it is known (`exact`), of the player as it
                        samples: at `evaluate.temperature`. Likelihoods and rewards are the model's own, at 1

The main player looks for the f in its class that separates p_data and p_θt most: E f(x, y) − E f(x, y') over human y
and the opponent's y' (eq. 4.1). Its class is λ log p_θ/p_θt, so the value that it reaches is λ times `ipm`: the mean of
log p/p_opponent over the human responses minus that over the opponent's, here on prompts that it was not trained on. It
is 0 for a player that is its opponent, and 0 up to chance for any player whose opponent is p_data: as self-play
converges it falls to 0.

`reward_margin` leaves out the pairs with equal tokens on both sides, since no player can tell these apart. For the
metric they are samples like all others, so `ipm` includes them, with a difference of 0.

Writes `held_out.parquet`, the responses with their log-probabilities, and `items.parquet`, one row for each score and
prompt, so that versions can be compared prompt by prompt. Every version samples with the same random numbers.
"""

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

from spin_core.config.base import at
from spin_core.data.files.example_files import SOURCE
from spin_core.data.repetition import distinct, distinct_shares, is_looping, repeated_trigrams
from spin_core.data.sequences import token_counts
from spin_core.data.tokenizer import load_tokenizer
from spin_core.errors import DataError
from spin_core.evaluation.classifiers import length_classifier_accuracy, text_classifier_accuracy, two_sample_p
from spin_core.evaluation.exact import demo_distances
from spin_core.evaluation.items import Values, mean, write_items
from spin_core.inference.answering import answer_requests, decode_answers, ends_of, requests_for
from spin_core.inference.transformers_engine import TransformersEngine
from spin_core.models.loading import load_model
from spin_core.models.logps import sequence_logps
from spin_core.runtime.progress import Progress
from spin_core.store.evaluation_jobs import EvaluateJob
from spin_core.store.records import Score

Floats = npt.NDArray[np.float64]

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

_OF_ALL_ANSWERS = {"distinct_1", "distinct_2", "distinct_3"}
"""Scores of all answers together, which are no mean over prompts."""


class Player:
    """A model version, loaded, with its tokenizer and sampling settings."""

    def __init__(self, job: EvaluateJob) -> None:
        self.job = job
        self.model: PreTrainedModel = load_model(job.player.path, job.model)
        self.tokenizer: PreTrainedTokenizerBase = load_tokenizer(job.player.path, job.model)
        self.ends = ends_of(job.prompts, self.tokenizer)
        self.temperature = at(job.generate.temperature, job.player.t)

    def logps(self, prompt_ids: list[list[int]], response_ids: list[list[int]]) -> Floats:
        """Return log p(response | prompt) of each pair in nats, (N,), at temperature 1."""
        logps_N = sequence_logps(
            self.model, prompt_ids, response_ids, self._micro_batch_tokens(prompt_ids, response_ids)
        )
        return np.asarray(logps_N.double().numpy())

    def _micro_batch_tokens(self, prompt_ids: list[list[int]], response_ids: list[list[int]]) -> int:
        """Return the tokens of `evaluate.batch_size` rows as long as the longest one."""
        rows = zip(prompt_ids, response_ids, strict=True)
        return self.job.config.batch_size * max((len(prompt) + len(response) for prompt, response in rows), default=1)


def score(job: EvaluateJob, scratch: Path, progress: Progress) -> dict[str, Any]:
    """Answer and score the held-out prompts, write the files, and return the fields of the report."""
    held_out = pq.read_table(job.prompts.path / "held_out.parquet")
    player = Player(job)
    progress.start(len(held_out), "prompt")
    values: Values = {}
    targets: dict[str, float] = {}
    if job.config.self_play:
        table = answer_prompts(player, held_out, progress)
        pq.write_table(table, scratch / "held_out.parquet")
        values |= quality(table) | _diversity(table["generated"].to_pylist())
        targets = _human_values(table)
        if job.opponent is not None and (job.opponent.path / "held_out.parquet").exists():
            values |= rewards(player, table, pq.read_table(job.opponent.path / "held_out.parquet", schema=SCHEMA))
        progress.check()
    if job.config.exact:
        values |= _exact_distances(player, held_out)
    scores = {
        name: mean(value_N, name, targets.get(name)) for name, value_N in values.items() if np.isfinite(value_N).any()
    }
    write_items(scratch / "items.parquet", held_out["id"].to_pylist(), values)
    versions = f"transformers {transformers.__version__}, torch {torch.__version__}"
    return {
        "model": job.player.digest,
        "suite": "self-play",
        "harness": versions,
        "scores": scores,
        "notes": _notes(values, scores),
        "by_source": _scores_by_source(held_out, values),
    }


def answer_prompts(player: Player, held_out: pa.Table, progress: Progress) -> pa.Table:
    """Return the player's answer to each held-out prompt, and the log-probabilities of both sides."""
    job = player.job
    ids, prompt_ids, real_ids = (held_out[name].to_pylist() for name in ("id", "prompt_ids", "response_ids"))
    # The model is loaded anyway, to score both sides, so the engine that shares it is used.
    engine = TransformersEngine.from_config(
        player.model, player.tokenizer, player.ends.ids, job.generate, job.player.t, player.ends.strings
    )
    requests = requests_for(ids, prompt_ids, job.seed, "held out")
    sampled = answer_requests(engine, requests, lambda rows, _tokens: progress.report(rows))
    generated_ids = [answer.response_ids for answer in sampled]
    columns = {
        "id": ids,
        "prompt": held_out["prompt"],
        "real": held_out["response"],
        "generated": decode_answers(player.tokenizer, requests, sampled, player.ends),
        "prompt_ids": prompt_ids,
        "real_ids": real_ids,
        "generated_ids": generated_ids,
        "finish_reason": [answer.finish_reason for answer in sampled],
        "real_logps": player.logps(prompt_ids, real_ids),
        "generated_logps": player.logps(prompt_ids, generated_ids),
    }
    return pa.table(columns).cast(SCHEMA)


def _diversity(texts: Sequence[str]) -> Values:
    """Return distinct-1, -2 and -3 of all texts together: each text's part in it."""
    return {f"distinct_{n}": distinct(texts, n) for n in (1, 2, 3)}


def _human_values(table: pa.Table) -> dict[str, float]:
    """Return the human responses' values of the scores that can be too high as well as too low."""
    shares = distinct_shares(table["real"].to_pylist())
    return {f"distinct_{n}": share for n, share in enumerate(shares, 1)} | {
        "generated_tokens": float(token_counts(table["real_ids"]).mean())
    }


def quality(table: pa.Table) -> Values:
    """Return the scores that need no opponent: of the player's answers, and of its likelihood of the human ones."""
    generated: list[str] = table["generated"].to_pylist()
    generated_ids = table["generated_ids"].to_pylist()
    real_tokens, generated_tokens = (
        token_counts(table[name]).astype(np.float64) for name in ("real_ids", "generated_ids")
    )
    return {
        "heldout_nll": -table["real_logps"].to_numpy().astype(np.float64) / np.maximum(1, real_tokens),
        "real_tokens": real_tokens,
        "generated_tokens": generated_tokens,
        "length_classifier": length_classifier_accuracy(real_tokens, generated_tokens),
        "text_classifier": text_classifier_accuracy(table["real"].to_pylist(), generated),
        "repeated_trigrams": _shares(repeated_trigrams(text) for text in generated),
        "looping_share": _shares(is_looping(ids) for ids in generated_ids),
        "cut_share": _shares(reason == "length" for reason in table["finish_reason"].to_pylist()),
        "empty_share": _shares(not text.strip() for text in generated),
    }


def rewards(player: Player, table: pa.Table, opponent: pa.Table) -> Values:
    """Return how well the player tells the human responses from the answers that its opponent gave in its own report.

    A pair with the same tokens on both sides counts only for the integral probability metric: no player can tell it
    apart. Raises `DataError` if the opponent's report is about other prompts.
    """
    if any(not table[name].equals(opponent[name]) for name in ("id", "prompt_ids", "real_ids")):
        raise DataError(
            "the opponent's report is about other held-out prompts than the player's: evaluate the opponent on these, "
            "or start a new lineage"
        )
    prompt_ids, real_ids, opponent_ids = (
        opponent[name].to_pylist() for name in ("prompt_ids", "real_ids", "generated_ids")
    )
    real_N = table["real_logps"].to_numpy().astype(np.float64) - opponent["real_logps"].to_numpy()
    generated_N = player.logps(prompt_ids, opponent_ids) - opponent["generated_logps"].to_numpy()
    same_N = np.array([real == generated for real, generated in zip(real_ids, opponent_ids, strict=True)])
    difference_N = np.where(same_N, 0.0, real_N - generated_N)
    margin_N = np.where(same_N, np.nan, difference_N)
    # A player with exactly its opponent's weights has margins of 0, which count half.
    accuracy_N = np.where(same_N, np.nan, (np.sign(margin_N) + 1) / 2)
    return {"reward_margin": margin_N, "reward_accuracy": accuracy_N, "ipm": difference_N}


def _exact_distances(player: Player, held_out: pa.Table) -> Values:
    """Return the exact distances to the demo's distribution at each held-out prompt."""
    (values,) = demo_distances(
        player.model,
        player.tokenizer,
        held_out,
        end_id=player.ends.ids[0],
        temperatures=(player.temperature,),
        batch_size=player.job.config.batch_size,
    )
    return values


def _scores_by_source(held_out: pa.Table, values: Values) -> dict[str, dict[str, Score]]:
    """Return the scores on the prompts of each source; nothing if all prompts have the same."""
    if SOURCE.name not in held_out.column_names:
        return {}
    source_N = np.array(held_out[SOURCE.name].to_pylist())
    names = sorted(set(source_N.tolist()))
    return {name: _mean_scores(values, source_N == name) for name in names} if len(names) > 1 else {}


def _mean_scores(values: Values, is_chosen_N: npt.NDArray[np.bool_]) -> dict[str, Score]:
    """Return the scores on some of the prompts. Those of all answers together have no part that belongs to these."""
    chosen = {name: value_N[is_chosen_N] for name, value_N in values.items() if name not in _OF_ALL_ANSWERS}
    targets = {"generated_tokens": float(chosen["real_tokens"].mean())} if "real_tokens" in chosen else {}
    return {
        name: mean(value_N, name, targets.get(name)) for name, value_N in chosen.items() if np.isfinite(value_N).any()
    }


def _notes(values: Values, scores: dict[str, Score]) -> list[str]:
    """Return the two-sample test in words, if it was made."""
    if "text_classifier" not in scores:
        return []
    score = scores["text_classifier"]
    error = "" if score.stderr is None else f" ± {score.stderr:.3f}"
    by_chance = two_sample_p(values["text_classifier"])
    return [
        f"a classifier tells human from generated text in {score.value:.3f}{error} of cases; "
        f"by chance, this accuracy or more has probability {by_chance:.2g}"
    ]


def _shares(values: Iterable[float]) -> Floats:
    """Return values between 0 and 1, one for each item."""
    return np.fromiter(values, dtype=np.float64)
