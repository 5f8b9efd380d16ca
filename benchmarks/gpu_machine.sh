#!/usr/bin/env bash
# Run a command of this checkout on a GPU machine on which nothing can be installed.
#   gpu_machine.sh python3 -m facetrack.training.full_size ...
# python3 must have torch, tensorboard, filelock, onnx, onnxscript, onnxruntime, numba, opencv, click, rich and scipy.
# PyAV, without which no video is read, may be missing. What lasts from one call to the next, such as Numba's kernels,
# is kept in $FACETRACK_GPU_WORK (/tmp/facetrack-gpu).
set -euo pipefail
HERE=$(cd "$(dirname "$0")" && pwd)
WORK=${FACETRACK_GPU_WORK:-/tmp/facetrack-gpu}
mkdir -p "$WORK"
export PYTHONPATH="$HERE/../.typecheck${PYTHONPATH:+:$PYTHONPATH}"
export FACETRACK_HOME=${FACETRACK_HOME:-$WORK/home} FACETRACK_PLANS=${FACETRACK_PLANS:-$WORK/plans}
export NUMBA_CACHE_DIR=${NUMBA_CACHE_DIR:-$WORK/numba} PYTHONUNBUFFERED=1
exec "$@"
