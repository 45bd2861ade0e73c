#!/usr/bin/env bash
# Builds what run.sh asks a card with, for any x86-64 processor of 2013 or later and any card since 8.0, small enough to send along.
#   benches/gpu/pack.sh FOLDER        # with CUDA_HOME set, see docs/gpu.md
# FOLDER gets amscript, gpu, tensor and main, each compressed; the checkout must be beside them at the same path when they run.
set -euo pipefail
folder=${1:?usage: pack.sh FOLDER}
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
cd "$(dirname "$0")/../.."
export CUDA_COMPUTE_CAP=80 RUSTFLAGS="-C target-cpu=x86-64-v3"
built() { cargo "$@" --features cuda --message-format=json | python3 -c '
import json, sys
for line in sys.stdin:
    message = json.loads(line)
    if message.get("executable"):
        print(message["target"]["name"], message["executable"])'; }
{ built build --release --bin amscript; built bench --bench gpu --no-run; built test --release -p amscript -p amscript-tensor --no-run; } \
    | sort -u | while read -r name file; do
    case $name in amscript_tensor) name=tensor ;; amscript | gpu | main) ;; *) continue ;; esac
    [ "$name" = amscript ] && [ "$(basename "$file")" != amscript ] && continue
    strip -o "$folder/$name" "$file"
    xz -T0 -f "$folder/$name"
done
ls -l "$folder"
