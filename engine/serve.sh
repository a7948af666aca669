#!/usr/bin/env bash
# Run the vLLM and the tiny model of `make engine`; what follows are options of `vllm serve`, and a
# later one overrides an earlier one.
#
#   bash engine/serve.sh --port 8000 --scheduling-policy priority --max-num-seqs 16
#   TINY_LLAMA=FOLDER bash engine/serve.sh ...       another model: engine/tiny_llama.py makes them
#                                                    in other sizes, engine/smollm2.py a real one
set -euo pipefail
cd "$(dirname "$0")/.."
export VLLM_TARGET_DEVICE=cpu
export VLLM_CPU_KVCACHE_SPACE=1              # GiB: half a million tokens of the tiny model
export VLLM_CPU_OMP_THREADS_BIND=nobind      # by default every server sits on the same core
export OMP_NUM_THREADS=1
# The model runs in the engine's process. A worker of its own would wait for its turn in a loop of
# sched_yield, which on Linux 6.18 starves everybody else on two cores, for up to minutes.
export VLLM_ENABLE_V1_MULTIPROCESSING=0
export VLLM_CACHE_ROOT=$PWD/.engine/cache
export VLLM_NO_USAGE_STATS=1 HF_HUB_OFFLINE=1

options=(
    --served-model-name tiny-llama
    --host 127.0.0.1
    --dtype float32        # bfloat16 is emulated on most CPUs
    --max-model-len 65536  # so that an answer can outlast a test
    --enforce-eager        # no compiling at start
)
# Behind whoever measures on the same cores: vLLM's busy processes would let it stand for seconds.
exec nice -n 5 .engine/bin/vllm serve "${TINY_LLAMA:-.engine/tiny-llama}" "${options[@]}" "$@"
