"""The soak test's result as a markdown table."""

from tests.soak.life import Injected


def table(injected: list[Injected]) -> str:
    """One row for each kind: times, times survived, and the largest differences of the lives that it happened in."""
    rows = [
        "| injected | times | survived | same layout: largest difference | changed layouts: of losses |",
        "|---|---:|---:|---:|---:|",
    ]
    for kind in sorted({event.kind for event in injected}):
        events = [event for event in injected if event.kind == kind]
        survived = sum(not event.trouble for event in events)
        rows.append(f"| {kind} | {len(events)} | {survived} | {_largest(events, False)} | {_largest(events, True)} |")
    return "\n".join(rows)


def summary(injected: list[Injected], lives: int, seed: int, minutes: float) -> str:
    lost = [event for event in injected if event.trouble]
    survived = len(injected) - len(lost)
    lived = "1 life" if lives == 1 else f"{lives} lives"
    head = f"{lived}, {len(injected)} faults, {survived} survived (seed {seed}, {minutes:g} min)"
    return "\n".join([head, *(f"- {event.kind}: {event.trouble}" for event in lost)])


def _largest(events: list[Injected], moved: bool) -> str:
    """Of losses, weights and moments in lives of one layout; of the losses (relative) in those that changed it."""
    ended = [event.difference for event in events if event.moved == moved and event.difference is not None]
    differences = [difference for difference in ended if not difference.trouble]
    if not differences:
        return "–"
    largest = max(d.loss if moved else max(d.loss, d.weight, d.moment) for d in differences)
    return "0" if largest == 0 else f"{largest:.1e}"
