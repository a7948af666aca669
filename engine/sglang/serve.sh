#!/usr/bin/env bash
# Run the SGLang and the tiny model of `make sglang`; what follows are options of its server.
#
#   bash engine/sglang/serve.sh --port 30000 --enable-priority-scheduling --max-running-requests 1
set -euo pipefail
cd "$(dirname "$0")/../.."
export PYTHONPATH=$PWD/engine/sglang/stand_in  # for packages that only GPUs need
export SGLANG_USE_CPU_ENGINE=1 HF_HUB_OFFLINE=1
export OMP_NUM_THREADS=1

options=(
    --model-path .sglang/tiny-llama
    --served-model-name tiny-llama
    --host 127.0.0.1
    --device cpu
    --dtype float32
    --attention-backend torch_native
    --sampling-backend pytorch
    --disable-overlap-schedule
    --disable-cuda-graph
    --skip-server-warmup
    --mem-fraction-static 0.2
    --max-total-tokens 262144  # so that an answer of 60,000 can outlast a test
    --decode-log-interval 8    # which is how often the metrics tell of the queue
)
# Behind whoever measures on the same cores.
exec nice -n 5 .sglang/bin/python -m sglang.launch_server "${options[@]}" "$@"
