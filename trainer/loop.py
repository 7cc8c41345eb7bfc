"""The training loop: `run_training(plan, resume, …)` runs a plan to its end, or to a signal, and returns the exit code.

A step is: set the rates, run the micro-batches through the engine. Everything else here happens between steps: saving,
and telling the `Logbook` what there is to tell. What is trained, and with which loss, is the business of a subclass:
`trainer.pretraining` or `trainer.finetuning.training`.
"""

import socket
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch.profiler import record_function

from trainer.checkpoint.background import BackgroundSaves
from trainer.checkpoint.config import CheckpointConfig
from trainer.checkpoint.manifest import Manifest, directory_name
from trainer.checkpoint.reader import Checkpoint
from trainer.checkpoint.writer import SaveFailed, save_checkpoint
from trainer.data.batches import MicroBatch
from trainer.data.cache import prepare_cache
from trainer.data.loader import Loader
from trainer.device_feed import on_device
from trainer.engine.ds_config import ResolvedDsConfig
from trainer.engine.engine import FreezingEngine
from trainer.engine.frozen import FrozenArchive
from trainer.logbook import Logbook
from trainer.numerics import BadSteps, farewell, write_report
from trainer.plan import AnyPlan
from trainer.pretrained.initial import Origin
from trainer.profiling import StepProfiler
from trainer.ranks import from_rank_zero, on_every_rank
from trainer.setup import choose_checkpoint, holding_output, prepare_output, start_process_group
from trainer.stopping import StopRequests, StopSignals
from trainer.storages import Storages
from trainer.tracking.rank_log import complain, open_rank_log, start_rank_log
from trainer.tracking.throughput import Throughput, measure_gemm_rate
from trainer.watchdog import Watchdog, collective_timeout

DONE, FAILED, STOPPED = 0, 1, 75  # exit codes; schedulers requeue a job that ends with 75 (EX_TEMPFAIL)
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def run_training(plan: AnyPlan, resume: str, kind: "Callable[..., Training]") -> int:
    """Run on every rank. `resume`: auto, never or a path. Raises `BadInput` before any engine is built.

    The process group is left as it is when something raises: tearing it down might wait for ranks that wait for this
    one, and the launcher ends them all."""
    start_rank_log()
    signals = StopSignals()  # from here on they are heard, though the first step may be minutes away
    hang_timeout = plan.recipe.train.hang_timeout
    device = start_process_group(plan.ranks, collective_timeout(hang_timeout))
    watchdog = Watchdog(hang_timeout, plan.output / "flight_recorder")
    try:
        with holding_output(plan.output) as storages:
            # no name for the checkpoint here: while one exists its files are mapped, and NFS cannot delete them
            training = kind(plan, device, storages, choose_checkpoint(plan, resume, storages), watchdog, signals)
            code = training.run()
    except RuntimeError as error:  # a collective's, if another rank is gone
        lost = watchdog.lost_ranks()
        if lost is None:
            raise
        complain(f"error on rank {plan.ranks.rank}: {lost} ({error})")
        return FAILED
    watchdog.close()
    training.close()
    return code


class Training(ABC):
    """One run on this rank: model, engine, data and the position among the steps."""

    logbook_kind: type[Logbook]
    origin: Origin | None = None
    """Of the weights that a new run starts from, where they are not random."""

    def __init__(
        self,
        plan: AnyPlan,
        device: torch.device,
        storages: Storages,
        checkpoint: Checkpoint | None,
        watchdog: Watchdog,
        signals: StopSignals,
    ):
        recipe, ranks = plan.recipe, plan.ranks
        self.plan, self.device, self.storages, self.watchdog = plan, device, storages, watchdog
        self.step = checkpoint.manifest.step if checkpoint else 0
        self._prepare(checkpoint)
        on_every_rank(lambda: prepare_cache(recipe.data))
        prepare_output(plan, checkpoint, storages)
        open_rank_log(plan.logs, ranks.rank, ranks.world_size, socket.gethostname())
        watchdog.at("building the model", self.step)
        torch.manual_seed(recipe.train.seed)
        self.model = self._new_model()
        self.shapes = {name: list(p.shape) for name, p in self.model.named_parameters()}
        self.archive = FrozenArchive()
        if checkpoint:
            checkpoint.load_weights(self.model)
            if checkpoint.manifest.frozen_units:
                self.model.freeze_prefix(checkpoint.manifest.frozen_units)
            checkpoint.load_archive(self.archive, self._frozen_names(), ranks.rank, ranks.world_size)
        elif initial_units := self._initially_frozen_units():
            self.model.freeze_prefix(initial_units)
            self.archive.keep_initial(self.model, self._frozen_names(), ranks.rank, ranks.world_size)
        watchdog.at("building the engine", self.step)
        resolved = plan.ds.with_micro_batch(plan.micro_batches.at(self.step))
        self.engine = self._new_engine(resolved)
        if checkpoint:
            checkpoint.load_engine(self.engine)
        self._engine_ready(checkpoint)
        watchdog.at("measuring the device", self.step)
        self.throughput = Throughput(measure_gemm_rate(device, PRECISIONS[plan.ds.precision]))
        self.logbook = self.logbook_kind(plan, self.engine, self._learning_rates, self.throughput, device, self.step)
        self.logbook.started(checkpoint, self.origin)
        train = recipe.train
        profiles = plan.output / "profile" / f"rank_{ranks.rank}"
        self.profiler = StepProfiler(
            train.profile, profiles, device, self.throughput.aside, self.logbook.say, first_step=self.step + 1
        )
        self.stop_requests = StopRequests(
            signals, stop_after=train.stop_after, timeout=collective_timeout(train.hang_timeout)
        )
        self.bad_steps = BadSteps(train.max_bad_steps)
        self.saves = BackgroundSaves(plan.checkpoints, recipe.checkpoint, self._ask_to_stop, storages)

    def _prepare(self, checkpoint: Checkpoint | None) -> None:  # noqa: B027 (not every kind of run has any)
        """What may still be refused, before anything is written or built. Collective. Raises `BadInput`."""

    def _new_model(self) -> Any:
        """The model with the weights of a new run; those of a checkpoint take their place."""
        return self.plan.new_model()

    def _initially_frozen_units(self) -> int:
        """How many units a new run starts with frozen."""
        return 0

    def _new_engine(self, resolved: ResolvedDsConfig) -> FreezingEngine:
        return FreezingEngine(self.model, resolved, self.plan.recipe.optimizer)

    def _engine_ready(self, checkpoint: Checkpoint | None) -> None:  # noqa: B027 (not every kind of run has any)
        """Make what needs the engine, whose state is that of `checkpoint` where there is one. Collective."""

    @abstractmethod
    def _learning_rates(self, step: int) -> list[float | None]:
        """Of each unit at a step (0 = the first); None where it is frozen."""

    @abstractmethod
    def _new_loader(self, **settings: Any) -> Loader:
        """The run's data. `settings`: those of every loader."""

    def _before_step(self) -> None:
        """Set what holds for the step to come, `self.step` (0 = the first). Collective."""
        self.engine.set_learning_rates(self._learning_rates(self.step))

    @abstractmethod
    def _losses(self, batch: MicroBatch, micro_step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss to train on, and what is logged of it, fp32 [as many as the logbook expects], of the micro-batch
        number `micro_step` of the step under way."""

    def _freezing_state(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """What a policy that measures has been told, and this rank's part of what it compares with, for a save."""
        return {}, {}

    @abstractmethod
    def _image_flops(self) -> int:
        """Matmul FLOPs of one image, forward and backward, in the step under way."""

    def _is_save_due(self) -> bool:
        """Whether the state after `self.step` steps is to be saved, though the run goes on."""
        save_every = self.plan.recipe.checkpoint.interval(self.plan.steps_per_epoch)
        return save_every > 0 and self.step % save_every == 0

    def _after_step(self) -> None:  # noqa: B027 (not every kind of run has any)
        """Between two steps, `self.step` of them done and logged, before they are saved; not if the run is to stop,
        for then time is short. Collective."""

    def run(self) -> int:
        recipe, ranks = self.plan.recipe, self.plan.ranks
        loader = self._new_loader(
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
            save_due = save_due or self._is_save_due()
            # after a bad step the weights may be what is bad: such a state must not push out a good one
            save = at_end or stop or (save_due and not self.engine.bad_steps_in_a_row)
            if save or self.step % log_every == 0:
                self.watchdog.at("log", self.step)
                self.logbook.step(self.step)
            self._tell_saves()
            if not stop:
                self._after_step()
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

    def _frozen_names(self) -> set[str]:
        return {name for name, parameter in self.model.named_parameters() if not parameter.requires_grad}

    def _train_step(self, micro_batches: Iterator[MicroBatch]) -> None:
        self._before_step()
        for micro_step in range(self.engine.resolved.accumulation):
            with self._phase("data"), self.throughput.waiting():
                batch = next(micro_batches)
            with self._phase("forward"), self.logbook.in_forward():
                loss, losses = self._losses(batch, micro_step)
            self.logbook.micro_batch(losses, batch.substituted)
            self.bad_steps.add(batch.keys, losses)
            with self._phase("backward"):
                self.engine.backward(loss)
            with self._phase("update"):
                self.engine.step()
        images_per_rank = self.plan.recipe.train.global_batch // self.plan.ranks.world_size
        self.throughput.step_done(self._image_flops() * images_per_rank)
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
            save_checkpoint(
                root,
                self._manifest(),
                self.engine,
                self.archive,
                CheckpointConfig(keep_every=1),
                self._freezing_state()[1],
                self.storages,
            )
        except (OSError, SaveFailed) as error:  # on all ranks alike
            self.logbook.say(f"error: {root} is not complete: {error}")
        return True

    def _manifest(self) -> Manifest:
        freezing, reference = self._freezing_state()
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
            freezing=freezing,
            reference={name: list(values.shape) for name, values in reference.items()},
        )

    def _save(self) -> None:
        with self.throughput.aside():
            self.saves.save(self._manifest(), self.engine, self.archive, self._freezing_state()[1])

    def _tell_saves(self) -> None:
        """Tell of the saves that have ended since the last call."""
        for report in self.saves.reports():
            self.logbook.saved(report)

    def _ask_to_stop(self, reason: str) -> None:
        """For other threads. The ranks agree on the step as they do after a signal."""
        self.stop_requests.reason = self.stop_requests.reason or reason
