#!/usr/bin/env bash
# Check and measure this project on one GPU, in at most 8 minutes (9 with WHEELS): run it in a checkout on a machine with a CUDA GPU,
# torch 2.10 to 2.12, pytest, the packages' dependencies and no network. Every part has its own time limit, and runs whether or not the others failed.
#
#   benchmarks/gpu_check.sh                    all parts; results in $OUT (runs/gpu_check): results.json, results.md, which a further run replaces
#   benchmarks/gpu_check.sh cases scans        some of them
#   WHEELS=folder benchmarks/gpu_check.sh      first install the wheels of a folder, on top of the machine's packages
#   DATA=CIFAR10 benchmarks/gpu_check.sh arm   the arm of the study on real images instead of synthetic ones
#   QUICK=1 benchmarks/gpu_check.sh            tiny sizes, to try the script itself on a CPU
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
OUT=${OUT:-$root/runs/gpu_check} WHEELS=${WHEELS:-} PYTHON=${PYTHON:-python3}
mkdir -p "$OUT"
OUT=$(cd "$OUT" && pwd)
paths=$root/benchmarks
for package in core vision points dense; do paths=$root/packages/map-$package/src:$paths; done
if [[ -n $WHEELS ]]; then
  site=$(mktemp -d)
  timeout 60 "$PYTHON" -m pip install --quiet --no-index --no-deps --no-compile --target "$site" "$WHEELS"/*.whl ||
    echo "not all wheels of $WHEELS were installed; the parts run with what there is" >&2
  paths=$paths:$site
fi
export PYTHONPATH=$paths${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
exec "$PYTHON" "$root/benchmarks/gpu/check.py" --out "$OUT" ${QUICK:+--quick} ${DATA:+--data "$DATA"} "$@"
