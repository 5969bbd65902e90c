#!/bin/sh
# The tables and figures of paper/ on one CUDA card, in a few minutes: sh paper/gpu.sh FOLDER
# PYTHON: the interpreter. DEVICE, SIZES: for a trial elsewhere, such as DEVICE=cpu QUICK=1.
# All steps run at once, for small pictures leave a card idle: the seconds in table1.json are no
# benchmark. A step that fails or takes too long does not keep the others from running.
set -u
out=${1:?usage: sh paper/gpu.sh FOLDER}
cd "$(dirname "$0")/.." || exit
python=${PYTHON:-.venv/bin/python} device=${DEVICE:-cuda}
export PYTHONPATH="$PWD/src:$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
case $out in /*) ;; *) out=$PWD/$out ;; esac
made=$(mktemp -d) || exit
mkdir -p "$out"

step() { # NAME SECONDS COMMAND...
    name=$1 limit=$2 start=$(date +%s)
    shift 2
    timeout "$limit" "$@" >"$made/$name.log" 2>&1
    code=$?
    echo "$name: $(($(date +%s) - start)) s, exit code $code"
    [ "$code" -eq 0 ] || tail -n 3 "$made/$name.log"
}
paper() { # NAME SECONDS ARGUMENTS...
    script=$1 limit=$2
    shift 2
    step "$script" "$limit" "$python" -m "paper.$script" --device "$device" --out "$made" "$@"
}

if [ -n "${QUICK:-}" ]; then
    paper table1 60 --size 256 --count 1 --steps 1 --kept 0
    paper caches 60 --quick
else
    paper table1 105 --count 4 --kept-count 8 --kept-steps 20 &
    paper levels 105 &
    paper jitter 105 &
    step tune 105 "$python" -m tokendown tune --like paper --size 512x512 --steps 10 \
        --device "$device" --dtype float32 --out "$made/tune" &
    paper figure4 105 --prompts 2 &
    paper caches 105 &
    wait
fi
cp "$made"/table1.md "$made"/table1.json "$out" 2>/dev/null
tar -czf "$out/paper-gpu.tar.gz" -C "$made" . && rm -r "$made"
