#!/usr/bin/env bash
# One run on a GPU machine without a package registry: forms and options timed, then, side by side, every architecture's
# parity, every kernel against its reference, and the kernels under compute-sanitizer. Results come as they are made.
#
#   benchmarks/gpu_check.sh SITE OUT [SECONDS]
#
# SITE: a folder with what Python lacks there (msgspec) and cases/ (python -m tests.gpu.prepared SITE/cases). With BEI_CUBINS the
# kernels that are timed are those that the pinned Triton made (benchmarks/cubins.py).
set -uo pipefail
cd "$(dirname "$0")/.."
site=$(realpath "$1") out=$(realpath "$2") seconds=${3:-55}
export PYTHONPATH="$PWD/src:$PWD:$site" PYTHONUNBUFFERED=1 BEI_GPU_CASES="$site/cases" OMP_NUM_THREADS=2
export PATH="$PATH:/usr/local/cuda/bin" PYTORCH_NO_CUDA_MEMORY_CACHING=1
nvidia-smi --query-gpu=name,driver_version,clocks.sm,power.limit --format=csv,noheader

timeout $((seconds + 15)) python3 -m benchmarks.cuda_variants --out "$out" --seconds "$seconds" 2>&1 | tee "$out/variants.log"

# All four at once: answers do not depend on the load, and times are not taken any more.
check() {  # NAME SECONDS COMMAND...
    local name=$1 limit=$2
    shift 2
    timeout "$limit" "$@" 2>&1 | sed -u "s/^/$name: /" >>"$out/checks.log"
}
tests="python3 -m pytest -v -p no:cacheprovider -o filterwarnings=default"
some="attention-0-fp16 or attention-3-fp16 or attention-10-fp16 or linear-0-fp16 or linear-4-fp16 or add_norm-0-fp16 or place-1-fp16"
some="$some or route-1-fp16 or combine-1-fp16 or embed-1-fp16 or pool-0-fp16 or rope-0-fp16"
sanitizer="compute-sanitizer --error-exitcode 7 --target-processes all"
check parity 55 $tests -n 8 -m gpu tests/gpu/test_cuda_engine.py &
check kernels 90 $tests -n 6 tests/kernels &
check memcheck 55 $sanitizer --tool memcheck $tests tests/kernels -k "$some" &
check racecheck 55 $sanitizer --tool racecheck $tests tests/kernels -k "$some" &
wait
for name in parity kernels memcheck racecheck; do
    echo "== $name: $(grep -c "^$name: .*PASSED" "$out/checks.log") passed"
    grep -E "^$name: (FAILED|ERROR|E  |.*(passed|failed|SUMMARY|not supported|[Hh]azard|Invalid))" "$out/checks.log" | tail -15
done
