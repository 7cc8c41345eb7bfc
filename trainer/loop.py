"""The training loop: `pretrain(plan, resume)` runs a plan to its end, or to a signal, and returns the exit code.

A step is: freeze what is due, set the rates, run the micro-batches through the engine. Everything else here happens
between steps: logging, saving, drawing.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

import torch
import torch.distributed as dist

from trainer.album import draw_reconstruction_picture, draw_timeline_picture
from trainer.checkpoint.background import BackgroundSaves, SaveReport
from trainer.checkpoint.config import CheckpointConfig
from trainer.checkpoint.manifest import Manifest, directory_name
from trainer.checkpoint.reader import Checkpoint
from trainer.checkpoint.writer import SaveFailed, save_checkpoint
from trainer.data.batches import MicroBatch
from trainer.data.loader import make_loader
from trainer.engine.engine import FreezeReport, FreezingEngine
from trainer.engine.frozen import FrozenArchive
from trainer.freezing.controller import FreezeController
from trainer.model.flops import step_flops
from trainer.model.localmim import LocalMIM
from trainer.model.masking import mask_noise
from trainer.numerics import BadSteps, farewell, write_report
from trainer.plan import RunPlan
from trainer.ranks import from_rank_zero
from trainer.setup import choose_checkpoint, prepare_output, start_process_group
from trainer.stopping import StopRequests, StopSignals
from trainer.tracking.console import Console
from trainer.tracking.losses import StageLosses, largest_over_ranks
from trainer.tracking.metrics import Metrics, read_metrics
from trainer.tracking.substitutions import Substitutions
from trainer.tracking.summary import summarise
from trainer.tracking.throughput import Throughput, measure_gemm_rate, memory_bytes
from trainer.watchdog import Watchdog, collective_timeout

DONE, FAILED, STOPPED = 0, 1, 75  # exit codes; schedulers requeue a job that ends with 75 (EX_TEMPFAIL)
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def pretrain(plan: RunPlan, resume: str) -> int:
    """Run on every rank. `resume`: auto, never or a path. Raises `BadInput` before any engine is built.

    The process group is left as it is when something raises: tearing it down might wait for ranks that wait for this
    one, and the launcher ends them all."""
    signals = StopSignals()  # from here on they are heard, though the first step may be minutes away
    hang_timeout = plan.recipe.train.hang_timeout
    device = start_process_group(plan.ranks, collective_timeout(hang_timeout))
    watchdog = Watchdog(hang_timeout, plan.output / "flight_recorder")
    try:
        # no name for the checkpoint here: while one exists its files are mapped, and NFS cannot delete them
        training = Training(plan, device, choose_checkpoint(plan, resume), watchdog, signals)
        code = training.run()
    except RuntimeError as error:  # a collective's, if another rank is gone
        lost = watchdog.lost_ranks()
        if lost is None:
            raise
        print(f"error on rank {plan.ranks.rank}: {lost} ({error})", file=sys.stderr, flush=True)
        return FAILED
    watchdog.close()
    training.close()
    return code


class Training:
    """One run on this rank: model, engine, data and the position among the steps."""

    def __init__(
        self,
        plan: RunPlan,
        device: torch.device,
        checkpoint: Checkpoint | None,
        watchdog: Watchdog,
        signals: StopSignals,
    ):
        prepare_output(plan, checkpoint)
        recipe, ranks = plan.recipe, plan.ranks
        self.plan, self.device, self.console, self.watchdog = plan, device, Console(ranks.rank), watchdog
        self.step = checkpoint.manifest.step if checkpoint else 0
        watchdog.at("building the model", self.step)
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
        watchdog.at("building the engine", self.step)
        self.engine = FreezingEngine(self.model, plan.ds, recipe.optimizer)
        if checkpoint:
            checkpoint.load_engine(self.engine)
        self.controller = FreezeController(plan.schedule, self.engine, self.archive)
        watchdog.at("measuring the device", self.step)
        self.throughput = Throughput(measure_gemm_rate(device, PRECISIONS[plan.ds.precision]))
        self.losses = StageLosses(len(recipe.model.stage_blocks), device)
        self.metrics = None
        if ranks.rank == 0:
            self.metrics = Metrics(plan.output, self.step, recipe.tracking.tensorboard, self.console.say)
        self.substitutions = Substitutions(read_metrics(plan.output) if self.metrics else [])
        self._announce(checkpoint)
        train = recipe.train
        self.stop_requests = StopRequests(
            signals, stop_after=train.stop_after, timeout=collective_timeout(train.hang_timeout)
        )
        self.bad_steps = BadSteps(train.max_bad_steps)
        self.saves = BackgroundSaves(plan.checkpoints, recipe.checkpoint, self._ask_to_stop)

    def run(self) -> int:
        recipe, ranks = self.plan.recipe, self.plan.ranks
        loader = make_loader(
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
            pin_memory=self.device.type != "cpu",
        )
        self.console.say(loader.describe())
        with closing(iter(loader)) as micro_batches:
            code = self._train(micro_batches)
        self.watchdog.at("finish", self.step)
        self.saves.wait()  # whatever is said or returned from here on is true of what is on disk
        self._tell_saves()
        if code == FAILED:
            return FAILED
        if self.saves.failed:
            self.console.say(f"ended at step {self.step} because of a failed save: go on with --resume auto")
            return FAILED
        if code == STOPPED:
            reason = self.stop_requests.reason or "asked for by another rank"
            self.console.say(f"stopped at step {self.step} ({reason}); continue with --resume auto")
            return STOPPED
        self._finish()
        return DONE

    def _train(self, micro_batches: Iterator[MicroBatch]) -> int:
        """All steps that are left, with their logs and saves. Returns the exit code if no save goes wrong."""
        save_every = self.plan.recipe.checkpoint.interval(self.plan.steps_per_epoch)
        log_every = self.plan.recipe.tracking.log_every
        save_due = False
        self.throughput.restart()
        while self.step < self.plan.total_steps:
            self._train_step(micro_batches)
            self.watchdog.at("agreeing on a stop", self.step)
            if self._too_many_bad_steps():
                return FAILED
            at_end = self.step == self.plan.total_steps
            stop = self.stop_requests.wait() if at_end else self.stop_requests.agreed()
            save_due = save_due or (save_every > 0 and self.step % save_every == 0)
            # after a bad step the weights may be what is bad: such a state must not push out a good one
            save = at_end or stop or (save_due and not self.engine.bad_steps_in_a_row)
            if save or self.step % log_every == 0:
                self.watchdog.at("log", self.step)
                self._log()
            self._tell_saves()
            if save:
                self.watchdog.at("save", self.step)
                self._save()
                save_due = False
            if stop and not at_end:
                return STOPPED
        return DONE

    def close(self) -> None:
        if self.metrics:
            self.metrics.close()
        dist.destroy_process_group()

    def _train_step(self, micro_batches: Iterator[MicroBatch]) -> None:
        if self.controller.is_due(self.step):
            self.watchdog.at("freeze", self.step + 1)
            with self.throughput.aside():
                self._freeze_event(self.controller.freeze(self.step))
        self.controller.set_rates(self.step)
        for _ in range(self.plan.ds.accumulation):
            self.watchdog.at("data", self.step + 1)
            with self.throughput.waiting():
                batch = next(micro_batches)
            self.substitutions.add(batch.substituted)
            images = batch.images.to(self.device, non_blocking=True)
            keys = batch.mask_keys.to(self.device, non_blocking=True)
            self.watchdog.at("forward", self.step + 1)
            loss, stage_losses = self.engine.forward(images, mask_noise(keys, self.model.num_patches))
            self.losses.add(self.model.live_stages, stage_losses)
            self.bad_steps.add(batch.keys, stage_losses)
            self.watchdog.at("backward", self.step + 1)
            self.engine.backward(loss)
            self.watchdog.at("step", self.step + 1)
            self.engine.step()
        images_per_rank = self.plan.recipe.train.global_batch // self.plan.ranks.world_size
        flops = step_flops(self.plan.recipe.model, self.model.frozen_units)
        self.throughput.step_done(flops.total * images_per_rank)
        self.step += 1

    def _log(self) -> None:
        """One log line, for which the host waits for the device."""
        stages = self.losses.reduce(self.model.live_stages)
        speed = self.throughput.read()
        speed["data_wait_seconds"] = largest_over_ranks(speed["data_wait_seconds"], self.device)
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
            "loss_scale": self.engine.loss_scale,
            "skipped_steps": self.engine.skipped_steps,
            "substituted_samples": self.substitutions.total(self.device),
            "bad_steps": self.engine.bad_steps,
        }
        if self.metrics:
            self.metrics.write("step", **event)
        self.console.step(event, self.plan.total_steps, (self.plan.total_steps - self.step) * speed["step_seconds"])
        self.throughput.restart()

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

    def _too_many_bad_steps(self) -> bool:
        """Tell of a step whose update was cancelled; after too many in a row leave the state and a report, and the run
        is over."""
        told = self.bad_steps.step_done(self.step, self.engine)
        if told is None:
            return False
        self.console.say(told)
        if not self.bad_steps.too_many(self.engine):
            return False
        root = self.plan.output / "inspection"
        report, path = self.bad_steps.report(self.step, self.engine), root / f"{directory_name(self.step)}.json"
        self.console.say(f"error: {farewell(report, path)}")
        try:
            from_rank_zero(lambda: write_report(path, report))  # first: it is small, should the disk be full
            save_checkpoint(root, self._manifest(), self.engine, self.archive, CheckpointConfig(keep_every=1))
        except (OSError, SaveFailed) as error:  # on all ranks alike
            self.console.say(f"error: {root} is not complete: {error}")
        return True

    def _manifest(self) -> Manifest:
        return Manifest(
            step=self.step,
            frozen_units=self.model.frozen_units,
            world_size=self.plan.ranks.world_size,
            zero_stage=self.plan.ds.zero_stage,
            precision=self.plan.ds.precision,
            recipe=self.plan.recipe.model_dump(mode="json"),
            index_hash=self.plan.index.content_hash,
            engine=self.engine.resume_state(),
            shapes=self.shapes,
            files={},
        )

    def _save(self) -> None:
        with self.throughput.aside():
            self.saves.save(self._manifest(), self.engine, self.archive)

    def _tell_saves(self) -> None:
        """Log the saves that have ended since the last call, as events that say where a run may be continued from."""
        for report in self.saves.reports():
            if report.error:
                stops = self.plan.recipe.checkpoint.on_error == "stop"
                self.console.say(f"error: {report.error}; {'all ranks stop' if stops else 'the next save tries again'}")
            else:
                self._tell_saved(report)

    def _tell_saved(self, report: SaveReport) -> None:
        self.console.say(
            f"step {report.step}: saved {report.path} ({report.bytes / 1e6:.1f} MB in {report.seconds:.1f} s, "
            f"training waited {report.stall_seconds:.2f} s)"
        )
        if self.metrics:
            fields = asdict(report) | {"path": str(report.path.relative_to(self.plan.output))}
            self.metrics.write("checkpoint", **{key: value for key, value in fields.items() if key != "error"})
        if self.plan.recipe.tracking.pictures == "checkpoint" and report.step < self.plan.total_steps:
            with self.throughput.aside():
                self._draw(lambda: draw_reconstruction_picture(self.plan), "reconstructions")

    def _ask_to_stop(self, reason: str) -> None:
        """For other threads. The ranks agree on the step as they do after a signal."""
        self.stop_requests.reason = self.stop_requests.reason or reason

    def _finish(self) -> None:
        """Rank 0 draws and tells; a run that is done is not spoiled by a picture that fails."""
        if not self.metrics:
            return
        events = read_metrics(self.plan.output)
        if self.plan.recipe.tracking.pictures != "never":
            self._draw(lambda: draw_reconstruction_picture(self.plan), "reconstructions")
            self._draw(lambda: draw_timeline_picture(self.plan, events), "freeze_timeline")
        self.metrics.write("end", step=self.step)
        self.console.say("done\n\n" + summarise(events) + "\n")
        for picture in sorted((self.plan.output / "pictures").glob("*.png")):
            print(f"picture: {picture}", flush=True)

    def _draw(self, draw: Callable[[], Path], name: str) -> None:
        if self.metrics:
            try:
                self.metrics.picture(name, draw(), self.step)
            except Exception as error:
                self.console.say(f"{name}.png was not drawn: {type(error).__name__}: {error}")

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
