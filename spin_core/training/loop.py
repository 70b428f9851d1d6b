"""The training loop: the player learns to tell real responses from its opponent's.

The model stays in evaluation mode. Dropout would make the player a different model from the opponent that was scored:
the margins would start as noise, and the first loss would not be log 2. An adapter's dropout does not do that, since an
adapter starts as zero.

How a training resumes, so that the result has the same bits as without the interruption:

- The order of the data follows from the seed and the step's number alone (`DataOrder`), and so does an adapter's
  dropout. Neither is saved.
- A checkpoint holds the float32 weights, the optimizer's state of each, the random state of torch, the number of steps
  done, and how long each file of metrics was. Metrics after that length belong to steps that are repeated, so they are
  removed.
- Monitors are functions of the rows of metrics, so after reading the remaining rows they are in the same state.
- The learning rate is a function of the step's number. Whether a step is saved or measured is one too.
- SIGTERM is checked after each step, and between the micro-batches of a measurement. The step is saved and `Stopped`
  raised, in the last step too: a training that is stopped there would otherwise lose all steps since the last save. If
  the signal comes while that step is measured on held-out pairs, the measurement is dropped, and repeated when the
  training resumes.
"""

import logging
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from spin_core.config.base import at
from spin_core.data.batches import DataOrder
from spin_core.data.sequences import Ints
from spin_core.errors import STOPPED, Stopped, TrainingDiverged
from spin_core.models.adapters import Adapter
from spin_core.runtime import ranks
from spin_core.runtime.memory.batch_limit import BatchLimit
from spin_core.runtime.progress import Progress
from spin_core.runtime.ranks import Ranks
from spin_core.store.jobs import TrainJob
from spin_core.store.records import Event
from spin_core.store.training_log import HELD_OUT, METRICS, TIMING, read_rows
from spin_core.training import held_out, lora
from spin_core.training.checkpoint import TrainingRecorder
from spin_core.training.gradient import BatchResult, forward_backward, within_memory
from spin_core.training.monitors import Monitors, check_first_loss, ending
from spin_core.training.objective import objective_of
from spin_core.training.optim import learning_rate_at
from spin_core.training.player import Player, opponent_scorer, set_up_player
from spin_core.training.stepper import Stepper
from spin_core.training.train_data import Batch, TrainData, batch_of, batches

log = logging.getLogger("spin_core")


def train(
    job: TrainJob,
    data: TrainData,
    order: DataOrder,
    held: Ints,
    total: int,
    limit: BatchLimit,
    scratch: Path,
    progress: Progress,
) -> tuple[Stepper, Adapter | None]:
    """Train from the last checkpoint, or from the start, to the last step or to an event that ends the training.

    Args:
        job: The training's job.
        data: Everything that is trained on or measured on.
        order: Which items each step trains on.
        held: The items that are held out.
        total: The number of steps.
        limit: Tokens in a pass, which are halved when memory runs out.
        scratch: Where metrics and checkpoints are.
        progress: Gets the progress, and knows whether this process is asked to stop.

    Returns:
        The stepper, with the weights to publish, and the adapter if one was trained.

    Raises:
        Stopped: SIGTERM arrived; the last step is saved.
        TrainingDiverged: A monitor ends the training with an error, or the first loss is wrong.
    """
    config, world = job.config, ranks.current()
    torch.manual_seed(job.seed)
    player = set_up_player(job, world)
    with TrainingRecorder(
        scratch, config.keep_checkpoints, config.save_every, held_out=len(held) > 0, world=world
    ) as recorder:
        training = _Training(job, data, order, held, total, limit, player, recorder, progress, world)
        training.resume(scratch)
        last = training.done if training.has_ended else total
        log.info("%d items, step %d to %d, %d items a step", len(order.items), training.done, last, config.batch_size)
        progress.start(total, "step")
        for batch in training.batches(last):
            row, distance = training.take_step(batch)
            event = training.watch(row, distance)
            training.record(row, batch)
            if event and event.action == "roll-back":
                break  # earlier weights are published, so these are neither measured nor saved
            stopping = training.measure_if_due()
            if event and not stopping:
                break
            stopping = stopping or world.any(progress.stopping)
            training.save_if_due(stopping)
            training.show_progress(row)
            if stopping:
                raise Stopped(STOPPED)
        return training.result()


class _Training:
    """A training in progress. A step changes `done`, `events`, `held_rows`, and what the stepper holds."""

    def __init__(
        self,
        job: TrainJob,
        data: TrainData,
        order: DataOrder,
        held: Ints,
        total: int,
        limit: BatchLimit,
        player: Player,
        recorder: TrainingRecorder,
        progress: Progress,
        world: Ranks,
    ) -> None:
        self.job, self.config, self.data, self.order, self.total = job, job.config, data, order, total
        self.limit, self.held = limit, held
        self.player, self.stepper, self.packed = player, player.stepper, player.network.packed
        self.recorder, self.progress, self.world = recorder, progress, world
        self.objective = objective_of(job.config, job.t)
        self.peak_rate = at(job.config.learning_rate, max(job.t, 0))
        self.monitors = Monitors(job.config.monitors, self.objective)
        scores_are_cached = job.config.speed.cached_scores or data.reference_2N is None
        self.opponent = None if scores_are_cached else opponent_scorer(job, player.network)
        self.done = 0
        """Steps done."""
        self.events: list[Event] = []
        """What monitors have reported."""
        self.held_rows: list[dict[str, float]] = []
        """What was measured on held-out pairs."""
        self._step_ended = time.monotonic()
        self._seconds: dict[str, float] = {}

    def resume(self, scratch: Path) -> None:
        """Go back to the last checkpoint, if there is one; see the module's docstring."""
        self.done, tensors = self.recorder.resume()
        if tensors:
            self.stepper.load(tensors)
        # The first rank has just cut these files, and on a network disk another rank may still see their old content.
        rows, self.held_rows = self.world.broadcast((read_rows(scratch / METRICS), read_rows(scratch / HELD_OUT)))
        self.events = [event for row in rows for event in self.monitors.check(row)]
        # A stop may have come before this step was measured.
        if self.done and self.measure_if_due():
            raise Stopped(STOPPED)
        self._step_ended = time.monotonic()

    @property
    def has_ended(self) -> bool:
        """Whether a monitor has ended the training."""
        return ending(self.events) is not None

    def batches(self, last: int) -> Iterator[Batch]:
        """The batches of the steps that are left up to `last`."""
        return batches(self._batch, self.done, last, ahead=self.config.speed.prefetch)

    def take_step(self, batch: Batch) -> tuple[dict[str, float], Tensor | None]:
        """Learn from one batch.

        Returns:
            The step's row of metrics, measured before the weights moved, and the distance of player and opponent
            (`Objective.distance`).
        """
        started = time.monotonic()
        again = partial(self._batch, self.done)
        measured = within_memory(self._forward_backward, batch, again, self.limit, self.stepper.discard_gradient)
        rate = learning_rate_at(self.done, self.total, self.peak_rate, self.config)
        # One transfer a step: each .item() would make the device wait.
        values = torch.stack([*measured.metrics.values(), self.stepper.step(rate)]).tolist()
        self.done += 1
        row = {
            "step": self.done,
            "epoch": round(self.done / self.order.steps_in_epoch, 6),
            **dict(zip([*measured.metrics, "grad_norm"], values, strict=True)),
            "learning_rate": rate,
        }
        self._seconds = {"seconds": time.monotonic() - started, "wait": started - self._step_ended}
        return row, measured.distance

    def _batch(self, step: int) -> Batch:
        """The batch of a step."""
        return self._lay_out(self.order.batch(step))

    def _lay_out(self, items: Ints) -> Batch:
        """These items as a batch, with as many tokens in a pass as the limit allows now."""
        sharing = self.config.speed.prefix_sharing
        return batch_of(self.data, items, self.world, self.limit.size, packed=self.packed, prefix_sharing=sharing)

    def _forward_backward(self, batch: Batch) -> BatchResult:
        with lora.dropout(self.player.model, self.config.lora, self.job.seed, self.done, self.world.rank):
            return forward_backward(
                batch, self.objective, self.stepper, self.world, self.player.model.device, self.opponent
            )

    def watch(self, row: dict[str, float], distance: Tensor | None) -> Event | None:
        """Give a step's row to the monitors; returns the event that ends the training, if one does.

        Raises:
            TrainingDiverged: The event's action is `refuse`, or this is the first step and its loss is wrong.
        """
        events = self.monitors.check(row)
        event = ending(events)
        if event and event.action == "refuse":
            raise TrainingDiverged(event.message)
        if self.done == 1:
            distance_value = None if distance is None else distance.item()
            check_first_loss(row, distance_value, self.objective, self.config, self.job.model.dtype)
        for new in events:
            log.warning("%s", new.message)
        self.events += events
        return event

    def record(self, row: dict[str, float], batch: Batch) -> None:
        """Write a step's metrics and timing."""
        self.recorder.write(METRICS, row)
        counts = {"tokens": batch.tokens, "pairs": batch.tokens_PB.shape[1], "ranks": self.world.size}
        counts["micro_batch_tokens"] = self.limit.size
        self.recorder.write(TIMING, {"step": self.done, **self._seconds, **counts})

    def measure_if_due(self) -> bool:
        """Measure the weights on the held-out pairs if that is due and not done, and keep them if they are the best.

        Returns:
            True if SIGTERM arrived meanwhile; then nothing was measured.
        """
        due = self.has_ended or self.done == self.total or self.done % self.config.evaluate_every == 0
        is_measured = bool(self.held_rows) and self.held_rows[-1]["step"] == self.done
        if not len(self.held) or not due or is_measured:
            return False
        try:
            measured = held_out.measure(
                self._lay_out(self.held), self.objective, self.stepper, self.world, self.player.model.device,
                lambda: self.progress.stopping,
            )  # fmt: skip
        except Stopped:
            return True
        self.held_rows.append({"step": self.done, **measured})
        self.recorder.write(HELD_OUT, self.held_rows[-1])
        if self.config.keep_best and held_out.is_best(self.held_rows, self.config.keep_best):
            self.recorder.save(self.done, self.stepper.tensors(), best=True)
        return False

    def save_if_due(self, stopping: bool) -> None:
        """Save a checkpoint every `save_every` steps, and when the training is asked to stop."""
        regular = self.done < self.total and self.done % self.config.save_every == 0
        if stopping or regular:
            self.recorder.save(self.done, self.stepper.tensors())

    def show_progress(self, row: dict[str, float]) -> None:
        """Report the step with its metrics, and the last measurement on held-out pairs."""
        names = [name for name in row if name not in ("step", "epoch", "grad_norm", "learning_rate")]
        held = {f"held out {name}": self.held_rows[-1][name] for name in names} if self.held_rows else {}
        self.progress.show(self.done, **{name: row[name] for name in names}, **held)
        self._step_ended = time.monotonic()

    def result(self) -> tuple[Stepper, Adapter | None]:
        """Bring the weights to publish into the stepper; returns it, and the adapter if one was trained."""
        step = held_out.published_step(self.config, self.done, self.held_rows, self.events)
        if step != self.done:
            self.stepper.load(self.recorder.tensors_at(step))
        if self.config.lora is None:
            return self.stepper, None
        if step == self.done:
            # Each rank holds a share of the adapter; reading the checkpoint brings the shares together.
            self.recorder.save(step, self.stepper.tensors())
        return self.stepper, lora.trained_adapter(self.player.adapter_config, self.recorder.tensors_at(step))
