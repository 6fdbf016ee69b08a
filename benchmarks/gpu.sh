#!/usr/bin/env bash
# Build for this machine's GPU, test, measure, and say what passed. Needs no network, stays below nine minutes,
# and ends with a table whatever fails on the way. The record is written to benchmarks/results/.
#
#     bash benchmarks/gpu.sh [--only encode dense ...] [--out DIR]
#
# PYTHON names the interpreter that has torch (default: python3), FINESCOPE_BENCH_SECONDS the time for all of it
# (default: 525), FINESCOPE_BENCH_DEVICE=cpu goes through everything without a GPU and in small.
set -u
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
total=${FINESCOPE_BENCH_SECONDS:-525}
device=${FINESCOPE_BENCH_DEVICE:-cuda}
export PYTHONPATH=$PWD
started=$SECONDS

options=(--device "$device")
mode=auto
if [ "$device" = cpu ]; then
  options+=(--tiny)
else
  mode=cuda
  # For this card only: it halves the time of the build.
  card=$("$python" -c 'import torch; print("%d.%d" % torch.cuda.get_device_capability())') || {
    echo "gpu.sh: torch finds no CUDA device" >&2
    exit 2
  }
  export TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST:-$card}
fi

echo "== build (for ${TORCH_CUDA_ARCH_LIST:-the default architectures})"
log=$(mktemp)
if timeout 240 "$python" build_native.py --mode "$mode" >"$log" 2>&1; then
  tail -n 3 "$log"
else
  echo "gpu.sh: the build failed; its last words:" >&2
  tail -n 40 "$log" >&2
  exit 1
fi
echo "built in $((SECONDS - started)) s"
"$python" -c 'from finescope.cli import main; main()' info || true

left=$((total - (SECONDS - started)))
timeout --kill-after=5 $((left + 10)) "$python" -m benchmarks.gpu "${options[@]}" --seconds "$left" "$@"
