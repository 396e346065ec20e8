#!/usr/bin/env bash
# Pack what a GPU machine without package registries lacks into build/gpu-wheels (4.2 MB), for its Python version.
#   tools/gpu_wheels.sh 3.12
set -euo pipefail
cd "$(dirname "$0")/.."
version=${1:-3.12}
rm -rf build/gpu-wheels
"${PYTHON:-python3}" -m pip download --quiet --no-deps --only-binary=:all: --implementation cp \
    --python-version "$version" --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 \
    --platform manylinux2014_x86_64 --platform manylinux_2_26_x86_64 --platform manylinux_2_31_x86_64 \
    --constraint constraints.txt --dest build/gpu-wheels msgspec pyzmq llguidance
ls -l build/gpu-wheels
