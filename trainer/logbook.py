"""What a run tells while it goes: events in metrics.jsonl and TensorBoard, console lines, pictures, the last summary.

The training loop calls it between steps and never asks it anything; rank 0 alone writes and speaks. What is collective
says so: every rank calls it.
"""

import socket
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from trainer.album import draw_timeline_picture, draw_views
from trainer.checkpoint.background import SaveReport
from trainer.checkpoint.manifest import directory_name
from trainer.checkpoint.reader import Checkpoint
from trainer.engine.engine import FreezeReport, FreezingEngine
from trainer.freezing.rebatch import describe_rebatching
from trainer.plan import AnyPlan, RunPlan
from trainer.pretrained.initial import Origin
from trainer.tracking.console import Console, duration
from trainer.tracking.losses import StageLosses
from trainer.tracking.metrics import Metrics, read_metrics
from trainer.tracking.pace import DeviceTimer, by_node, describe_stragglers, gather_rows, stragglers
from trainer.tracking.rank_log import tell
from trainer.tracking.substitutions import Substitutions
from trainer.tracking.summary import summarise
from trainer.tracking.throughput import Throughput, memory_bytes


class Logbook(ABC):
    """One per rank. Between two log lines it gathers without waiting for the device."""

    def __init__(
        self,
        plan: AnyPlan,
        engine: FreezingEngine,
        learning_rates: Callable[[int], list[float | None]],
        throughput: Throughput,
        device: torch.device,
        start_step: int,
    ):
        """Opens RUN/metrics.jsonl to go on after `start_step` steps. `learning_rates`: of each unit at a step, 0 being
        the first. `throughput`: read and restarted by each log line; the loop feeds
        it, and runs each forward pass in `in_forward`. Collective."""
        self._plan, self._engine, self._learning_rates = plan, engine, learning_rates
        self._throughput, self._device = throughput, device
        self._console = Console(plan.ranks.rank)
        self.say = self._console.say
        self._metrics = None
        if plan.ranks.rank == 0:
            self._metrics = Metrics(plan.output, start_step, plan.recipe.tracking.tensorboard, self.say)
        self._losses = self._new_losses()
        self._forward = DeviceTimer(device)
        self.in_forward = self._forward.measuring
        self._slow_before: set[tuple[int, str]] = set()
        self._hosts: list[str] = [""] * plan.ranks.world_size
        dist.all_gather_object(self._hosts, socket.gethostname())
        self._substitutions = Substitutions(read_metrics(plan.output) if self._metrics else [])

    def started(self, checkpoint: Checkpoint | None, origin: Origin | None) -> None:
        """`origin`: of the weights, where they are neither a checkpoint's nor random."""
        plan, layout = self._plan, self._engine.resolved
        if checkpoint:
            step, then, now = checkpoint.manifest.step, checkpoint.manifest.world_size, plan.ranks.world_size
            self.say(f"resuming from {checkpoint.directory} at step {step}")
            if self._metrics:
                path = str(checkpoint.directory)
                self._metrics.write("resume", step=step, path=path, world_size_then=then, world_size_now=now)
        elif self._metrics:
            init = {"init": origin.source, "init_weights": origin.extent} if origin else {}
            self._metrics.write("start", step=0, world_size=plan.ranks.world_size, total_steps=plan.total_steps, **init)
        if origin:
            self.say(f"starting from {origin}")
        # The layout is the engine's: that of the plan may be over already where a run with freezing.rebatch goes on.
        self.say(
            f"{plan.total_steps} steps of {plan.recipe.train.global_batch} images "
            f"({plan.ranks.world_size} ranks x {layout.accumulation} x micro-batch {layout.micro_batch}), "
            f"{plan.steps_per_epoch} steps an epoch of {plan.index.num_samples} images; ZeRO-{plan.ds.zero_stage} "
            f"{plan.ds.precision}; GEMM {self._throughput.gemm_rate / 1e9:.0f} GFLOP/s per rank"
        )

    @abstractmethod
    def _new_losses(self) -> StageLosses:
        """Where the losses of an interval add up."""

    @abstractmethod
    def _live_losses(self) -> list[int]:
        """Which of these losses a micro-batch has now."""

    @abstractmethod
    def _loss_fields(self, losses: list[float | None], step: int) -> dict[str, Any]:
        """The losses of an interval that ended with `step` (0 = the first) as fields of the event: `loss` at least."""

    @abstractmethod
    def _summary(self, events: list[dict[str, Any]]) -> str:
        """The printed end of the run."""

    def _draw_at_save(self, report: SaveReport) -> None:  # noqa: B027 (not every kind of run has any)
        """Pictures of this checkpoint, on rank 0, if they are wanted."""

    def _draw_at_end(self, step: int, events: list[dict[str, Any]]) -> None:  # noqa: B027 (not every kind of run has any)
        """Pictures of the whole run, on rank 0, if they are wanted."""

    def micro_batch(self, losses: torch.Tensor, substituted: list[str]) -> None:
        """Take note of a micro-batch of this rank. losses: fp32 [those that there are now]."""
        self._losses.add(self._live_losses(), losses, self._engine.resolved.micro_batch)
        self._substitutions.add(substituted)

    def step(self, step: int) -> None:
        """One log line after `step` steps, for which the host waits for the device. Collective."""
        plan, model = self._plan, self._engine.model
        losses = self._losses.reduce(self._live_losses())
        speed = self._throughput.read()
        rows = gather_rows([self._forward.read() / self._throughput.steps, speed["data_wait_seconds"]], self._device)
        forward, waits = [row[0] for row in rows], [row[1] for row in rows]
        speed["data_wait_seconds"] = max(waits)
        global_batch = plan.recipe.train.global_batch
        images_per_second = global_batch / speed["step_seconds"]
        slow = stragglers(self._hosts, forward, waits, speed["step_seconds"])
        event = {
            "step": step,
            "epoch": step / plan.steps_per_epoch,
            "samples": step * global_batch,
            **self._loss_fields(losses, step - 1),
            "lr": self._learning_rates(step - 1),
            "frozen_units": model.frozen_units,
            "trainable_parameters": self._engine.trainable_parameters,
            "images_per_second": images_per_second,
            **speed,
            "nodes": by_node(self._hosts, forward, waits, images_per_second),
            "stragglers": slow,
            "optimizer_bytes": self._engine.optimizer_bytes(),
            "memory_bytes": memory_bytes(self._device),
            "loss_scale": self._engine.loss_scale,
            "skipped_steps": self._engine.skipped_steps,
            "substituted_samples": self._substitutions.total(self._device),
            "bad_steps": self._engine.bad_steps,
        }
        if self._metrics:
            self._metrics.write("step", **event)
        self._console.step(event, plan.total_steps, (plan.total_steps - step) * speed["step_seconds"])
        again = [entry for entry in slow if (entry["rank"], entry["in"]) in self._slow_before]
        self._slow_before = {(entry["rank"], entry["in"]) for entry in slow}
        if again:  # in two log lines running: once may be chance
            self.say(describe_stragglers(again))
        self._throughput.restart()

    def saved(self, report: SaveReport) -> None:
        """A save has ended: where the run may be continued from, or why not."""
        if report.error:
            stops = self._plan.recipe.checkpoint.on_error == "stop"
            self.say(f"error: {report.error}; {'all ranks stop' if stops else 'the next save tries again'}")
            return
        self.say(
            f"step {report.step}: saved {report.path} ({report.bytes / 1e6:.1f} MB in {report.seconds:.1f} s, "
            f"training waited {report.stall_seconds:.2f} s)"
        )
        if self._metrics:
            fields = asdict(report) | {"path": str(report.path.relative_to(self._plan.output))}
            self._metrics.write("checkpoint", **{key: value for key, value in fields.items() if key != "error"})
        self._draw_at_save(report)

    def finished(self, step: int) -> None:
        """Pictures and summary of a run that is done; a picture that fails does not spoil it."""
        if not self._metrics:
            return
        events = read_metrics(self._plan.output)
        self._draw_at_end(step, events)
        self._metrics.write("end", step=step)
        self.say("done\n\n" + self._summary(events) + "\n")
        for picture in sorted((self._plan.output / "pictures").glob("*.png")):
            tell(f"picture: {picture}")

    def close(self) -> None:
        if self._metrics:
            self._metrics.close()

    def _draw(self, pictures: Iterator[Path], step: int) -> None:
        """Rank 0 alone; a picture that cannot be drawn is told of, and training goes on."""
        if self._metrics:
            try:
                for path in pictures:
                    self._metrics.picture(path.stem, path, step)
            except Exception as error:
                self.say(f"not all pictures of step {step} were drawn: {type(error).__name__}: {error}")


class PretrainingLogbook(Logbook):
    """With a loss for each stage, freezes and pictures."""

    _plan: RunPlan

    def started(self, checkpoint: Checkpoint | None, origin: Origin | None) -> None:
        super().started(checkpoint, origin)
        self._drawn_until = checkpoint.manifest.step if checkpoint else 0
        initial_units = self._plan.recipe.freezing.initial_units
        if initial_units and not checkpoint and not origin:
            self.say(
                f"freezing.initial_units: {initial_units} units start frozen, and as no trained weights were given, "
                "they stay as they were drawn at random"
            )
        if self._plan.recipe.freezing.rebatch:
            self.say(describe_rebatching(self._plan.micro_batches, self._plan.ds))

    def probe(self, step: int, plasticity: list[float | None], seconds: float) -> None:
        """plasticity: by unit, relative to the most that it was; None where frozen or not known yet."""
        if self._metrics:
            self._metrics.write("probe", step=step, plasticity=plasticity, seconds=seconds)

    def evaluation(self, step: int, result: dict[str, Any]) -> None:
        """result: of `trainer.evaluation.on_shards.knn_on_shards`."""
        if self._metrics:
            self._metrics.write("evaluation", step=step, epoch=step / self._plan.steps_per_epoch, **result)
        best = max(result["results"], key=lambda row: row["top1"])
        self.say(
            f"step {step}: k-NN top-1 {best['top1']:.2%}, top-5 {best['top5']:.2%} (k {best['k']}, temperature "
            f"{best['temperature']:g}) of {result['samples']} held-out images in {duration(result['seconds'])}"
        )

    def freeze(self, step: int, report: FreezeReport) -> None:
        stage_blocks = self._plan.recipe.model.stage_blocks
        event = {
            "step": step,
            "units": report.units,
            "stages_removed": [k for k, block in enumerate(stage_blocks) if block + 1 in report.units],
            "seconds": report.seconds,
            "optimizer_bytes_before": report.optimizer_bytes_before,
            "optimizer_bytes_after": report.optimizer_bytes_after,
            "trainable_parameters": self._engine.trainable_parameters,
            "micro_batch": self._engine.resolved.micro_batch,
        }
        if self._metrics:
            self._metrics.write("freeze", **event)
        self._console.freeze(event, self._engine.resolved.accumulation)

    def _new_losses(self) -> StageLosses:
        return StageLosses(len(self._plan.recipe.model.stage_blocks), self._device)

    def _live_losses(self) -> list[int]:
        return self._engine.model.live_stages

    def _loss_fields(self, losses: list[float | None], step: int) -> dict[str, Any]:
        """`loss` with the weights that the stages had at `step`, `loss_stages` without."""
        weights = self._plan.stage_weights_at(step) or [1.0] * len(losses)
        weighted = [weight * loss for weight, loss in zip(weights, losses, strict=True) if loss is not None]
        return {"loss": sum(weighted), "loss_stages": losses}

    def _summary(self, events: list[dict[str, Any]]) -> str:
        return summarise(events)

    def _draw_at_save(self, report: SaveReport) -> None:
        if self._picture_is_due(report.step):
            folder = self._plan.output / "pictures" / report.path.name
            with self._throughput.aside():
                self._draw(draw_views(self._plan, report.path, folder), report.step)

    def _picture_is_due(self, step: int) -> bool:
        """Whether the checkpoint of `step` is to be drawn.

        A save may come later than `pictures_at` says: after a bad step it waits for a good one."""
        tracking, since = self._plan.recipe.tracking, self._drawn_until
        self._drawn_until = step
        if step == self._plan.total_steps and tracking.pictures != "never":
            return False  # `_draw_at_end` does
        return tracking.pictures == "checkpoint" or any(since < at <= step for at in tracking.pictures_at)

    def _draw_at_end(self, step: int, events: list[dict[str, Any]]) -> None:
        if self._plan.recipe.tracking.pictures != "never":
            checkpoint = self._plan.checkpoints / directory_name(step)
            self._draw(draw_views(self._plan, checkpoint, self._plan.output / "pictures"), step)
            self._draw(draw_timeline_picture(self._plan, events), step)
