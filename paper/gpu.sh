#!/bin/sh
# The tables and figures of paper/ on one CUDA card, in a few minutes: sh paper/gpu.sh FOLDER
# PYTHON: the interpreter. SECONDS_EACH: of a step, at most. For a trial elsewhere: DEVICE=cpu QUICK=1.
# All steps run at once, for small pictures leave a card idle: the seconds in table1.json are no
# benchmark. A step that fails or takes too long does not keep the others from running.
set -u
out=${1:?usage: sh paper/gpu.sh FOLDER}
cd "$(dirname "$0")/.." || exit
limit=${SECONDS_EACH:-105}
python=${PYTHON:-.venv/bin/python} device=${DEVICE:-cuda}
export PYTHONPATH="$PWD/src:$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
case $out in /*) ;; *) out=$PWD/$out ;; esac
made=$(mktemp -d) || exit
mkdir -p "$out"

step() { # NAME SECONDS COMMAND...
    name=$1 allowed=$2 start=$(date +%s)
    shift 2
    timeout "$allowed" "$@" >>"$made/$name.log" 2>&1
    code=$?
    echo "$name: $(($(date +%s) - start)) s, exit code $code"
    [ "$code" -eq 0 ] || tail -n 3 "$made/$name.log"
}
paper() { # NAME SECONDS ARGUMENTS...
    script=$1 seconds=$2
    shift 2
    step "$script" "$seconds" "$python" -m "paper.$script" --device "$device" --out "$made" "$@"
}

if [ -n "${QUICK:-}" ]; then
    paper table1 60 --size 256 --count 1 --steps 1 --kept 0
    paper builtin_table 60 --quick
else
    paper table1 "$limit" --count 4 --kept-count 4 --kept-steps 10 &
    paper levels "$limit" &
    paper jitter "$limit" &
    paper builtin_table "$limit" &
    paper builtin_table "$limit" --size 512 --count 2 --steps 10 --phases 4 &
    paper builtin_table "$limit" --size 1024 --count 1 --steps 4 --phases 4 &
    step tune "$limit" "$python" -m tokendown tune --like paper --size 512x512 --steps 10 \
        --device "$device" --dtype float32 --out "$made/tune" &
    paper figure4 "$limit" --prompts 2 &
    wait
fi
cp "$made"/table1.md "$made"/table1.json "$out" 2>/dev/null
tar -czf "$out/paper-gpu.tar.gz" -C "$made" . && rm -r "$made"
