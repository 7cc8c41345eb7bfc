"""What a run tells while it goes: events in metrics.jsonl and TensorBoard, console lines, pictures, the last summary.

The training loop calls it between steps and never asks it anything; rank 0 alone writes and speaks. What is collective
says so: every rank calls it.
"""

import socket
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
import torch.distributed as dist

from trainer.album import draw_reconstruction_picture, draw_timeline_picture
from trainer.checkpoint.background import SaveReport
from trainer.checkpoint.reader import Checkpoint
from trainer.engine.engine import FreezeReport, FreezingEngine
from trainer.freezing.rebatch import describe_rebatching
from trainer.plan import RunPlan
from trainer.tracking.console import Console
from trainer.tracking.losses import StageLosses
from trainer.tracking.metrics import Metrics, read_metrics
from trainer.tracking.pace import DeviceTimer, by_node, describe_stragglers, gather_rows, stragglers
from trainer.tracking.rank_log import tell
from trainer.tracking.substitutions import Substitutions
from trainer.tracking.summary import summarise
from trainer.tracking.throughput import Throughput, memory_bytes


class Logbook:
    """One per rank. Between two log lines it gathers without waiting for the device."""

    def __init__(
        self, plan: RunPlan, engine: FreezingEngine, throughput: Throughput, device: torch.device, start_step: int
    ):
        """Opens RUN/metrics.jsonl to go on after `start_step` steps. `throughput`: read and restarted by each log line;
        the loop feeds it, and runs each forward pass in `in_forward`. Collective."""
        self._plan, self._engine, self._throughput, self._device = plan, engine, throughput, device
        self._console = Console(plan.ranks.rank)
        self.say = self._console.say
        self._metrics = None
        if plan.ranks.rank == 0:
            self._metrics = Metrics(plan.output, start_step, plan.recipe.tracking.tensorboard, self.say)
        self._losses = StageLosses(len(plan.recipe.model.stage_blocks), device)
        self._forward = DeviceTimer(device)
        self.in_forward = self._forward.measuring
        self._slow_before: set[tuple[int, str]] = set()
        self._hosts: list[str] = [""] * plan.ranks.world_size
        dist.all_gather_object(self._hosts, socket.gethostname())
        self._substitutions = Substitutions(read_metrics(plan.output) if self._metrics else [])

    def started(self, checkpoint: Checkpoint | None) -> None:
        plan, layout = self._plan, self._engine.resolved
        if checkpoint:
            step, then, now = checkpoint.manifest.step, checkpoint.manifest.world_size, plan.ranks.world_size
            self.say(f"resuming from {checkpoint.directory} at step {step}")
            if self._metrics:
                path = str(checkpoint.directory)
                self._metrics.write("resume", step=step, path=path, world_size_then=then, world_size_now=now)
        elif self._metrics:
            self._metrics.write("start", step=0, world_size=plan.ranks.world_size, total_steps=plan.total_steps)
        # The layout is the engine's: that of the plan may be over already where a run with freezing.rebatch goes on.
        self.say(
            f"{plan.total_steps} steps of {plan.recipe.train.global_batch} images "
            f"({plan.ranks.world_size} ranks x {layout.accumulation} x micro-batch {layout.micro_batch}), "
            f"{plan.steps_per_epoch} steps an epoch of {plan.index.num_samples} images; ZeRO-{plan.ds.zero_stage} "
            f"{plan.ds.precision}; GEMM {self._throughput.gemm_rate / 1e9:.0f} GFLOP/s per rank"
        )
        if plan.recipe.freezing.rebatch:
            self.say(describe_rebatching(plan.micro_batches, plan.ds))

    def micro_batch(self, stage_losses: torch.Tensor, substituted: list[str]) -> None:
        """Take note of a micro-batch of this rank. stage_losses: fp32 [live stages]."""
        self._losses.add(self._engine.model.live_stages, stage_losses, self._engine.resolved.micro_batch)
        self._substitutions.add(substituted)

    def step(self, step: int) -> None:
        """One log line after `step` steps, for which the host waits for the device. Collective."""
        plan, model = self._plan, self._engine.model
        stages = self._losses.reduce(model.live_stages)
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
            "loss": sum(value for value in stages if value is not None),
            "loss_stages": stages,
            "lr": plan.schedule.learning_rates(step - 1),
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
        if self._plan.recipe.tracking.pictures == "checkpoint" and report.step < self._plan.total_steps:
            with self._throughput.aside():
                self._draw(lambda: draw_reconstruction_picture(self._plan), "reconstructions", report.step)

    def finished(self, step: int) -> None:
        """Pictures and summary of a run that is done; a picture that fails does not spoil it."""
        if not self._metrics:
            return
        events = read_metrics(self._plan.output)
        if self._plan.recipe.tracking.pictures != "never":
            self._draw(lambda: draw_reconstruction_picture(self._plan), "reconstructions", step)
            self._draw(lambda: draw_timeline_picture(self._plan, events), "freeze_timeline", step)
        self._metrics.write("end", step=step)
        self.say("done\n\n" + summarise(events) + "\n")
        for picture in sorted((self._plan.output / "pictures").glob("*.png")):
            tell(f"picture: {picture}")

    def close(self) -> None:
        if self._metrics:
            self._metrics.close()

    def _draw(self, draw: Callable[[], Path], name: str, step: int) -> None:
        if self._metrics:
            try:
                self._metrics.picture(name, draw(), step)
            except Exception as error:
                self.say(f"{name}.png was not drawn: {type(error).__name__}: {error}")
