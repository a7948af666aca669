# For setup.sh scripts, which source it: they make an environment in $home, named after $python.
# What takes long is a function that is run by `step`, so that a second run does only what is new.
bin=$home/bin
export PIP_DISABLE_PIP_VERSION_CHECK=1

say() { echo "$home: $*"; }
fail() { say "$*" >&2; exit 1; }

# A new, empty environment.
environment() {
    "$python" -c 'import sys; assert sys.version_info >= (3, 11)' 2>/dev/null ||
        fail "$python is not Python 3.11 or newer; name one that is in PYTHON"
    rm -rf "$home"
    "$python" -m venv "$home"
}

# pip without its hundreds of lines, unless it fails.
pip_install() {
    $bin/pip install "$@" >"$home/pip.log" 2>&1 || { tail -n 20 "$home/pip.log"; fail "pip failed"; }
}

# The packages of a lock file, of which torch is the CPU's.
install_locked() {
    pip_install --no-deps ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} -r "$@"
    [[ -e $(echo "$home"/lib/python3.*/site-packages/torch-*+cpu.dist-info) ]] ||
        fail "pip took a torch for GPUs; name the index of the CPU build in TORCH_INDEX"
}

# step NAME INPUT... : call NAME unless its inputs are those of its last success.
step() {
    local name=$1 stamp=$home/$1.stamp inputs
    shift
    inputs=$("$python" --version; pwd; sha256sum "$@")
    [[ -f $stamp && $(<"$stamp") == "$inputs" ]] && return
    rm -f "$stamp"
    "$name"
    echo "$inputs" >"$stamp"
}
