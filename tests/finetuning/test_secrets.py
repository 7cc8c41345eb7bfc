"""Passwords and signatures in the URLs of a fine-tuning are used, and neither printed nor saved."""

from pathlib import Path

import yaml

from tests.data.http_store import serve
from tests.finetuning.small import small_tree
from tests.marked_secrets import QUERY, require_no_secret, run_with_secrets, with_secrets


def test_no_secret_of_environment_or_url_is_printed_or_saved(split: Path, pretrained: Path, tmp_path: Path) -> None:
    recipe, ds_config, run = tmp_path / "small.yaml", tmp_path / "config.json", tmp_path / "run"
    recipe.write_text(yaml.safe_dump(small_tree(split, pretrained)))
    ds_config.write_text("{}")
    with serve(split) as store:
        store.token, url = QUERY, with_secrets(f"127.0.0.1:{store.port}")
        done = run_with_secrets(
            "finetune",
            ["--recipe", str(recipe), "--ds_config", str(ds_config), "--data", url, "--validation", url,
             "--output", str(run), "tracking.tensorboard=true"]
        )  # fmt: skip
    require_no_secret(done, run)
    assert store.reads("val.json")
