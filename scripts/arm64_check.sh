#!/bin/sh
# Runs an exported model in LiteRT for arm64, emulated, and compares with this machine:
#
#   sudo sh scripts/arm64_check.sh MODEL.tflite
#
# Prints, for three processors (an older phone's, a newer one's, and one with all that
# the emulator has), the largest differences of what the same calls return; fails if
# one is above 1e-5. Needs Debian or Ubuntu, root to unpack Debian's arm64 packages,
# and the project's virtual environment. Keeps nothing.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
python=$root/.venv/bin/python

fail() {
    echo "arm64_check: $1" >&2
    exit 1
}

[ "$(id -u)" = 0 ] || fail "not root; run it with sudo."
[ $# -eq 1 ] || fail "usage: arm64_check.sh MODEL.tflite"
[ -f "$1" ] || fail "no model at $1; scripts/export_tflite.py writes one."
model=$(cd "$(dirname "$1")" && pwd)/$(basename "$1")
[ -x "$python" ] || fail "no $python; run 'make test' first."
command -v apt-get >/dev/null 2>&1 ||
    fail "apt-get was not found; this check needs Debian or Ubuntu."
for tool in qemu-aarch64-static:qemu-user-static mmdebstrap:mmdebstrap; do
    command -v "${tool%:*}" >/dev/null 2>&1 ||
        fail "${tool%:*} was not found; run 'apt-get install ${tool#*:}'."
done
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 1' INT TERM

# An arm64 Python, unpacked and not configured, so that nothing of it runs here.
log=$work/log
mmdebstrap --arch=arm64 --variant=extract --include=python3.11,libstdc++6 \
    bookworm "$work/arm64" >"$log" 2>&1 ||
    { cat "$log" >&2; fail "Debian's arm64 packages could not be unpacked."; }
grep -E '^(ai-edge-litert|flatbuffers|numpy)==' "$root/requirements.txt" >"$work/lock"
"$python" -m pip install --quiet --disable-pip-version-check --no-deps --no-compile \
    --only-binary=:all: --python-version=3.11 --platform=manylinux_2_27_aarch64 \
    --platform=manylinux_2_17_aarch64 --target="$work/packages" \
    --requirement="$work/lock" >"$log" 2>&1 ||
    { cat "$log" >&2; fail "the arm64 wheels could not be installed."; }

cat >"$work/replay.py" <<'EOF_PYTHON'
"""Calls a model with fixed inputs: replay.py MODEL OUTPUT.npz [DIRECTORY ...]."""

import sys
import time

model, output, *directories = sys.argv[1:]
sys.path[:0] = directories

import numpy as np

from tff_perfedavg.ondevice.runner import OnDeviceModel

device = OnDeviceModel(model)
card = device.card
rng = np.random.default_rng(0)


def draw():
    rows = card["batch_size"]
    x = rng.random((rows, *card["input_shape"])).astype(np.float32)
    if card["num_classes"] is None:
        return x, rng.random((rows, *card["label_shape"])).astype(np.float32)
    return x, rng.integers(card["num_classes"], size=rows)


start = time.perf_counter()
x, y = draw()
initial = device.weights
found = {"infer": device.infer(x)}
found["adapt: losses"] = np.array([device.adapt(x, y, 0.05) for _ in range(3)])
found["adapt: weights"] = np.concatenate([w.ravel() for w in device.weights])
found["infer when adapted"] = device.infer(x)
device.reset()
if any((w != i).any() for w, i in zip(device.weights, initial)):
    sys.exit("reset did not bring the initial weights back")
found["infer after reset"] = device.infer(x)
if card["max_local_steps"]:
    roles = ["support", "query", "hessian"]
    steps = [{role: draw() for role in roles} for _ in range(card["max_local_steps"])]
    delta, *losses = device.meta_update(initial, steps, 0.05, 0.05)
    found["meta_update: update"] = np.concatenate([d.ravel() for d in delta])
    found["meta_update: losses"] = np.array(losses)
found["seconds"] = np.array(time.perf_counter() - start)
np.savez(output, **found)
EOF_PYTHON

run_native() {
    (cd "$root" && "$python" -B "$work/replay.py" "$model" "$work/native.npz" "$root")
}

# Without a /proc/cpuinfo of its own, LiteRT meets this machine's, finds no arm64
# processor in it and crashes.
run_emulated() {
    mkdir -p "$work/arm64/proc"
    for processor in 0 1; do
        printf 'processor\t: %s\n' $processor
        printf 'CPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x0\n'
        printf 'CPU part\t: 0x%s\nCPU revision\t: 4\n\n' "$2"
    done >"$work/arm64/proc/cpuinfo"
    QEMU_CPU=$1 qemu-aarch64-static -L "$work/arm64" "$work/arm64/usr/bin/python3.11" \
        -I -S -B "$work/replay.py" "$model" "$work/$1.npz" "$work/packages" "$root"
}

run_native >"$log" 2>&1 || { cat "$log" >&2; fail "the model does not run here."; }
for processor in cortex-a53:d03 cortex-a76:d0b max:d0b; do
    run_emulated "${processor%:*}" "${processor#*:}" >"$log" 2>&1 ||
        { cat "$log" >&2; fail "the model does not run on ${processor%:*}."; }
done
"$python" - "$work" cortex-a53 cortex-a76 max <<'EOF_PYTHON'
import pathlib
import sys

import numpy as np

work, *processors = sys.argv[1:]
native, *emulated = (
    dict(np.load(pathlib.Path(work, f"{name}.npz"))) for name in ["native", *processors]
)
print(f"{'largest difference':22}" + "".join(f"{name:>12}" for name in processors))
worst = 0.0
for key, expected in native.items():
    if key == "seconds":
        continue
    differences = [np.abs(found[key] - expected).max() for found in emulated]
    print(f"{key:22}" + "".join(f"{d:12.1e}" for d in differences))
    worst = np.max([worst, *differences])
seconds = "".join(f"{found['seconds']:12.2f}" for found in emulated)
print(f"{'seconds (here %.2f)' % native['seconds']:22}{seconds}")
print(f"Largest of all: {worst:.1e}")
if not worst <= 1e-5:
    sys.exit("arm64_check: above 1e-5; the runtimes disagree.")
EOF_PYTHON
