#!/usr/bin/env bash
# Everything that needs a GPU, in one command, under 9 minutes: the tests marked gpu, then sampling, compaction, attention,
# products, the decode step, decoding, reuse and link events in bfloat16. Results go to $OUT; what fails or runs out of time does not keep the rest from running.
# For a machine without a network that has Python >= 3.11, torch, triton and what setup.py's extras name.
set -euo pipefail
cd "$(dirname "$0")/.."
OUT=${OUT:-bench/results}
python3 -m pip install --quiet --no-deps --no-build-isolation --editable .
failed=0
timeout 210 python3 -m pytest -m gpu || failed=$?
gpu=(--device cuda --dtype bfloat16 --output "$OUT")
timeout 70 python3 bench/sampling.py "${gpu[@]}" --dtype float32 --limit 50 || failed=$?
timeout 20 python3 bench/compaction.py "${gpu[@]}" || failed=$?
timeout 25 python3 bench/attention.py "${gpu[@]}" || failed=$?
timeout 25 python3 bench/linear.py "${gpu[@]}" --limit 14 || failed=$?
timeout 40 python3 bench/gpu_step.py "${gpu[@]}" || failed=$?
# Eager FlexAttention is left out: on a GPU the training code compiles it.
timeout 75 python3 bench/decode.py "${gpu[@]}" --tokens 64 --against no_cache_sdpa --against transformers || failed=$?
timeout 45 python3 bench/reuse.py "${gpu[@]}" --model demo --model 12x768 || failed=$?
timeout 25 python3 bench/link_event.py "${gpu[@]}" --model 12x768 || failed=$?
exit "$failed"
