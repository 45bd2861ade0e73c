#!/usr/bin/env bash
# Everything a card should be asked, in nine minutes at most, printed as it comes and written to one report.
#
#   benches/gpu/run.sh FOLDER [REPORT]        # FOLDER is what pack.sh made
#   tests/standin/run env SIZE=tiny benches/gpu/run.sh FOLDER        # tries every part without a card
#
# SECONDS_AT_MOST=540   when to stop
# SIZE=klein-4b         of the model that is timed
# BATCH=16 STEPS=20     of its updates; 2 and 4 where it is tiny
set -uo pipefail
folder=$(cd "${1:?usage: run.sh FOLDER [REPORT]}" && pwd)
report=$(realpath -m "${2:-gpu-report.txt}")
cd "$(dirname "$0")/../.."
at_most=${SECONDS_AT_MOST:-540} size=${SIZE:-klein-4b}
[ "$size" = tiny ] && usual=(2 4) || usual=(16 20)
batch=${BATCH:-${usual[0]}} steps=${STEPS:-${usual[1]}}
export AMSCRIPT_DEVICE=${AMSCRIPT_DEVICE:-cuda}
# The libraries of CUDA 13, from the toolkit or from PyTorch's wheels.
wheels=$(python3 -c 'import glob, nvidia; print(":".join(glob.glob(list(nvidia.__path__)[0] + "/*/lib")))' 2> /dev/null || true)
export LD_LIBRARY_PATH=${LD_LIBRARY_PATH:-}:$wheels:/usr/local/cuda/lib64
left_out=()
: > "$report"
say() { echo "$@" | tee -a "$report"; }

# part NAME SECONDS COMMAND..: one part, cut off after SECONDS or at the end of the time.
part() {
    local name=$1 limit=$2 left=$((at_most - SECONDS)) began=$SECONDS
    shift 2
    if [ "$left" -lt 10 ]; then
        left_out+=("$name")
        return
    fi
    say "== $name"
    timeout -k 5 $((left < limit ? left : limit)) "$@" 2>&1 | grep -v "^test .* ok$" | tee -a "$report"
    local code=${PIPESTATUS[0]}
    [ "$code" = 124 ] && left_out+=("the rest of: $name")
    say "-- $name: $([ "$code" = 0 ] && echo done || echo "ended with $code"), $((SECONDS - began)) s"
    return "$code"
}

cd "$folder"
if [ -e all.tar.xz ] && [ ! -e amscript ]; then
    python3 -c 'import tarfile; tarfile.open("all.tar.xz").extractall(".")' || tar -xf all.tar.xz
fi
checkout=$(cat checkout 2> /dev/null || true)
cd - > /dev/null
for name in amscript gpu tensor main; do
    [ -x "$folder/$name" ] || { say "$folder/$name: there is none; pack.sh makes it"; exit 1; }
done
# The tests look for recipes and goldens where the checkout lay that they were built in.
if [ -n "$checkout" ] && [ ! -e "$checkout" ]; then mkdir -p "$(dirname "$checkout")" && ln -s "$PWD" "$checkout"; fi
say "$(date -u +%F) amscript $("$folder/amscript" --version)"
part "driver and card" 20 sh -c 'nvidia-smi --query-gpu=name,driver_version,memory.total,compute_cap,clocks.max.sm --format=csv,noheader; lscpu | grep "Model name"'
part "libraries" 20 sh -c "ldd $folder/amscript | grep -iE 'cu|nvrtc'"
part "kernels" 120 "$folder/tensor" cuda op::cases adamw
part "kernels at real sizes" 60 "$folder/tensor" --ignored --nocapture sizes_of_published_models
part "one update and a picture" 60 "$folder/amscript" scripts/flux_ode_am.rhai --out "$(mktemp -d)" --set iterations=2 --set "steps=$steps" \
    --set panel=0 --set test_prompts=2 --set images_per_prompt=2
timed=(--size "$size" --batch "$batch" --steps "$steps")
part "updates" 150 "$folder/gpu" "${timed[@]}" --methods AM-1,AM-3,DRaFT-1,ReFL-5 --repeats 2 --profile 1
torch=$(timeout 60 python3 -c "import torch; print('cuda' if torch.cuda.is_available() else 'cpu')" 2> /dev/null)
if [ "$torch" = cuda ] || { [ -n "$torch" ] && [ "$size" = tiny ]; }; then
    part "the same in PyTorch" 120 python3 benches/peers/gpu.py "${timed[@]}" --device "$torch" --methods AM-1,AM-3,DRaFT-1,ReFL-5 --repeats 2
else
    left_out+=("the same in PyTorch: there is none for a card")
fi
part "updates, full adjoint" 60 "$folder/gpu" "${timed[@]}" --methods AM-Full --repeats 0
part "scripts" 90 "$folder/main" suite:: doc::
# One update each, while there is time for it: as long as AM-1 took for every sample, and what making the weights takes.
took=$(sed -n 's/^AM-1: .*"seconds":\([0-9.]*\).*/\1/p' "$report" | head -n 1)
for more in 2 4 8; do
    needs=$(python3 -c "print(round(1.2 * ${took:-0} * $more + 30))")
    if [ "$needs" -gt $((at_most - SECONDS)) ]; then
        left_out+=("batch $((more * batch)): takes $needs s")
        break
    fi
    part "batch $((more * batch))" "$needs" "$folder/gpu" --size "$size" --batch $((more * batch)) --steps "$steps" --methods AM-1 --repeats 0
    tail -n 3 "$report" | grep -q OUT_OF_MEMORY && break
done
if command -v compute-sanitizer > /dev/null; then
    for tool in racecheck memcheck; do
        part "$tool" 60 compute-sanitizer --tool "$tool" --error-exitcode 9 "$folder/tensor" the_cards_kernels_agree --test-threads 1
    done
else
    left_out+=("races and addresses: there is no compute-sanitizer")
fi
say "== left out: $(IFS=\;; echo "${left_out[*]:-nothing}"); $SECONDS s in all, written to $report"
