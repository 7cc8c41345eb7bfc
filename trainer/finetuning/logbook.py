"""What a fine-tuning tells: one loss, the accuracies on the held-out images, and at the end the best and the last."""

from dataclasses import asdict
from typing import Any

from trainer.finetuning.plan import FinetunePlan
from trainer.finetuning.validation import Accuracy
from trainer.logbook import Logbook
from trainer.tracking.losses import StageLosses


class FinetuningLogbook(Logbook):
    _plan: FinetunePlan

    def evaluation(self, step: int, accuracy: Accuracy, average: Accuracy | None, seconds: float) -> None:
        """Accuracy of the weights after `step` steps, and of their moving average where there is one."""
        fields: dict[str, Any] = {"step": step, "epoch": step / self._plan.steps_per_epoch, **asdict(accuracy)}
        if average:
            fields |= {f"average_{name}": getattr(average, name) for name in ("top1", "top5", "loss")}
        if self._metrics:
            self._metrics.write("evaluation", **fields, seconds=seconds)
        beside = f"; moving average {average.top1:.2%}, {average.top5:.2%}" if average else ""
        self.say(
            f"step {step}: top-1 {accuracy.top1:.2%}, top-5 {accuracy.top5:.2%}, loss {accuracy.loss:.4f} on "
            f"{accuracy.images:,} held-out images{beside} ({seconds:.1f} s)"
        )

    def _new_losses(self) -> StageLosses:
        return StageLosses(1, self._device)

    def _live_losses(self) -> list[int]:
        return [0]

    def _loss_fields(self, losses: list[float | None], step: int) -> dict[str, Any]:
        return {"loss": losses[0]}

    def _summary(self, events: list[dict[str, Any]]) -> str:
        return summarise(events)


def summarise(events: list[dict[str, Any]]) -> str:
    """The printed end of a fine-tuning, made from its events alone."""
    steps = [event for event in events if event["event"] == "step"]
    evaluations = [event for event in events if event["event"] == "evaluation"]
    if not steps:
        return "no step was logged"
    first, last = steps[0], steps[-1]
    lines = [
        f"{last['step']:,} steps, {last['samples']:,} images, {last['epoch']:.2f} epochs",
        f"loss {first['loss']:.4f} → {last['loss']:.4f}, with the augmentation's soft targets",
    ]
    if not evaluations:
        return "\n".join([*lines, "no accuracy was measured"])
    images = evaluations[-1]["images"]
    for prefix, name in (("", "weights"), ("average_", "moving average of the weights")):
        measured = [event for event in evaluations if f"{prefix}top1" in event]
        if measured:
            best, end = max(measured, key=lambda event: event[f"{prefix}top1"]), measured[-1]
            lines.append(
                f"{name}: top-1 {end[f'{prefix}top1']:.2%}, top-5 {end[f'{prefix}top5']:.2%} on {images:,} held-out "
                f"images at the end; best top-1 {best[f'{prefix}top1']:.2%} after {best['epoch']:.2f} epochs"
            )
    return "\n".join(lines)
