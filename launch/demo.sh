#!/usr/bin/env bash
# The whole road on two CPU cores: real photographs -> WebDataset shards -> two ZeRO-2 ranks through every layer freeze
# -> pictures and a summary. Killed and started again, it goes on where it was. To start anew: rm -r runs/demo/run
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/.venv/bin:$PATH"
export DS_ACCELERATOR=cpu # the demo is made for two CPU ranks, whatever else is in the machine
out=runs/demo
start=$SECONDS

echo "== 1/3 photographs"
python -m data_tools photographs --output $out/photographs
echo "== 2/3 shards"
python -m data_tools imagefolder --input $out/photographs --output $out/shards --shards 8 --workers 2
echo "== 3/3 pre-training on 2 ranks"
deepspeed --num_gpus 2 --master_port $((20000 + RANDOM % 20000)) launch/pretrain.py \
    --ds_config ds_configs/zero2_cpu.json --recipe demo --data $out/shards --output $out/run "$@"
echo "demo: $((SECONDS - start)) s; events in $out/run/metrics.jsonl, curves: .venv/bin/tensorboard --logdir $out/run/tensorboard"
