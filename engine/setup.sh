#!/usr/bin/env bash
# Make .engine/: a real vLLM for the CPU in its own environment, with pars in it and a tiny model.
# Run again it does only what its inputs call for. PYTHON names the interpreter (3.11 or newer);
# TORCH_INDEX names the index that has the CPU build of torch where pip's own does not.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
bin=.engine/bin
export PIP_DISABLE_PIP_VERSION_CHECK=1

say() { echo "engine: $*"; }
fail() { say "$*" >&2; exit 1; }

# pip without its hundreds of lines, unless it fails.
pip_install() {
    $bin/pip install "$@" >.engine/pip.log 2>&1 || { tail -n 20 .engine/pip.log; fail "pip failed"; }
}

# step NAME INPUT... : call NAME unless its inputs are those of its last success.
step() {
    local name=$1 stamp=.engine/$1.stamp inputs
    shift
    inputs=$("$python" --version; pwd; sha256sum "$@")
    [[ -f $stamp && $(<"$stamp") == "$inputs" ]] && return
    rm -f "$stamp"
    "$name"
    echo "$inputs" >"$stamp"
}

vllm() {
    say "installing vLLM: 460 MB to fetch, 2 GB on disk, 2-3 minutes (tail -f .engine/pip.log)"
    "$python" -c 'import sys; assert sys.version_info >= (3, 11)' 2>/dev/null ||
        fail "$python is not Python 3.11 or newer; name one that is in PYTHON"
    rm -rf .engine
    "$python" -m venv .engine
    pip_install --no-deps \
        ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} -r engine/lock.txt ./engine/console
    [[ -e $(echo .engine/lib/python3.*/site-packages/torch-*+cpu.dist-info) ]] ||
        fail "pip took a torch for GPUs; name the index of the CPU build in TORCH_INDEX"
}

pars() {
    say "installing pars into it, 10 seconds"
    pip_install -c engine/lock.txt -e .
}

tiny-llama() {
    say "making the tiny Llama, 20 seconds"
    $bin/python engine/tiny_llama.py .engine/tiny-llama
}

step vllm engine/lock.txt engine/console/pyproject.toml engine/setup.sh
step pars pyproject.toml .engine/vllm.stamp
step tiny-llama engine/tiny_llama.py .engine/vllm.stamp
say "ready in .engine/"
