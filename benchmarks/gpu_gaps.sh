#!/bin/sh
# The cells that benchmarks/results/gpu-h200.jsonl misses, on one CUDA card, most valuable first:
#     sh benchmarks/gpu_gaps.sh FOLDER SECONDS
# No job begins after SECONDS, and none goes on for longer; cells go into FOLDER/gpu-gaps.jsonl as
# they are measured, what each job says into FOLDER/logs. Called again, it goes on where it was.
# PYTHON: the interpreter. For a trial elsewhere: DEVICE=cpu SIZE=128 ROUNDS=1, and ONLY, a pattern
# of job names such as "sdxl-*".
set -u
out=${1:?usage: sh benchmarks/gpu_gaps.sh FOLDER SECONDS}
seconds=${2:?usage: sh benchmarks/gpu_gaps.sh FOLDER SECONDS}
end=$(($(date +%s) + seconds)) || exit
case $out in /*) ;; *) out=$PWD/$out ;; esac
cd "$(dirname "$0")/.." || exit
python=${PYTHON:-.venv/bin/python} device=${DEVICE:-cuda}
export PYTHONPATH="$PWD/src${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
mkdir -p "$out/logs" || exit
tomesd=
"$python" -c 'import importlib.util as i; raise SystemExit(i.find_spec("tomesd") is None)' &&
    tomesd="--method tomesd-equal"

job() { # NAME SECONDS ARGUMENTS...
    name=$1 limit=$2 start=$(date +%s) log=$out/logs/$1.log
    shift 2
    # shellcheck disable=SC2254 # a pattern on purpose
    case $name in ${ONLY:-*}) ;; *) return ;; esac
    [ ! -e "$out/logs/$name.done" ] || return
    left=$((end - start))
    if [ "$left" -le 0 ]; then
        echo "$name: not begun, no time left"
        return
    fi
    [ "$left" -ge "$limit" ] || limit=$left
    timeout -k 3 "$limit" "$python" -m tokendown bench --resume "$out/gpu-gaps.jsonl" \
        --device "$device" "$@" >"$log.new" 2>&1
    code=$?
    cat "$log.new" >>"$log"
    # a method that failed is in the cells with its reason; another try would cost as much again
    ! grep -q "all is measured" "$log.new" || : >"$out/logs/$name.done"
    echo "$name: $(($(date +%s) - start)) s, exit code $code"
    [ "$code" -eq 0 ] || tail -n 3 "$log.new"
    rm -f "$log.new"
}
cell() { # MODEL PIXELS HOW(eager, graph, blocks) ROUNDS METHODS...
    model=$1 pixels=${SIZE:-$2} how=$3 rounds=${ROUNDS:-$4} name=$1-$2-$3 dtype=float16 batch=2
    shift 4
    case $model in pixart-sigma | qwen-image) dtype=bfloat16 ;; esac
    [ "$model" != qwen-image ] || batch=1
    set -- "$@" --shape "$model" --size "${pixels}x$pixels" --rounds "$rounds" --batch "$batch"
    case $device-$how in
    *-eager) set -- "$@" --warmup 1 ;;
    cuda-graph) set -- "$@" --warmup 0 --compile graph ;; # two calls come before the recording
    *-blocks) set -- "$@" --warmup 2 --compile blocks ;;
    esac
    if [ "$device" = cpu ]; then
        dtype=bfloat16 # half the memory of float32, and faster than float16
        [ "$model" != qwen-image ] || set -- "$@" --blocks 1
    fi
    job "$name" 120 "$@" --dtype "$dtype"
}

own="--method paper --method auto --method bound"
joint="--method factor=2,anchors=0 --method factor=2,anchors=32 --method auto --method bound"
# shellcheck disable=SC2086 # lists of options
{
    cell sd15 4096 graph 2 $own
    cell sdxl 4096 graph 2 $own
    cell pixart-sigma 4096 graph 2 $own
    for model in sd21 sdxl pixart-sigma; do cell $model 1536 graph 3 $own; done
    for size in 1024 2048; do
        cell sdxl $size eager 3 $own $tomesd
        cell pixart-sigma $size eager 3 $own
        cell sd21 $size eager 3 $own $tomesd
    done
    cell sd15 1024 blocks 3 --method paper --method auto
    cell qwen-image 2048 eager 2 $joint
    cell sd21 4096 graph 2 $own
    cell sdxl 4096 eager 2 $own $tomesd
    cell sd15 1536 eager 3 $own $tomesd
    cell sdxl 1536 eager 3 $own $tomesd
    cell sd21 1536 eager 3 $own $tomesd
    cell pixart-sigma 1536 eager 3 $own
    cell pixart-sigma 4096 eager 2 $own
    cell sd15 4096 eager 2 $own $tomesd
}
