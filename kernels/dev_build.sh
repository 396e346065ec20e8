#!/bin/sh
# Build the native module into kernels/trimaran_kernels/ for work in a checkout.
#   kernels/dev_build.sh            the Python module, with the python of .venv (or $PYTHON)
#   kernels/dev_build.sh emulated   the tests of kernels for other CPUs than this one, on emulated instructions
#   kernels/dev_build.sh sanitize   the C++ tests under AddressSanitizer and UndefinedBehaviorSanitizer
#   kernels/dev_build.sh threads    those but the emulated ones under ThreadSanitizer
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-$root/.venv/bin/python}
PATH=$(dirname "$python"):$PATH
jobs=${JOBS:-2}

# Builds the C++ tests in build/$1 with the sanitizers $2, those with emulated instructions too if $3 is ON, and
# runs them.
run_sanitized() {
    build=$root/build/$1
    cmake -S "$root/kernels" -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=RelWithDebInfo \
        -DTRIMARAN_PYTHON=OFF -DTRIMARAN_NATIVE_TESTS=ON -DTRIMARAN_EMULATED_TESTS="$3" \
        -DTRIMARAN_SANITIZE="$2" >/dev/null
    cmake --build "$build" -j "$jobs"
    ctest --test-dir "$build" --output-on-failure
}

case "${1:-module}" in
module)
    build=$root/build/native
    cmake -S "$root/kernels" -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release \
        -DPython_EXECUTABLE="$python" -DCMAKE_LIBRARY_OUTPUT_DIRECTORY="$build/module" >/dev/null
    cmake --build "$build" -j "$jobs"
    cp "$build"/module/_native*.so "$root/kernels/trimaran_kernels/"
    ;;
emulated)
    build=$root/build/emulated
    cmake -S "$root/kernels" -B "$build" -G Ninja -DTRIMARAN_PYTHON=OFF -DTRIMARAN_EMULATED_TESTS=ON >/dev/null
    cmake --build "$build" -j "$jobs" --target emulated_test emulated_attention_test \
        emulated_tiles_test
    "$build/emulated_test"
    "$build/emulated_attention_test"
    "$build/emulated_tiles_test"
    ;;
sanitize)
    run_sanitized sanitize address,undefined ON
    ;;
threads)
    run_sanitized threads thread OFF
    ;;
*)
    echo "usage: $0 [module|emulated|sanitize|threads]" >&2
    exit 2
    ;;
esac
