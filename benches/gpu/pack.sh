#!/usr/bin/env bash
# Builds what run.sh asks a card with, for any x86-64 processor of 2013 or later and any card since 8.0, small enough to send along.
#   benches/gpu/pack.sh FOLDER        # with CUDA_HOME set, see docs/gpu.md
# FOLDER gets all.tar.xz with amscript, gpu, tensor and main, and where this checkout lay. The same checkout must be where run.sh is started.
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
done
pwd > "$folder/checkout"
# One archive with a window as wide as all of them: what they have in common, the tiny family above all, counts once.
(cd "$folder" && tar -cf - amscript gpu tensor main | xz -T1 -6 --lzma2=dict=192MiB > all.tar.xz && rm amscript gpu tensor main)
du -h "$folder/all.tar.xz"
