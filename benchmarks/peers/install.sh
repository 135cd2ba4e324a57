#!/bin/sh
# Install whence and the tools it is measured beside into a virtual environment of their own.
#
#     benchmarks/peers/install.sh VENV [PYTHON]        PIP_FLAGS="--index-url ..." chooses another torch wheel
#
# Some tools ask for torchvision, whose builds need not match the CPU wheel of torch, or for an older numpy, though what
# is measured here runs without. They are installed with --no-deps, and what they really import is named beside them.
# A tool that does not install is named at the end and does not stop the others: the benchmark lists it with its error.
set -eu

venv=$1
python=${2:-python3}
root=$(cd "$(dirname "$0")/../.." && pwd)
failed=""

"$python" -m venv "$venv"

install() { # shellcheck disable=SC2086
    "$venv/bin/python" -m pip install -q -c "$root/constraints.txt" -c "$root/benchmarks/peers/constraints-peers.txt" \
        ${PIP_FLAGS:-} "$@"
}

peer() {
    name=$1
    shift
    if install --no-deps "$name" && { [ $# -eq 0 ] || install "$@"; }; then
        echo "installed $name"
    else
        failed="$failed $name"
    fi
}

install torch
install -e "$root"
install transformers
peer kronfluence accelerate einops einconv opt-einsum safetensors tqdm
peer dattri numpy scipy pyyaml tqdm
peer traker numpy tqdm
peer captum matplotlib numpy packaging tqdm
peer pydvl pyDeprecate more-itertools pandas scikit-learn joblib cloudpickle psutil tqdm dask distributed zarr
if [ -n "$failed" ]; then
    echo "not installed:$failed" >&2
fi
