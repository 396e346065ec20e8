#!/usr/bin/env bash
# Everything that needs a GPU, with the Python of .venv if there is one, else with $GPU_PYTHON (python3), which must
# have torch with CUDA, Triton, numpy, rich, PyYAML, nanobind, CMake and ninja. It needs no network: Python packages
# that are missing come from the wheels that `tools/gpu_wheels.sh` put into build/gpu-wheels.
set -euo pipefail
cd "$(dirname "$0")/.."

python=$PWD/.venv/bin/python
[ -x "$python" ] || python=$(command -v "${GPU_PYTHON:-python3}")
site=$PWD/build/gpu-site
if [ ! -x .venv/bin/python ] && compgen -G 'build/gpu-wheels/*.whl' >/dev/null; then
    "$python" -m pip install --quiet --no-index --no-deps --upgrade --target "$site" build/gpu-wheels/*.whl
fi
export PYTHONPATH=$site:$PWD/shared:$PWD/kernels:$PWD/attn_service
# Triton comes with torch where there is a GPU; elsewhere nothing is run.
missing=$("$python" - torch numpy rich yaml msgspec zmq llguidance <<'END'
import sys
from importlib.util import find_spec

print(*(name for name in sys.argv[1:] if find_spec(name) is None))
END
)
if [ -n "$missing" ]; then
    echo "gpu-check: $python does not find: $missing; where pip has a registry, make gpu-wheels packs what is small" >&2
    exit 1
fi
# The CPU only says what is right here: by the instructions that most machines have, and tests have most of.
export TRIMARAN_ISA=${TRIMARAN_ISA:-avx2}
if ! "$python" -c 'import trimaran_kernels' 2>/dev/null; then
    echo 'gpu-check: building the C++ kernels …'
    PYTHON=$python JOBS=${JOBS:-$(nproc)} bash kernels/dev_build.sh
fi
mkdir -p build/bench
exec "$python" benchmarks/gpu_check.py --json build/bench/gpu-check.json --spent "$SECONDS" "$@"
