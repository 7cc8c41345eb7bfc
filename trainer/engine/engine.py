"""One DeepSpeed engine for a whole run, whose optimizer shrinks as units of the model freeze.

::

    model = LocalMIM(config)                      # model.freeze_prefix(n) first when resuming after a freeze
    engine = FreezingEngine(model, resolve_ds_config(…), OptimizerConfig())
    for step in …:
        if schedule.frozen_units(step) > model.frozen_units:
            engine.freeze(schedule.frozen_units(step))
        engine.set_learning_rates(schedule.learning_rates(step))
        for micro_batch in …:
            loss, _ = engine.forward(images, noise)
            engine.backward(loss)
            engine.step()

Switching off `requires_grad` is not enough to freeze under ZeRO: momentum and weight decay go on moving the weights
and no byte is given back. Instead the optimizer wrapper inside the engine is replaced by one over the surviving
parameter groups, which is exact: training goes on as plain AdamW that dropped the same parameters.
"""

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator

from trainer.engine import internals
from trainer.engine.config import OptimizerConfig
from trainer.engine.ds_config import ResolvedDsConfig
from trainer.engine.fragments import MOMENTS, Fragment, local_fragments
from trainer.engine.groups import ParameterGroup, parameter_groups


@dataclass(frozen=True)
class FreezeReport:
    """What a freeze did: the units frozen by it, its duration in seconds, optimizer bytes by rank before and after."""

    units: list[int]
    seconds: float
    optimizer_bytes_before: list[int]
    optimizer_bytes_after: list[int]


class FreezingEngine:
    """Forward, backward and AdamW step under ZeRO 0 to 3, with `freeze`."""

    def __init__(self, model: Any, resolved: ResolvedDsConfig, optimizer: OptimizerConfig):
        """Call `deepspeed.initialize` for `model` (see `groups.FreezableModel`), once.

        Parameters with `requires_grad` False are left out of the optimizer. DeepSpeed casts the model to the
        configured precision, moves it to the accelerator and, at stage 3, partitions it. The learning rate is 0 until
        `set_learning_rates`."""
        self.model = model
        self.resolved = resolved
        self._groups = parameter_groups(model)
        # Only the engine is kept: a reference to the second value, the wrapper, would hold its shards for ever.
        self._engine = deepspeed.initialize(
            model=model, optimizer=_adamw(self._groups, optimizer, resolved), config=resolved.config
        )[0]
        self._backward_pending = False
        self._bad_steps = self._bad_steps_in_a_row = 0
        internals.warn_if_untested(self._engine.global_rank)
        internals.undo_constructor_step(self._engine)
        internals.leave_gradients_of_one_rank(self._engine)
        internals.raise_no_error_at_lowest_scale(self._engine)

    def forward(self, *inputs: Any) -> Any:
        """The model's forward, through DeepSpeed's hooks. The inputs must be on the accelerator."""
        return self._engine(*inputs)

    def backward(self, loss: torch.Tensor) -> None:
        """Accumulate the gradient of a micro-batch's mean loss, divided by the number of accumulation steps.

        A loss that is not finite gives a gradient of NaN, even where the chain rule would give a finite one."""
        self._backward_pending = True
        finite = torch.where(loss.detach().isfinite(), 1.0, torch.nan)  # stays on the device; × 1 changes no bit
        self._engine.backward(loss * finite)

    def step(self) -> None:
        """End a micro-batch. At an accumulation boundary the weights are updated.

        If any rank's gradient has an inf or a NaN there, no rank updates anything: weights, moments and step counts
        stay as they are, and the step is counted in `skipped_steps`. Unless that is fp16's search for a loss scale, it
        counts in `bad_steps` as well."""
        if self._engine.is_gradient_accumulation_boundary():
            self._update()
        else:
            self._engine.step()
        self._backward_pending = False

    @property
    def at_boundary(self) -> bool:
        """No micro-batch of an unfinished accumulation is under way: a freeze or a save may happen."""
        return not self._backward_pending and self._engine.micro_steps % self.resolved.accumulation == 0

    @property
    def trainable_parameters(self) -> int:
        """Number of scalars that still train, over all ranks."""
        return sum(sum(group.sizes) for group in self._groups)

    @property
    def loss_scale(self) -> float:
        """Factor on the loss against fp16 underflow; 1 for fp32 and bf16."""
        return internals.loss_scaler_state(self._engine).get("cur_scale", 1.0)

    @property
    def skipped_steps(self) -> int:
        """Updates cancelled so far because a gradient was not finite; fp16's search for a loss scale is among them."""
        return self._engine.skipped_steps

    @property
    def bad_steps(self) -> int:
        """Updates cancelled so far that no lower loss scale could have saved: all under fp32 and bf16, and under fp16
        those at the lowest scale or at a fixed one."""
        return self._bad_steps

    @property
    def bad_steps_in_a_row(self) -> int:
        """How many of `bad_steps` the latest updates were, without one between them that was applied."""
        return self._bad_steps_in_a_row

    @property
    def gradient_norm(self) -> torch.Tensor | float | None:
        """Global L2 norm of the latest update's gradient before clipping; None where DeepSpeed has not computed it (at
        stage 0 under fp32). Not finite after a cancelled update."""
        return self._engine.get_global_grad_norm()

    @property
    def global_steps(self) -> int:
        """Accumulation boundaries passed so far, skipped updates included."""
        return self._engine.global_steps

    def set_learning_rates(self, by_unit: Sequence[float | None]) -> None:
        """Set the learning rate of every live unit from now on; entries of frozen units are ignored."""
        for group, settings in zip(self._groups, internals.inner_optimizer(self._engine).param_groups, strict=True):
            rate = by_unit[group.unit]
            if rate is None:
                raise ValueError(f"unit {group.unit} still trains and needs a learning rate")
            settings["lr"] = rate

    def set_micro_batch(self, micro_batch: int) -> None:
        """Take the same global batch in other micro-batches from now on: `resolved.accumulation` of them per update.

        Allowed only at an accumulation boundary, by all ranks alike. Raises RuntimeError off one, ValueError if the
        micro-batch does not divide a rank's share."""
        if not self.at_boundary:
            raise RuntimeError(
                "set_micro_batch() in the middle of a gradient accumulation: call it after the last step()"
            )
        self.resolved = self.resolved.with_micro_batch(micro_batch)
        internals.set_micro_batch(self._engine, micro_batch)

    def freeze(self, frozen_units: int) -> FreezeReport:
        """Freeze units 0 to `frozen_units` - 1 for good, model and optimizer alike. Several units cost one rebuild.

        Collective, and allowed only at an accumulation boundary. Frees this rank's masters and moments of those units;
        the caller archives the fp32 masters before, if an exact copy is wanted (see `fragments`).
        Raises RuntimeError off a boundary or when the ranks disagree, on the units or on the micro-batch, and
        ValueError when nothing would freeze or train."""
        started = time.perf_counter()
        newly_frozen = list(range(self.model.frozen_units, frozen_units))
        survivors = [index for index, group in enumerate(self._groups) if group.unit >= frozen_units]
        if not self.at_boundary:
            raise RuntimeError("freeze() in the middle of a gradient accumulation: call it after the last step()")
        if not newly_frozen:
            raise ValueError(f"{self.model.frozen_units} units are frozen already, asked for {frozen_units}")
        if not survivors:
            raise ValueError(f"freezing {frozen_units} of {self.model.num_units} units would leave nothing to train")
        units, micro_batches, bytes_before = zip(
            *self._by_rank((frozen_units, self.resolved.micro_batch, self.optimizer_bytes())), strict=True
        )
        if len(set(units)) > 1:
            raise RuntimeError(f"the ranks want to freeze different numbers of units: {list(units)}")
        if len(set(micro_batches)) > 1:  # then some would make more forwards than others, and hang in their collectives
            raise RuntimeError(f"the ranks have different micro-batches: {list(micro_batches)}")
        gone = [parameter for group in self._groups if group.unit < frozen_units for parameter in group.parameters]
        self.model.freeze_prefix(frozen_units)
        internals.rebuild_wrapper(self._engine, self._groups, survivors)
        for parameter in gone:
            internals.detach_frozen(parameter)
        self._groups = [self._groups[index] for index in survivors]
        get_accelerator().empty_cache()  # 12 times a run; else freed blocks fit only requests of their own sizes
        return FreezeReport(
            units=newly_frozen,
            seconds=time.perf_counter() - started,
            optimizer_bytes_before=list(bytes_before),
            optimizer_bytes_after=self._by_rank(self.optimizer_bytes()),
        )

    def optimizer_bytes(self) -> int:
        """Bytes of fp32 masters and moments on this rank now."""
        state = internals.inner_optimizer(self._engine).state
        tensors = [master for group in internals.masters(self._engine) for master in group]
        tensors += [state[master][key] for master in tensors if master in state for key in MOMENTS]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def fragments(self, *, owned_only: bool) -> Iterator[Fragment]:
        """This rank's part of the optimizer state by parameter; see `fragments.local_fragments`.

        Saving takes `owned_only=True`. Loading writes into `owned_only=False`, after `load_resume_state`, and into an
        engine whose model held the same fp32 weights when it was built, so that the cast weights match already."""
        return local_fragments(self._engine, self._groups, owned_only=owned_only)

    @torch.no_grad()
    def set_masters(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Write these fp32 weights, whole and by parameter name, into the masters; names of no trainable parameter are
        passed over. For the weights that the model held before the engine rounded it: it made its masters of what the
        rounding left."""
        for fragment in self.fragments(owned_only=False):
            if fragment.name in weights:
                weight = weights[fragment.name].reshape(-1)
                fragment.master.copy_(weight[fragment.start : fragment.start + fragment.length])

    def whole_weights(self, names: Collection[str]) -> Iterator[tuple[str, torch.Tensor]]:
        """Name and a copy of each of these parameters, frozen ones too, as the forward uses it: on the device, in its
        own dtype. Changes nothing of the training. Collective at stage 3, where each is gathered in turn: every rank
        must take all of them."""
        for name, parameter in self.model.named_parameters():
            if name in names:
                yield name, internals.whole_weight(parameter)

    def resume_state(self) -> dict[str, Any]:
        """What besides the fragments makes a resumed run continue exactly: counters and loss scale. JSON-able."""
        return {
            "global_steps": self.global_steps,
            "skipped_steps": self.skipped_steps,
            "bad_steps": self.bad_steps,
            "bad_steps_in_a_row": self.bad_steps_in_a_row,
            "optimizer_steps": self._optimizer_steps(),
            "loss_scaler": internals.loss_scaler_state(self._engine),
        }

    def load_resume_state(self, state: dict[str, Any]) -> None:
        """Put back a `resume_state`. Creates zero moments if updates were applied, for the caller to overwrite."""
        internals.set_counters(self._engine, global_steps=state["global_steps"], skipped_steps=state["skipped_steps"])
        internals.set_loss_scaler_state(self._engine, state["loss_scaler"])
        self._bad_steps = state["bad_steps"]
        self._bad_steps_in_a_row = state["bad_steps_in_a_row"]
        if state["optimizer_steps"]:
            inner = internals.inner_optimizer(self._engine)
            for master in (master for group in internals.masters(self._engine) for master in group):
                inner.state[master] = _adamw_state(master, state["optimizer_steps"], self.resolved)

    def _update(self) -> None:
        scale_can_fall = internals.can_lower_loss_scale(self._engine)
        if internals.step_if_finite(self._engine):
            self._bad_steps_in_a_row = 0
        elif not scale_can_fall:
            self._bad_steps += 1
            self._bad_steps_in_a_row += 1

    def _optimizer_steps(self) -> int:
        """Updates applied so far: the number that bias correction uses, the same for all surviving groups."""
        states = internals.inner_optimizer(self._engine).state.values()
        return next((int(state["step"]) for state in states if state), 0)

    @staticmethod
    def _by_rank(value: Any) -> list[Any]:
        values: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(values, value)
        return values


def _adamw(
    groups: Sequence[ParameterGroup], config: OptimizerConfig, resolved: ResolvedDsConfig
) -> torch.optim.Optimizer:
    """AdamW over `groups`: torch's, or DeepSpeedCPUAdam where the optimizer is offloaded."""
    group_dicts = [
        {"params": list(group.parameters), "lr": 0.0, "weight_decay": config.weight_decay if group.decayed else 0.0}
        for group in groups
    ]
    if resolved.offload_optimizer:
        from deepspeed.ops.adam import DeepSpeedCPUAdam  # builds a C++ op on first use

        return DeepSpeedCPUAdam(group_dicts, betas=config.betas, eps=config.eps, adamw_mode=True)
    # Elsewhere the foreach form: the same bits as torch's loop over the tensors, in a third of its time on a CPU.
    return torch.optim.AdamW(group_dicts, betas=config.betas, eps=config.eps, fused=_fused(), foreach=not _fused())


def _fused() -> bool:
    """One kernel per group, no host synchronisation. On a CPU it is faster too, but it rounds the ends of a tensor
    differently from the middle, so that the last bit would depend on how ZeRO cuts the shards."""
    return get_accelerator().device_name() == "cuda"


def _adamw_state(master: torch.Tensor, steps: int, resolved: ResolvedDsConfig) -> dict[str, Any]:
    """The state that the inner optimizer makes for itself at its first update, with its step count set."""
    moments = {key: torch.zeros_like(master, requires_grad=False) for key in MOMENTS}
    if resolved.offload_optimizer:
        return {"step": steps, **moments}
    return {"step": torch.tensor(float(steps), device=master.device if _fused() else "cpu"), **moments}
