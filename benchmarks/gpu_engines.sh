#!/usr/bin/env bash
# Run gpu_engines.py with a TensorRT whose bindings want another Python than facetrack.
#   gpu_engines.sh ENVIRONMENT OUT [option of gpu_engines.py ...]
# ENVIRONMENT is a shell file that sets TRT_PY, that Python; TRT_PYTHONHOME, its prefix; and adds TensorRT, numpy and
# cuda-bindings to PYTHONPATH and their libraries to LD_LIBRARY_PATH. facetrack, torch and onnx come from python3.
set -euo pipefail
ENVIRONMENT=$(realpath "$1")
OUT=$(realpath -m "$2")
shift 2
HERE=$(cd "$(dirname "$0")" && pwd)
WORK=${FACETRACK_GPU_WORK:-/tmp/facetrack-gpu}
mkdir -p "$WORK" "$OUT"
cat > "$WORK/python" <<END
#!/usr/bin/env bash
. "$ENVIRONMENT"
export PYTHONHOME="\$TRT_PYTHONHOME"
exec "\$TRT_PY" "\$@"
END
chmod +x "$WORK/python"
export PYTHONPATH="$HERE/../.typecheck${PYTHONPATH:+:$PYTHONPATH}"
export FACETRACK_HOME=${FACETRACK_HOME:-$WORK/home} NUMBA_CACHE_DIR=${NUMBA_CACHE_DIR:-$WORK/numba}
exec python3 "$HERE/gpu_engines.py" --out "$OUT" --python "$WORK/python" "$@"
