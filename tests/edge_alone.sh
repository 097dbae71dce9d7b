#!/usr/bin/env bash
# The base package alone: an artifact made by the training wing runs where torch was never installed.
# Usage: tests/edge_alone.sh TRAINING_BIN EDGE_BIN    (EDGE_BIN: an environment's bin folder, empty but for pip)
set -euo pipefail
training=$(realpath "$1") edge=$(realpath "$2")
repository=$(realpath "$(dirname "$0")/..")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"$edge/pip" install --quiet --disable-pip-version-check -c "$repository/constraints.txt" "$repository"
"$edge/python" - <<'PY'
import importlib.util
for name in ("torch", "torchvision", "timm", "safetensors", "onnx"):
    assert importlib.util.find_spec(name) is None, f"{name} is installed: this environment proves nothing"
PY

cd "$work"
"$training/python" - <<'PY'
from pathlib import Path
from edgemim.data.photos import PhotoCropsConfig, write_photo_crops
write_photo_crops(Path("photos"), PhotoCropsConfig(unlabelled_per_photo=1, train_per_photo=20, test_per_photo=5))
PY
"$training/edgemim" finetune --init scratch --encoder vit_nano --data photos --epochs 2 --warmup-epochs 0 \
  --batch-size 56 --workers 0 --out run
"$training/edgemim" export run --onnx --out artifact

"$training/python" "$repository/tests/tiny_tracker.py" tracker

"$edge/edgemim" --help >/dev/null
"$edge/edgemim" doctor
"$edge/edgemim" benchmark artifact --seconds 0.2 --out benchmark
"$edge/edgemim" data check photos --out data-check
"$edge/edgemim" data shard photos --out shards
"$edge/edgemim" data check shards --out shard-check
image=$(find photos/test -name '*.png' | sort | head -n 1)
"$edge/edgemim" predict artifact "$image"
"$edge/python" "$repository/export/python/classify_onnxruntime.py" artifact/model.onnx "$image"
"$edge/edgemim" track tracker/video.avi --artifact tracker/artifact --box 68,78,24,24 --out tracked.avi
[ -s tracked.avi ]
"$edge/python" "$repository/tracking/demo.py" tracker/artifact tracker/video.avi --box 68,78,24,24 | tail -n 1
if "$edge/edgemim" pretrain --data photos 2>message; then
  echo "pretrain ran without torch" >&2
  exit 1
elif [ $? -ne 4 ] || ! grep -q "edgemim\[train\]" message; then
  cat message >&2
  echo "a training verb without torch must exit 4 and name the extra" >&2
  exit 1
fi
echo "the edge wing runs alone"
