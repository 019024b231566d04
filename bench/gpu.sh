#!/usr/bin/env bash
# All that needs a GPU, in under ten minutes on a machine that has torch and Triton: builds the core, runs the tests of
# the kernels, times them, and writes bench/results/<device>.json and .txt.
#
#   bench/gpu.sh [WHEELS]
#
# WHEELS is a folder of wheels for what is missing there (liger-kernel as a peer; numba, pytest, hypothesis, cython,
# cmake, setuptools), for a machine without a network. Everything is installed into .venv-gpu beside the system's torch.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

wheels=${1:-}
[[ -d .venv-gpu ]] || python3 -m venv --system-site-packages .venv-gpu
python=.venv-gpu/bin/python
export PATH="$PWD/.venv-gpu/bin:$PATH"
install() {
    if [[ -n $wheels ]]; then
        "$python" -m pip install --quiet --no-index --find-links "$wheels" "$@"
    else
        "$python" -m pip install --quiet "$@"
    fi
}
"$python" -c 'import torch; assert torch.cuda.is_available(), "torch sees no GPU"; import triton'
has() { "$python" -c "$1" >/dev/null 2>&1; }
has 'import setuptools; assert int(setuptools.__version__.split(".")[0]) >= 77' || install 'setuptools>=77'
has 'import Cython; assert int(Cython.__version__.split(".")[0]) >= 3' || install 'cython>=3'
for package in cmake numpy rich pytest hypothesis numba scipy; do
    has "import $package" || install "$package"
done
has 'import liger_kernel' || install --no-deps liger-kernel ||
    echo 'bench/gpu.sh: no liger-kernel; its rows will be missing' >&2
"$python" -m pip install --quiet --no-build-isolation --no-deps --editable .

export TRITON_INTERPRET=0
"$python" -m pytest -q tests/test_returns.py tests/test_scatter_device.py tests/test_policy_loss.py \
    tests/test_logprobs.py tests/test_loss.py tests/test_dispatch.py
"$python" bench/gpu.py
