"""The training loop: `pretrain(plan, resume)` runs a plan to its end, or to a signal, and returns the exit code.

A step is: freeze what is due, set the rates, run the micro-batches through the engine. Everything else here happens
between steps: logging, saving, drawing.
"""

import math
import signal
import time

import torch
import torch.distributed as dist

from trainer.checkpoint.frozen import FrozenArchive
from trainer.checkpoint.manifest import Manifest
from trainer.checkpoint.reader import Checkpoint
from trainer.checkpoint.writer import save_checkpoint
from trainer.data.loader import LaneLoader
from trainer.engine.engine import FreezeReport, FreezingEngine
from trainer.freezing.controller import FreezeController
from trainer.model.flops import step_flops
from trainer.model.localmim import LocalMIM
from trainer.model.masking import mask_noise
from trainer.plan import RunPlan
from trainer.ranks import from_rank_zero
from trainer.setup import choose_checkpoint, start_process_group, write_run_files
from trainer.tracking.album import draw_reconstruction_picture, draw_timeline_picture
from trainer.tracking.console import Console
from trainer.tracking.losses import StageLosses
from trainer.tracking.metrics import Metrics, read_metrics
from trainer.tracking.summary import summarise
from trainer.tracking.throughput import Throughput, measure_gemm_rate, memory_bytes

DONE, STOPPED = 0, 75  # exit codes; schedulers requeue a job that ends with 75 (EX_TEMPFAIL)
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def pretrain(plan: RunPlan, resume: str) -> int:
    """Run on every rank. `resume`: auto, never or a path. Raises `BadInput` before any engine is built."""
    device = start_process_group(plan.ranks)
    checkpoint = choose_checkpoint(plan, resume)
    from_rank_zero(lambda: write_run_files(plan))
    training = Training(plan, device, checkpoint)
    try:
        return training.run()
    finally:
        training.close()


class Training:
    """One run on this rank: model, engine, data and the position among the steps."""

    def __init__(self, plan: RunPlan, device: torch.device, checkpoint: Checkpoint | None):
        recipe, ranks = plan.recipe, plan.ranks
        self.plan, self.device, self.console = plan, device, Console(ranks.rank)
        self.step = checkpoint.manifest.step if checkpoint else 0
        torch.manual_seed(recipe.train.seed)
        self.model = LocalMIM(recipe.model)
        self.shapes = {name: list(p.shape) for name, p in self.model.named_parameters()}
        self.archive = FrozenArchive()
        if checkpoint:
            checkpoint.load_weights(self.model)
            if checkpoint.manifest.frozen_units:
                self.model.freeze_prefix(checkpoint.manifest.frozen_units)
            frozen = {name for name, p in self.model.named_parameters() if not p.requires_grad}
            checkpoint.load_archive(self.archive, frozen, ranks.rank, ranks.world_size)
        self.engine = FreezingEngine(self.model, plan.ds, recipe.optimizer)
        if checkpoint:
            checkpoint.load_engine(self.engine)
        self.controller = FreezeController(plan.schedule, self.engine, self.archive)
        self.throughput = Throughput(measure_gemm_rate(device, PRECISIONS[plan.ds.precision]))
        self.losses = StageLosses(len(recipe.model.stage_blocks), device)
        self.metrics = Metrics(plan.output, self.step, recipe.tracking.tensorboard) if ranks.rank == 0 else None
        self._announce(checkpoint)
        self._stop_requested = False
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            signal.signal(number, self._request_stop)

    def run(self) -> int:
        recipe, ranks = self.plan.recipe, self.plan.ranks
        loader = LaneLoader(
            self.plan.index,
            recipe.data,
            image_size=recipe.model.image_size,
            seed=recipe.train.seed,
            global_batch=recipe.train.global_batch,
            micro_batch=self.plan.ds.micro_batch,
            rank=ranks.rank,
            world_size=ranks.world_size,
            start_step=self.step,
            end_step=self.plan.total_steps,
        )
        micro_batches = iter(loader)
        save_every = recipe.checkpoint.interval(self.plan.steps_per_epoch)
        self.throughput.restart()
        stop = False
        while self.step < self.plan.total_steps and not stop:
            self._train_step(micro_batches)
            at_end = self.step == self.plan.total_steps
            if at_end or self.step % recipe.tracking.log_every == 0:
                stop = self._log()
            if at_end or stop or (save_every and self.step % save_every == 0):
                self._save(draw=at_end)
        if self.step < self.plan.total_steps:
            self.console.say(f"stopped by a signal at step {self.step}; continue with --resume auto")
            return STOPPED
        self._finish()
        return DONE

    def close(self) -> None:
        if self.metrics:
            self.metrics.close()
        if dist.is_initialized():
            dist.destroy_process_group()

    def _train_step(self, micro_batches) -> None:
        with self.throughput.aside():
            report = self.controller.before_step(self.step)
            if report:
                self._freeze_event(report)
        for _ in range(self.plan.ds.accumulation):
            with self.throughput.waiting():
                batch = next(micro_batches)
            images = batch.images.to(self.device, non_blocking=True)
            keys = batch.mask_keys.to(self.device, non_blocking=True)
            loss, stage_losses = self.engine.forward(images, mask_noise(keys, self.model.num_patches))
            self.losses.add(self.model.live_stages, stage_losses)
            self.engine.backward(loss)
            self.engine.step()
        images_per_rank = self.plan.recipe.train.global_batch // self.plan.ranks.world_size
        flops = step_flops(self.plan.recipe.model, self.model.frozen_units)
        self.throughput.step_done(flops.total * images_per_rank)
        self.step += 1

    def _log(self) -> bool:
        """One log line; the only place where a step waits for the device. Returns whether a rank asks to stop."""
        stages, stop = self.losses.reduce(self.model.live_stages, self._stop_requested)
        speed = self.throughput.read()
        global_batch = self.plan.recipe.train.global_batch
        loss = sum(value for value in stages if value is not None)
        event = {
            "step": self.step,
            "epoch": self.step / self.plan.steps_per_epoch,
            "samples": self.step * global_batch,
            "loss": loss,
            "loss_stages": stages,
            "lr": self.plan.schedule.learning_rates(self.step - 1),
            "frozen_units": self.model.frozen_units,
            "trainable_parameters": self.engine.trainable_parameters,
            "images_per_second": global_batch / speed["step_seconds"],
            **speed,
            "optimizer_bytes": self.engine.optimizer_bytes(),
            "memory_bytes": memory_bytes(self.device),
        }
        if self.metrics:
            self.metrics.write("step", **event)
        self.console.step(event, self.plan.total_steps, (self.plan.total_steps - self.step) * speed["step_seconds"])
        if not math.isfinite(loss):
            raise RuntimeError(
                f"the loss is not finite at step {self.step} (by stage: {stages}): resume from an earlier checkpoint "
                "with a lower optimizer.blr or a longer optimizer.warmup_epochs"
            )
        self.throughput.restart()
        return stop

    def _freeze_event(self, report: FreezeReport) -> None:
        removed = [k for k, block in enumerate(self.plan.recipe.model.stage_blocks) if block + 1 in report.units]
        event = {
            "step": self.step,
            "units": report.units,
            "stages_removed": removed,
            "seconds": report.seconds,
            "optimizer_bytes_before": report.optimizer_bytes_before,
            "optimizer_bytes_after": report.optimizer_bytes_after,
            "trainable_parameters": self.engine.trainable_parameters,
            "micro_batch": self.plan.ds.micro_batch,
        }
        if self.metrics:
            self.metrics.write("freeze", **event)
        self.console.freeze(event)

    def _save(self, draw: bool) -> None:
        recipe, start = self.plan.recipe, time.perf_counter()
        with self.throughput.aside():
            manifest = Manifest(
                step=self.step,
                frozen_units=self.model.frozen_units,
                world_size=self.plan.ranks.world_size,
                zero_stage=self.plan.ds.zero_stage,
                precision=self.plan.ds.precision,
                recipe=recipe.model_dump(mode="json"),
                index_hash=self.plan.index.content_hash,
                engine=self.engine.resume_state(),
                shapes=self.shapes,
                files={},
            )
            path, size = save_checkpoint(
                self.plan.checkpoints, manifest, self.engine, self.archive, recipe.checkpoint.keep_last
            )
            seconds = time.perf_counter() - start
            if self.metrics:
                where = str(path.relative_to(self.plan.output))
                self.metrics.write("checkpoint", step=self.step, path=where, seconds=seconds, bytes=size)
            self.console.say(f"step {self.step}: saved {path} ({size / 1e6:.1f} MB in {seconds:.1f} s)")
            wanted = recipe.tracking.pictures
            if self.metrics and (wanted == "checkpoint" or (wanted == "end" and draw)):
                picture = draw_reconstruction_picture(self.plan, Checkpoint(path))
                self.metrics.picture("reconstructions", picture, self.step)

    def _finish(self) -> None:
        if not self.metrics:
            return
        events = read_metrics(self.plan.output)
        if self.plan.recipe.tracking.pictures != "never":
            timeline = draw_timeline_picture(self.plan, events)
            self.metrics.picture("freeze_timeline", timeline, self.step)
        self.metrics.write("end", step=self.step)
        self.console.say("done\n\n" + summarise(events) + "\n")
        for picture in sorted((self.plan.output / "pictures").glob("*.png")):
            print(f"picture: {picture}", flush=True)

    def _announce(self, checkpoint: Checkpoint | None) -> None:
        plan = self.plan
        if checkpoint:
            then, now = checkpoint.manifest.world_size, plan.ranks.world_size
            self.console.say(f"resuming from {checkpoint.directory} at step {self.step}")
            if self.metrics:
                path = str(checkpoint.directory)
                self.metrics.write("resume", step=self.step, path=path, world_size_then=then, world_size_now=now)
        elif self.metrics:
            self.metrics.write("start", step=0, world_size=plan.ranks.world_size, total_steps=plan.total_steps)
        self.console.say(
            f"{plan.total_steps} steps of {plan.recipe.train.global_batch} images "
            f"({plan.ranks.world_size} ranks x {plan.ds.accumulation} x micro-batch {plan.ds.micro_batch}), "
            f"{plan.steps_per_epoch} steps an epoch of {plan.index.num_samples} images; ZeRO-{plan.ds.zero_stage} "
            f"{plan.ds.precision}; GEMM {self.throughput.gemm_rate / 1e9:.0f} GFLOP/s per rank"
        )

    def _request_stop(self, number: int, _frame) -> None:
        """The ranks agree at the next log step, finish it, save and leave. A second Ctrl-C ends at once."""
        if self._stop_requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._stop_requested = True
        self.console.say(f"{signal.Signals(number).name}: saving and stopping at the next log step")
