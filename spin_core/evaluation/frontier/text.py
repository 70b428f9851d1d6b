"""The text axes of a sweep: the model answers the held-out prompts at each temperature, with the same random numbers.

    distinct_2         share of different word pairs in all answers together
    self_bleu          how much each answer looks like the others
    faulty_share       share of answers that loop, were cut although the human response was not, have no text, or
                       repeat an earlier answer
    text_classifier    accuracy of telling them from human responses
    reference_nll      nats per token of the answers under the reference model, if one is configured

No judge is asked. The answers of each temperature are in `answers-<temperature>.parquet`, so that a killed sweep
continues with the temperature it was at.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from spin_core.config.model import ModelConfig
from spin_core.data.repetition import distinct, is_looping
from spin_core.data.tokenizer import load_tokenizer
from spin_core.evaluation.classifiers import text_classifier_accuracy
from spin_core.evaluation.frontier.self_bleu import self_bleu
from spin_core.evaluation.items import Values
from spin_core.inference.answering import answer_requests, decode_answers, ends_of, requests_for
from spin_core.inference.transformers_engine import TransformersEngine
from spin_core.models.loading import load_model
from spin_core.models.logps import sequence_logps
from spin_core.runtime.progress import Progress
from spin_core.store.evaluation_jobs import FrontierJob
from spin_core.store.tables import read_table

Floats = npt.NDArray[np.float64]

_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("generated", pa.string()),
        ("generated_ids", pa.list_(pa.int32())),
        ("finish_reason", pa.string()),
    ]
)


def text_values(job: FrontierJob, held_out: pa.Table, scratch: Path, progress: Progress) -> list[Values]:
    """Return the metrics of each held-out prompt, by name, for each temperature of the job."""
    answers = _answers(job, held_out, scratch, progress)
    values = [measures(table, held_out) for table in answers]
    reference = job.config.reference
    if reference is not None:
        model = load_model(reference, job.model)
        tokenizer = load_tokenizer(reference, ModelConfig(trust_remote_code=job.model.trust_remote_code))
        prompts: list[str] = held_out["prompt"].to_pylist()
        for by_name, table in zip(values, answers, strict=True):
            by_name["reference_nll"] = reference_nll(model, tokenizer, prompts, table, job.speed.batch_size)
            progress.check()
    return values


def measures(answers: pa.Table, held_out: pa.Table) -> Values:
    """Return the metrics that need no other model, of the answers to all held-out prompts at one temperature."""
    texts: list[str] = answers["generated"].to_pylist()
    return {
        "distinct_2": distinct(texts, 2),
        "self_bleu": self_bleu(texts),
        "faulty_share": _is_faulty(answers, held_out["finish_reason"].to_pylist()),
        "text_classifier": text_classifier_accuracy(held_out["response"].to_pylist(), texts),
    }


def reference_nll(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    answers: pa.Table,
    batch_size: int,
) -> Floats:
    """Return the nats per token of each answer under a reference model, in that model's own tokens, (N,).

    The reference reads the text of the prompt and the answer. An answer that was not cut has the reference's end of
    text. What does not fit into its context loses the beginning of its prompt.
    """
    begin = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    prompt_ids, answer_ids = (
        tokenizer(texts, add_special_tokens=False)["input_ids"]
        for texts in (list(prompts), answers["generated"].to_pylist())
    )
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None) or 2**31
    rows = []
    for prompt, answer, reason in zip(prompt_ids, answer_ids, answers["finish_reason"].to_pylist(), strict=True):
        response = [*answer, *(end if reason == "stop" or not answer else [])][: context - 1]
        rows.append(([*begin, *prompt][-max(1, context - len(response)) :], response))
    longest = max((len(prompt) + len(response) for prompt, response in rows), default=1)
    logps_N = sequence_logps(
        model, [prompt for prompt, _ in rows], [response for _, response in rows], batch_size * longest
    )
    # Without a token, as of an empty answer where the reference has no end of text, there is nothing to score.
    tokens_N = np.array([len(response) or np.nan for _, response in rows])
    return np.asarray(-logps_N.double().numpy() / tokens_N)


def _answers(job: FrontierJob, held_out: pa.Table, scratch: Path, progress: Progress) -> list[pa.Table]:
    """The answers at each temperature; those that an earlier attempt has saved are read."""
    assert job.generate is not None, "text is sampled"
    progress.start(len(job.config.temperatures) * len(held_out), "answer")
    paths = [scratch / f"answers-{temperature:g}.parquet" for temperature in job.config.temperatures]
    if not all(path.exists() for path in paths):
        model, tokenizer = load_model(job.player.path, job.model), load_tokenizer(job.player.path, job.model)
        ends = ends_of(job.prompts, tokenizer)
        ids, prompt_ids = (held_out[name].to_pylist() for name in ("id", "prompt_ids"))
        requests = requests_for(ids, prompt_ids, job.seed, "held out")
        for number, (temperature, path) in enumerate(zip(job.config.temperatures, paths, strict=True)):
            done = number * len(held_out)
            progress.show(done)
            if path.exists():
                continue
            config = job.generate.model_copy(update={"temperature": temperature})
            engine = TransformersEngine.from_config(model, tokenizer, ends.ids, config, 0, ends.strings)
            sampled = answer_requests(engine, requests, _reporter(progress, done))
            columns = {
                "id": ids,
                "generated": decode_answers(tokenizer, requests, sampled, ends),
                "generated_ids": [answer.response_ids for answer in sampled],
                "finish_reason": [answer.finish_reason for answer in sampled],
            }
            partial = path.with_name(f".{path.name}")
            pq.write_table(pa.table(columns).cast(_SCHEMA), partial)
            partial.replace(path)
    return [read_table(path) for path in paths]


def _reporter(progress: Progress, done: int) -> Callable[[int, int], None]:
    """Show the answers of all temperatures so far, `done` of them at earlier ones."""
    return lambda answers, _tokens: progress.report(done + answers)


def _is_faulty(answers: pa.Table, real_reasons: Sequence[str]) -> Floats:
    """1 for each answer that loops, was cut, has no text, or equals an earlier one token by token; else 0.

    Texts that have no end, such as parts of a book, are cut on both sides, which is not a fault.
    """
    earlier = set[tuple[int, ...]]()
    faulty = []
    columns = (answers[name].to_pylist() for name in ("generated", "generated_ids", "finish_reason"))
    for text, ids, reason, real_reason in zip(*columns, real_reasons, strict=True):
        is_cut = reason == "length" and real_reason != "length"
        faulty.append(is_cut or not text.strip() or is_looping(ids) or tuple(ids) in earlier)
        earlier.add(tuple(ids))
    return np.array(faulty, dtype=np.float64)
