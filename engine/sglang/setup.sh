#!/usr/bin/env bash
# Make .sglang/: a real SGLang for the CPU in its own environment, with the tiny model of `make
# engine`. PYTHON and TORCH_INDEX are as for engine/setup.sh.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-python3}
home=.sglang
source engine/steps.sh

sglang() {
    say "installing SGLang: 1.7 GB on disk, 2 minutes (tail -f .sglang/pip.log)"
    environment
    install_locked engine/sglang/lock.txt
}

tiny-llama() {
    say "making the tiny Llama, 20 seconds"
    $bin/python engine/tiny_llama.py .sglang/tiny-llama
}

step sglang engine/sglang/lock.txt engine/sglang/setup.sh engine/steps.sh
step tiny-llama engine/tiny_llama.py .sglang/sglang.stamp
say "ready"
