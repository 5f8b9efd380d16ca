import os

# ONNX Runtime (1.32) reports its use to Microsoft, on Linux too: DNS queries, a device's number and a queue of
# events in the user's cache. It reads this when it is imported; `disable_telemetry_events` comes too late
# (but for Windows' builds, which heed that alone: `onnx_backend.import_onnxruntime`).
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
