#!/usr/bin/env bash
# Everything that needs a GPU, in one command, under 9 minutes: the tests marked gpu, then sampling, compaction, attention,
# the decode step, decoding, reuse and link events in bfloat16. Results go to $OUT; what fails or runs out of time does not keep the rest from running.
# For a machine without a network that has Python >= 3.11, torch, triton and what setup.py's extras name.
set -euo pipefail
cd "$(dirname "$0")/.."
OUT=${OUT:-bench/results}
mkdir -p "$OUT"
python3 -m pip install --quiet --no-deps --no-build-isolation --editable .
failed=0
# In four processes, as most of their time goes into compiling, each on one core. SIGINT has pytest tell what failed so far,
# and a module that cannot be imported, or a plugin that is not there, keeps no other test from running.
tests() {
    timeout --signal=INT --kill-after=10 225 python3 -m pytest -o addopts="-ra" -m gpu --continue-on-collection-errors \
        "${@:2}" > "$OUT/tests_$1.log" 2>&1
}
own=(tests/test_sampling_gpu.py tests/test_flex_gpu.py tests/test_triton_attention_gpu.py)
running=()
tests sampling "${own[0]}" & running+=($!)
tests flex "${own[1]}" & running+=($!)
tests attention "${own[2]}" & running+=($!)
tests rest "${own[@]/#/--ignore=}" & running+=($!)
for process in "${running[@]}"; do wait "$process" || failed=$?; done
tail -n 25 "$OUT"/tests_*.log
gpu=(--device cuda --dtype bfloat16 --output "$OUT")
timeout 80 python3 bench/sampling.py "${gpu[@]}" --dtype float32 --limit 60 || failed=$?
timeout 20 python3 bench/compaction.py "${gpu[@]}" || failed=$?
timeout 25 python3 bench/attention.py "${gpu[@]}" || failed=$?
timeout 40 python3 bench/gpu_step.py "${gpu[@]}" || failed=$?
# Eager FlexAttention is left out: on a GPU the training code compiles it.
timeout 75 python3 bench/decode.py "${gpu[@]}" --tokens 64 --against no_cache_sdpa --against transformers || failed=$?
timeout 45 python3 bench/reuse.py "${gpu[@]}" --model demo --model 12x768 || failed=$?
timeout 25 python3 bench/link_event.py "${gpu[@]}" --model 12x768 || failed=$?
exit "$failed"
