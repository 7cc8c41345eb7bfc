"""The training loop: `pretrain(plan, resume, init)` runs a plan to its end, or to a signal, and returns the exit code.

A step is: freeze what is due, set the rates, run the micro-batches through the engine. Everything else here happens
between steps: saving, and telling the `Logbook` what there is to tell.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
from torch.profiler import record_function

from trainer.checkpoint.background import BackgroundSaves
from trainer.checkpoint.config import CheckpointConfig
from trainer.checkpoint.manifest import Manifest, directory_name
from trainer.checkpoint.reader import Checkpoint
from trainer.checkpoint.writer import SaveFailed, save_checkpoint
from trainer.data.batches import MicroBatch
from trainer.data.loader import make_loader
from trainer.device_feed import on_device
from trainer.engine.engine import FreezingEngine
from trainer.engine.frozen import FrozenArchive
from trainer.freezing.controller import FreezeController
from trainer.logbook import Logbook
from trainer.model.compile import CompiledBlock, compile_block
from trainer.model.flops import step_flops
from trainer.model.localmim import LocalMIM
from trainer.model.masking import mask_noise
from trainer.numerics import BadSteps, farewell, write_report
from trainer.plan import RunPlan
from trainer.profiling import StepProfiler
from trainer.ranks import from_rank_zero, on_every_rank
from trainer.setup import choose_checkpoint, choose_initial_weights, prepare_output, start_process_group
from trainer.stopping import StopRequests, StopSignals
from trainer.tracking.throughput import Throughput, measure_gemm_rate
from trainer.watchdog import Watchdog, collective_timeout

DONE, FAILED, STOPPED = 0, 1, 75  # exit codes; schedulers requeue a job that ends with 75 (EX_TEMPFAIL)
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def pretrain(plan: RunPlan, resume: str, init: Path | None) -> int:
    """Run on every rank. `resume`: auto, never or a path. `init`: pre-trained weights to start from, if there is no
    checkpoint to go on from. Raises `BadInput` before any engine is built.

    The process group is left as it is when something raises: tearing it down might wait for ranks that wait for this
    one, and the launcher ends them all."""
    signals = StopSignals()  # from here on they are heard, though the first step may be minutes away
    hang_timeout = plan.recipe.train.hang_timeout
    device = start_process_group(plan.ranks, collective_timeout(hang_timeout))
    watchdog = Watchdog(hang_timeout, plan.output / "flight_recorder")
    try:
        # no name for the checkpoint here: while one exists its files are mapped, and NFS cannot delete them
        training = Training(plan, device, choose_checkpoint(plan, resume), watchdog, signals, init)
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
        init: Path | None = None,
    ):
        recipe, ranks = plan.recipe, plan.ranks
        self.plan, self.device, self.watchdog = plan, device, watchdog
        self.step = checkpoint.manifest.step if checkpoint else 0
        initial = choose_initial_weights(plan, init, checkpoint)
        compiled = self._compile() if recipe.train.compile else None
        prepare_output(plan, checkpoint)
        watchdog.at("building the model", self.step)
        torch.manual_seed(recipe.train.seed)
        self.model = LocalMIM(recipe.model, checkpoint_activations=recipe.train.checkpoint_activations)
        if compiled:
            compiled.install(self.model)
        self.shapes = {name: list(p.shape) for name, p in self.model.named_parameters()}
        self.archive = FrozenArchive()
        if checkpoint:
            checkpoint.load_weights(self.model)
            if checkpoint.manifest.frozen_units:
                self.model.freeze_prefix(checkpoint.manifest.frozen_units)
            frozen = {name for name, p in self.model.named_parameters() if not p.requires_grad}
            checkpoint.load_archive(self.archive, frozen, ranks.rank, ranks.world_size)
        elif initial:
            initial.copy_into(self.model)
        watchdog.at("building the engine", self.step)
        resolved = plan.ds.with_micro_batch(plan.micro_batches.at(self.step))
        self.engine = FreezingEngine(self.model, resolved, recipe.optimizer)
        if checkpoint:
            checkpoint.load_engine(self.engine)
        elif initial:
            initial.copy_masters(self.engine)
        self.controller = FreezeController(plan.schedule, plan.micro_batches, self.engine, self.archive)
        watchdog.at("measuring the device", self.step)
        self.throughput = Throughput(measure_gemm_rate(device, PRECISIONS[plan.ds.precision]))
        self.logbook = Logbook(plan, self.engine, self.throughput, device, self.step)
        self.logbook.started(checkpoint, initial.origin if initial else None)
        if compiled:
            self.logbook.say(f"compiled the encoder's block in {compiled.seconds:.0f} s")
        train = recipe.train
        profiles = plan.output / "profile" / f"rank_{ranks.rank}"
        self.profiler = StepProfiler(
            train.profile, profiles, device, self.throughput.aside, self.logbook.say, first_step=self.step + 1
        )
        self.stop_requests = StopRequests(
            signals, stop_after=train.stop_after, timeout=collective_timeout(train.hang_timeout)
        )
        self.bad_steps = BadSteps(train.max_bad_steps)
        self.saves = BackgroundSaves(plan.checkpoints, recipe.checkpoint, self._ask_to_stop)

    def _compile(self) -> CompiledBlock:
        """First of all: a machine without a compiler is found out before anything is written or built. Collective."""
        self.watchdog.at("compiling the block", self.step)
        sizes, dtype = self.plan.micro_batches.from_step(self.step), PRECISIONS[self.plan.ds.precision]
        config = self.plan.recipe.model
        return on_every_rank(lambda: compile_block(config, micro_batches=sizes, device=self.device, dtype=dtype))

    def run(self) -> int:
        recipe, ranks = self.plan.recipe, self.plan.ranks
        loader = make_loader(
            self.plan.index,
            recipe.data,
            image_size=recipe.model.image_size,
            seed=recipe.train.seed,
            global_batch=recipe.train.global_batch,
            micro_batch=self.plan.micro_batches,
            rank=ranks.rank,
            world_size=ranks.world_size,
            start_step=self.step,
            end_step=self.plan.total_steps,
            pin_memory=self.device.type != "cpu",
        )
        self.logbook.say(loader.describe())
        with on_device(loader, self.device) as micro_batches:
            code = self._train(micro_batches)
        self.profiler.close()
        self.watchdog.at("finish", self.step)
        self.saves.wait()  # whatever is said or returned from here on is true of what is on disk
        self._tell_saves()
        if code == FAILED:
            return FAILED
        if self.saves.failed:
            self.logbook.say(f"ended at step {self.step} because of a failed save: go on with --resume auto")
            return FAILED
        if code == STOPPED:
            reason = self.stop_requests.reason or "asked for by another rank"
            self.logbook.say(f"stopped at step {self.step} ({reason}); continue with --resume auto")
            return STOPPED
        self.logbook.finished(self.step)
        return DONE

    def _train(self, micro_batches: Iterator[MicroBatch]) -> int:
        """All steps that are left, with their logs and saves. Returns the exit code if no save goes wrong."""
        save_every = self.plan.recipe.checkpoint.interval(self.plan.steps_per_epoch)
        log_every = self.plan.recipe.tracking.log_every
        save_due = False
        self.throughput.restart()
        while self.step < self.plan.total_steps:
            self.profiler.before(self.step + 1)
            with record_function(f"step {self.step + 1}"):
                self._train_step(micro_batches)
            self.profiler.after(self.step)
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
                self.logbook.step(self.step)
            self._tell_saves()
            if save:
                self.watchdog.at("save", self.step)
                self._save()
                save_due = False
            if stop and not at_end:
                return STOPPED
        return DONE

    def close(self) -> None:
        self.logbook.close()
        dist.destroy_process_group()

    def _train_step(self, micro_batches: Iterator[MicroBatch]) -> None:
        if self.controller.is_due(self.step):
            with self._phase("freeze"), self.throughput.aside():
                self.logbook.freeze(self.step, self.controller.freeze(self.step))
        self.controller.set_rates(self.step)
        for _ in range(self.engine.resolved.accumulation):
            with self._phase("data"), self.throughput.waiting():
                batch = next(micro_batches)
            with self._phase("forward"):
                noise = mask_noise(batch.mask_keys, self.model.num_patches)
                loss, stage_losses = self.engine.forward(batch.images, noise)
            self.logbook.micro_batch(stage_losses, batch.substituted)
            self.bad_steps.add(batch.keys, stage_losses)
            with self._phase("backward"):
                self.engine.backward(loss)
            with self._phase("update"):
                self.engine.step()
        images_per_rank = self.plan.recipe.train.global_batch // self.plan.ranks.world_size
        flops = step_flops(self.plan.recipe.model, self.model.frozen_units)
        self.throughput.step_done(flops.total * images_per_rank)
        self.step += 1

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        """A part of the step under way, by which a report of the watchdog and a profile call it."""
        self.watchdog.at(name, self.step + 1)
        with record_function(name):
            yield

    def _too_many_bad_steps(self) -> bool:
        """Tell of a step whose update was cancelled; after too many in a row leave the state and a report, and the run
        is over."""
        told = self.bad_steps.step_done(self.step, self.engine)
        if told is None:
            return False
        self.logbook.say(told)
        if not self.bad_steps.too_many(self.engine):
            return False
        root = self.plan.output / "inspection"
        report, path = self.bad_steps.report(self.step, self.engine), root / f"{directory_name(self.step)}.json"
        self.logbook.say(f"error: {farewell(report, path)}")
        try:
            from_rank_zero(lambda: write_report(path, report))  # first: it is small, should the disk be full
            save_checkpoint(root, self._manifest(), self.engine, self.archive, CheckpointConfig(keep_every=1))
        except (OSError, SaveFailed) as error:  # on all ranks alike
            self.logbook.say(f"error: {root} is not complete: {error}")
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
        """Tell of the saves that have ended since the last call."""
        for report in self.saves.reports():
            self.logbook.saved(report)

    def _ask_to_stop(self, reason: str) -> None:
        """For other threads. The ranks agree on the step as they do after a signal."""
        self.stop_requests.reason = self.stop_requests.reason or reason
