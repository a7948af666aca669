#!/usr/bin/env bash
# Make .engine/: a real vLLM for the CPU in its own environment, with pars in it and a tiny model.
# Run again it does only what its inputs call for. PYTHON names the interpreter (3.11 or newer);
# TORCH_INDEX names the index that has the CPU build of torch where pip's own does not.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
home=.engine
source engine/steps.sh

vllm() {
    say "installing vLLM: 460 MB to fetch, 2 GB on disk, 2-3 minutes (tail -f .engine/pip.log)"
    environment
    install_locked engine/lock.txt ./engine/console
}

pars() {
    say "installing pars into it, 10 seconds"
    pip_install -c engine/lock.txt -e .
}

tiny-llama() {
    say "making the tiny Llama, 20 seconds"
    $bin/python engine/tiny_llama.py .engine/tiny-llama
}

step vllm engine/lock.txt engine/console/pyproject.toml engine/setup.sh engine/steps.sh
step pars pyproject.toml .engine/vllm.stamp
step tiny-llama engine/tiny_llama.py .engine/vllm.stamp
say "ready"
