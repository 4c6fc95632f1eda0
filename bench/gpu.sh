#!/usr/bin/env bash
# Everything that needs a GPU, in one command: the tests marked gpu, then decoding in bfloat16. Results go to $OUT.
# For a machine without a network that has Python >= 3.11, torch, triton and what setup.py's extras name.
set -euo pipefail
cd "$(dirname "$0")/.."
OUT=${OUT:-bench/results}
python3 -m pip install --quiet --no-deps --no-build-isolation --editable .
tests=0
timeout 240 python3 -m pytest -m gpu || tests=$?
# Eager FlexAttention is left out: on a GPU the training code compiles it.
timeout 240 python3 bench/decode.py --device cuda --dtype bfloat16 --tokens 64 --output "$OUT" \
    --against no_cache_sdpa --against transformers
exit "$tests"
