"""The planning command: tables, JSON and a picture for every shipped recipe, or one line that says what is wrong."""

import contextlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from launch import plan
from trainer.errors import BadInput
from trainer.freezing.schedule import predicted_saving
from trainer.plan import plan_schedule
from trainer.planning import picture
from trainer.recipe import load_recipe

REPOSITORY = Path(__file__).parents[2]
FREEZING = "vit_base_freeze_published"
ZERO2 = "ds_configs/zero2_bf16.json"


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr(sys, "argv", ["plan.py", *map(str, arguments)])
    return plan.main()


def asked(recipe: str, ds_config: str, world_size: object, *others: object) -> list[object]:
    return ["--recipe", recipe, "--ds_config", ds_config, "--world-size", world_size, *others]


def planned(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object) -> Any:
    assert call(monkeypatch, *arguments, "--json") == 0
    (found,) = json.loads(capsys.readouterr().out)["plans"]
    return found


def test_the_command_runs_without_deepspeed() -> None:
    program = (
        "import sys; from launch import plan; code = plan.main(); "
        "sys.exit(code or ('deepspeed' in sys.modules and 'deepspeed was imported'))"
    )
    arguments = list(map(str, asked(FREEZING, ZERO2, 8)))
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], cwd=REPOSITORY, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "freezing  saves 15.6% of the run's FLOPs" in done.stdout
    assert len(done.stdout.split("\n\n")[1].splitlines()) == 1 + 13  # a row for each frozen count, 0 to 12


PRETRAINING = [path.stem for path in (REPOSITORY / "launch/recipes").glob("*.yaml") if "finetune" not in path.stem]


@pytest.mark.parametrize("recipe", sorted(PRETRAINING))
def test_every_shipped_recipe_is_planned(monkeypatch, capsys, recipe: str) -> None:
    found = planned(monkeypatch, capsys, *asked(recipe, ZERO2, 2))
    assert sum(phase["steps"] for phase in found["phases"]) == found["total_steps"]
    loaded = load_recipe(recipe, [], plan.RECIPES)
    schedule = plan_schedule(loaded, found["data"]["steps_per_epoch"])
    assert found["flops_saving"] == predicted_saving(schedule, loaded.model)


@pytest.mark.parametrize("ds_config", sorted(path.name for path in (REPOSITORY / "ds_configs").glob("*.json")))
def test_every_shipped_ds_config_is_planned(monkeypatch, capsys, ds_config: str) -> None:
    first, last = planned(monkeypatch, capsys, *asked(FREEZING, f"ds_configs/{ds_config}", 2))["phases"][::12]
    assert last["memory_total"] < first["memory_total"]
    assert last["traffic"]["sent_bytes"] < first["traffic"]["sent_bytes"]
    assert (first["memory"]["host"] > 0) == ("offload" in ds_config)


def test_the_largest_micro_batch_is_the_largest_that_fits(monkeypatch, capsys) -> None:
    budget = 3_000_000_000
    found = planned(monkeypatch, capsys, *asked(FREEZING, ZERO2, 8, "--memory", budget))
    largest = [phase["largest_micro_batch"] for phase in found["phases"]]
    assert largest == sorted(largest)
    for size, fits in ((largest[0], True), (2 * largest[0], False)):
        micro = planned(monkeypatch, capsys, *asked(FREEZING, ZERO2, 8, f"train.micro_batch={size}"))
        assert (micro["phases"][0]["memory_total"] <= budget) == fits
    nothing = planned(monkeypatch, capsys, *asked(FREEZING, ZERO2, 8, "--memory", "100MB"))
    assert nothing["phases"][0]["largest_micro_batch"] is None


def test_freezes_by_measurement_are_said_not_to_be_known(monkeypatch, capsys) -> None:
    guided = asked("vit_base", ZERO2, 8, "freezing.how=plasticity")
    found = planned(monkeypatch, capsys, *guided)
    assert found["freezes_by_measurement"]
    assert [phase["frozen_units"] for phase in found["phases"]] == [0]
    assert found["reference_bytes"] == 32 * 50 * 768 * 13 * 4
    assert call(monkeypatch, *guided) == 0
    assert "freezing  by measurement, not known in advance" in capsys.readouterr().out


def test_units_that_are_frozen_from_the_start_are_planned_as_frozen(monkeypatch, capsys) -> None:
    whole = planned(monkeypatch, capsys, *asked("vit_base", ZERO2, 8))
    found = planned(monkeypatch, capsys, *asked("vit_base", ZERO2, 8, "freezing.initial_units=5"))
    published = planned(monkeypatch, capsys, *asked(FREEZING, ZERO2, 8))
    (phase,) = found["phases"]
    assert (phase["frozen_units"], phase["steps"]) == (5, found["total_steps"])
    assert phase["memory"] == published["phases"][5]["memory"]
    sent = [plan["phases"][0]["traffic"]["sent_bytes"] for plan in (found, whole)]
    assert found["traffic_saving"] == pytest.approx(1 - sent[0] / sent[1])
    assert found["flops_saving"] == pytest.approx(1 - phase["relative_cost"])
    assert found["zero_stages"][2]["memory_total"] == phase["memory_total"] < whole["zero_stages"][2]["memory_total"]


def test_rebatching_shows_in_the_phases(monkeypatch, capsys) -> None:
    found = planned(monkeypatch, capsys, *asked(FREEZING, ZERO2, 8, "train.micro_batch=64", "freezing.rebatch=true"))
    batches = [(phase["micro_batch"], phase["accumulation"]) for phase in found["phases"]]
    assert batches[0] == (64, 4)
    assert batches[-1] == (256, 1)


def test_the_data_are_looked_at_where_they_are_given(monkeypatch, capsys, shards: Path) -> None:
    data = planned(monkeypatch, capsys, *asked("demo", "ds_configs/zero2_cpu.json", 2, "--data", shards))["data"]
    assert (data["samples"], data["shards"], data["steps_per_epoch"], data["left_out"]) == (150, 6, 9, 6)
    assert (data["lanes"], data["world_sizes"]) == (16, [1, 2, 4, 8, 16])


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], [1, 2, 4, 8, 16, 32, 64, 128, 256]),
        (["train.micro_batch=128"], [1, 2, 4, 8, 16]),
        (["train.micro_batch=128", "freezing.rebatch=true", "freezing.memory_budget=4.9GB"], [2, 4, 8, 16]),
        (["freezing.rebatch=true", "freezing.memory_budget=5GB"], [16, 32, 64, 128, 256]),
    ],
)
def test_the_run_is_planned_on_exactly_the_numbers_of_ranks_that_are_named(
    monkeypatch, capsys, overrides: list[str], expected: list[int]
) -> None:
    found = planned(monkeypatch, capsys, *asked(FREEZING, ZERO2, 16, *overrides))["data"]["world_sizes"]
    assert found == expected
    for ranks in (1, 2, 4, 8, 16, 32, 64, 128, 256):
        with contextlib.nullcontext() if ranks in found else pytest.raises(BadInput):
            call(monkeypatch, *asked(FREEZING, ZERO2, ranks, "--json", *overrides))


def test_an_accumulation_that_the_ds_config_fixes_limits_the_ranks(monkeypatch, capsys, tmp_path) -> None:
    ds_config = tmp_path / "fixed.json"
    ds_config.write_text(json.dumps({"gradient_accumulation_steps": 512, "zero_optimization": {"stage": 1}}))
    assert planned(monkeypatch, capsys, *asked(FREEZING, ds_config, 2))["data"]["world_sizes"] == [1, 2, 4]


def test_only_zero_stages_that_go_with_the_other_keys_are_compared(monkeypatch, capsys, tmp_path) -> None:
    ds_config = tmp_path / "mixed.json"
    mixed = {"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "float"}, "zero_optimization": {"stage": 2}}
    ds_config.write_text(json.dumps(mixed))
    for overrides, stages in (([], [2, 3]), (["train.compile=true"], [2])):
        found = planned(monkeypatch, capsys, *asked(FREEZING, ds_config, 8, *overrides))["zero_stages"]
        assert [needs["zero_stage"] for needs in found] == stages


def test_the_picture_is_drawn(monkeypatch, capsys, tmp_path) -> None:
    path = tmp_path / "plan.png"
    assert call(monkeypatch, *asked(FREEZING, ZERO2, 8, "--memory", "8GB", "--picture", path)) == 0
    with Image.open(path) as image:
        assert len(set(image.convert("RGB").getdata())) > 20


def test_several_numbers_of_ranks_are_compared(monkeypatch, capsys) -> None:
    lanes = ("train.global_batch=4096", "data.lanes=4096")
    assert call(monkeypatch, *asked("vit_base", ZERO2, "8,4096", *lanes)) == 0
    assert [row.split()[0] for row in capsys.readouterr().out.splitlines()] == ["ranks", "8", "4,096"]


def test_json_and_picture_of_several_numbers_of_ranks(monkeypatch, capsys, tmp_path) -> None:
    path = tmp_path / "plan.png"
    assert call(monkeypatch, *asked(FREEZING, ZERO2, "8,16", "--json", "--picture", path)) == 0
    told = capsys.readouterr()
    assert [found["world_size"] for found in json.loads(told.out)["plans"]] == [8, 16]
    assert told.err == f"{path}: drawn for 8 ranks only, the first N\n"


def test_the_drawn_peak_is_above_the_parts_where_the_update_needs_more(monkeypatch, tmp_path) -> None:
    """At stage 0 under bf16 the update makes fp32 gradients of all: more than the activations of one image."""
    ds_config = tmp_path / "stage0.json"
    ds_config.write_text(json.dumps({"bf16": {"enabled": True}}))
    parts, peak = drawn_parts_and_peak(monkeypatch, str(ds_config), "train.micro_batch=1")
    assert all(peak >= parts)
    assert peak[0] > 1.05 * parts[0]


def test_the_drawn_peak_of_zero_2_is_not_below_the_parts_though_gradients_come_late(monkeypatch) -> None:
    parts, peak = drawn_parts_and_peak(monkeypatch, ZERO2)
    assert all(peak > 0.999999 * parts)


def drawn_parts_and_peak(monkeypatch: pytest.MonkeyPatch, ds_config: str, *overrides: str) -> tuple[Any, Any]:
    """Over the phases: the height of all parts together, and of the peak."""
    axes: list[Any] = []
    monkeypatch.setattr(picture, "_save", lambda figure, path: axes.extend(figure.axes))
    call(monkeypatch, *asked(FREEZING, ds_config, 8, *overrides, "--picture", "plan.png"))
    drawn = {patch.get_label(): patch.get_data().values for patch in axes[0].patches}
    return drawn["working"], drawn["peak"]  # the last part lies on all others


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (asked("vit_bose", ZERO2, 8), r"'vit_bose' is not shipped; did you mean 'vit_base'"),
        (asked("vit_base", "nowhere.json", 8), r"nowhere\.json: cannot be read"),
        (asked("vit_base", ZERO2, 0), r"--world-size: give a positive integer, not '0'"),
        (asked("vit_base", ZERO2, 7), r"global batch 2048 is not micro-batch × accumulation × ranks"),
        (asked("vit_base", ZERO2, 512), r"data\.lanes = 256 is not a multiple of the world size 512.*data\.lanes=512"),
        (asked("vit_base", ZERO2, 8, "--samples", 100), r"100 samples, fewer than one global batch of 2048"),
        (asked("vit_base", ZERO2, 8, "--samples", 9999, "--data", "/x"), r"--samples 9999: the data, /x, .*one of the"),
        (asked("vit_base", ZERO2, 8, "train.profile=99999999"), r"train\.profile: step 99999999 lies beyond the run"),
        (asked("vit_base", ZERO2, 8, "--memory", "80 apples"), r"--memory: write an amount of memory as 80GB"),
        (asked("vit_base", ZERO2, 8, "--data", "/nowhere"), r"/nowhere"),
        (asked("vit_base", ZERO2, 8, "--picture", "/nowhere/plan.png"), r"--picture /nowhere/plan\.png: .*another"),
        (asked("vit_base", ZERO2, 8, "--picture", "/tmp/plan.tar"), r"--picture /tmp/plan\.tar: .*\.png"),
    ],
)
def test_bad_input_is_told_in_one_line(monkeypatch, arguments: list[object], says: str) -> None:
    with pytest.raises(BadInput, match=says) as told:
        call(monkeypatch, *arguments)
    assert "\n" not in str(told.value)
