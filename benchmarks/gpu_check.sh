#!/usr/bin/env bash
# What one GPU says about this project, in at most 8 minutes: run it in a checkout on a machine with a CUDA GPU, torch
# 2.10 to 2.12 and no network. Every part has its own time limit, and runs whatever became of the others.
#
#   benchmarks/gpu_check.sh                    all parts; results in $OUT (runs/gpu_check): results.json, results.md
#   benchmarks/gpu_check.sh cases scans        some of them
#   WHEELS=folder benchmarks/gpu_check.sh      install the wheels in a folder first, beside what the machine has
#   DATA=CIFAR10 benchmarks/gpu_check.sh arm   the arm of the study on real images instead of drawn ones
#   QUICK=1 benchmarks/gpu_check.sh            tiny sizes, to try the script itself on a CPU
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
OUT=${OUT:-$root/runs/gpu_check} WHEELS=${WHEELS:-} PYTHON=${PYTHON:-python3}
mkdir -p "$OUT"
OUT=$(cd "$OUT" && pwd)
paths=$root/benchmarks
for package in core vision points dense; do paths=$root/packages/map-$package/src:$paths; done
if [[ -n $WHEELS ]]; then
  "$PYTHON" -m pip install --quiet --no-index --no-deps --no-compile --upgrade --target "$OUT/site" "$WHEELS"/*.whl
  paths=$paths:$OUT/site
fi
export PYTHONPATH=$paths${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
exec "$PYTHON" "$root/benchmarks/gpu/check.py" --out "$OUT" ${QUICK:+--quick} ${DATA:+--data "$DATA"} "$@"
