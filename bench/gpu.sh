#!/usr/bin/env bash
# Everything that needs a GPU, in one command, in about 8 minutes and at most 9.5: the tests marked gpu, then sampling, compaction,
# the decode step, decoding, attention, products, reuse and link events in bfloat16; first what there are aims for. What fails or runs out of time does not keep the rest from
# running, and leaves what it has measured. Results and a log go to bench/results; or to $OUT, where the results are in one
# archive of their JSON files, as of the last step that has ended (tar -xzf results.tgz -C bench/results): of a machine that is
# lent, few files may come back.
#
#     bench/gpu.sh            all of it
#     bench/gpu.sh tests reuse    some steps
#
# For a machine without a network that has Python >= 3.11, torch, triton, pytest, hypothesis, and what setup.py says ds2ds itself needs.
set -uo pipefail
cd "$(dirname "$0")/.."
results=$PWD/bench/results
if [[ -n ${OUT:-} ]]; then results=$(mktemp -d); fi
OUT=$(realpath -m "${OUT:-$results}")
mkdir -p "$OUT"
exec > >(tee "$OUT/gpu.log") 2>&1
log=$!
steps=${*:-tests sampling compaction gpu_step decode attention linear reuse link_event}
most=570
failed=0
export PYTHONUNBUFFERED=1
# As setup.py lays the package out, without leaving anything in the machine's Python.
site=$PWD/build/gpu
mkdir -p "$site/ds2ds"
ln -sfn "$PWD"/runtime/* "$PWD/kernels" "$site/ds2ds"
export PYTHONPATH=$site${PYTHONPATH:+:$PYTHONPATH}

# Without a GPU all tests would be skipped, and nothing fail.
python3 -c 'import torch, triton; print(torch.__version__, triton.__version__, torch.cuda.get_device_name())' || failed=1

wanted() { [[ " $steps " == *" $1 "* ]]; }

# within SECONDS COMMAND...: interrupted, so that it can still say what it knows, when that or the time for all is over.
within() {
    local limit=$1
    shift
    if ((SECONDS + limit > most)); then limit=$((most - SECONDS)); fi
    if ((limit < 10)); then
        echo "no time left"
        return 124
    fi
    timeout --signal=INT --kill-after=10 "$limit" env --default-signal=INT "$@"
}

# A process for each file, all at once: most of the time is the compilers', and what makes the GPU unusable ends one file alone.
run_tests() {
    local logs file
    logs=$(mktemp -d)
    for file in $(grep -l 'pytest\.mark\.gpu' tests/test_*.py); do
        OMP_NUM_THREADS=2 TORCHINDUCTOR_COMPILE_THREADS=4 within 240 \
            python3 -m pytest -m gpu --durations=5 "$file" >"$logs/$(basename "$file").log" 2>&1 || touch "$logs/failed" &
    done
    wait $(jobs -p)
    tail -n +1 "$logs"/*.log
    [[ ! -e $logs/failed ]]
}

# measure SECONDS NAME ARGUMENTS...
measure() {
    local limit=$1 name=$2
    shift 2
    wanted "$name" || return 0
    echo "== $name, after $SECONDS s"
    within "$limit" python3 "bench/$name.py" --device cuda --dtype bfloat16 --output "$results" "$@" || failed=1
    [[ $results == "$OUT" ]] || tar -czf "$OUT/results.tgz" -C "$results" .
}

if wanted tests; then run_tests || failed=1; fi
measure 80 sampling --dtype float32 --limit 50
measure 30 compaction
measure 120 gpu_step
# Eager FlexAttention is left out: on a GPU the training code compiles it.
measure 110 decode --tokens 32 --against no_cache_sdpa --against transformers
measure 70 attention
measure 35 linear --limit 14
measure 110 reuse --model 12x768 --link 4 --link 16 --link 64
measure 50 link_event --model 12x768
echo "== done after $SECONDS s, $( ((failed)) && echo 'something failed' || echo 'nothing failed')"
# The log is whole only when tee has ended. A process that was killed may have left another one that holds on to it.
exec >&- 2>&-
for _ in {1..50}; do
    kill -0 "$log" || break
    sleep 0.1
done
exit "$failed"
