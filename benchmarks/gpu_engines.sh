#!/usr/bin/env bash
# Run gpu_engines.py on a GPU machine on which nothing can be installed.
#   gpu_engines.sh ENVIRONMENT|- OUT [option of gpu_engines.py ...]
# ENVIRONMENT is a shell file for a TensorRT whose bindings want another Python than facetrack. It sets TRT_PY, that
# Python; TRT_PYTHONHOME, its prefix; and adds TensorRT, numpy and cuda-bindings to PYTHONPATH and their libraries to
# LD_LIBRARY_PATH. `-`: python3 has TensorRT. Everything else comes from python3, see gpu_machine.sh. What is done is
# kept in $FACETRACK_GPU_WORK (/tmp/facetrack-gpu), so that OUT may be empty at every call.
set -euo pipefail
ENVIRONMENT=$1
OUT=$(realpath -m "$2")
shift 2
HERE=$(cd "$(dirname "$0")" && pwd)
WORK=${FACETRACK_GPU_WORK:-/tmp/facetrack-gpu}
mkdir -p "$WORK" "$OUT"
PYTHON=python3
if [ "$ENVIRONMENT" != - ]; then
    PYTHON=$WORK/python
    cat > "$PYTHON" <<END
#!/usr/bin/env bash
. "$(realpath "$ENVIRONMENT")"
export PYTHONHOME="\$TRT_PYTHONHOME"
exec "\$TRT_PY" "\$@"
END
    chmod +x "$PYTHON"
fi
exec bash "$HERE/gpu_machine.sh" python3 "$HERE/gpu_engines.py" --out "$OUT" --work "$WORK/engines" --python "$PYTHON" "$@"
