#!/usr/bin/env bash
# One run on a GPU machine without a package registry: ONNX Runtime CUDA on every architecture, a certificate completed in
# place, then, timed and one after the other, texts to vectors beside peers and part by part, and ONNX Runtime beside the CUDA engine.
#
#   benchmarks/gpu_rest.sh SITE OUT
#
# SITE: a folder with what Python lacks there (msgspec, onnxruntime-gpu, infinity-emb), cases/ (python -m tests.gpu.prepared
# SITE/cases), minilm.bundle (bei-compile, with engines for this GPU) and, where kernels are carried, cubins/
# (python -m benchmarks.cubins SITE/cubins).
set -uo pipefail
cd "$(dirname "$0")/.."
site=$(realpath "$1") out=$(realpath "$2")
libraries=$(python3 -c "import glob, nvidia; print(':'.join(g for p in nvidia.__path__ for g in glob.glob(p + '/*/lib')))")
export LD_LIBRARY_PATH="$libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}" PYTHONPATH="$site:$PWD/src:$PWD" PYTHONUNBUFFERED=1
export BEI_GPU_CASES="$site/cases" HF_HUB_OFFLINE=1
[ -d "$site/cubins" ] && export BEI_CUBINS="$site/cubins"
nvidia-smi --query-gpu=name,driver_version --format=csv,noheader
python3 -c "import onnxruntime as o; print(o.__version__, o.__file__, o.get_available_providers())"

logs=$(mktemp -d)
trap 'cat "$logs"/*.log >"$out/rest.log"' EXIT

step() {  # NAME SECONDS COMMAND...
    local name=$1 limit=$2 started=$SECONDS
    shift 2
    timeout "$limit" "$@" >"$logs/$name.log" 2>&1
    echo "== $name: exit code $? after $((SECONDS - started)) s"
}
OMP_NUM_THREADS=2 step onnxruntime 100 python3 -m pytest -q -n 6 -p no:cacheprovider -o filterwarnings=default -m gpu \
    tests/gpu/test_onnxruntime_cuda.py &
step certificate 150 python3 -m benchmarks.certificate "$site/minilm.bundle" --out "$out" &
wait
tail -n 30 "$logs/onnxruntime.log" "$logs/certificate.log"

step whole 170 python3 -m benchmarks.cuda_whole --bundle "$site/minilm.bundle" --out "$out" --rounds 0
tail -n 30 "$logs/whole.log"
step host 90 python3 -m benchmarks.host_path --bundle "$site/minilm.bundle" --out "$out"
tail -n 30 "$logs/host.log"
step peers 150 python3 -m benchmarks.onnxruntime_cuda --out "$out"
tail -n 40 "$logs/peers.log"
