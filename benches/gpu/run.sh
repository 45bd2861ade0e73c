#!/usr/bin/env bash
# Everything a card should be asked, in nine minutes at most, printed as it comes and written to one report.
#
#   benches/gpu/run.sh FOLDER [REPORT]        # FOLDER is what pack.sh made
#   tests/standin/run env SIZE=tiny benches/gpu/run.sh FOLDER        # tries every part without a card
#
# SECONDS_AT_MOST=540   when to stop
# SIZE=klein-4b         of the model that is timed
# BATCH=16 STEPS=20     of its updates
set -uo pipefail
folder=$(cd "${1:?usage: run.sh FOLDER [REPORT]}" && pwd)
report=$(realpath -m "${2:-gpu-report.txt}")
cd "$(dirname "$0")/../.."
at_most=${SECONDS_AT_MOST:-540} size=${SIZE:-klein-4b} batch=${BATCH:-16} steps=${STEPS:-20}
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

for packed in "$folder"/*.xz; do [ -e "$packed" ] && { [ -e "${packed%.xz}" ] || xz -dk "$packed"; }; done
chmod +x "$folder"/{amscript,gpu,tensor,main}
say "$(date -u +%F) amscript $("$folder/amscript" --version)"
part "driver and card" 20 sh -c 'nvidia-smi --query-gpu=name,driver_version,memory.total,compute_cap,clocks.max.sm --format=csv,noheader; lscpu | grep "Model name"'
part "libraries" 20 sh -c "ldd $folder/amscript | grep -iE 'cu|nvrtc'"
part "kernels" 120 "$folder/tensor" cuda op::cases adamw
part "one update and a picture" 120 "$folder/amscript" scripts/flux_ode_am.rhai --out "$(mktemp -d)" --set iterations=2 --set test_prompts=2 --set images_per_prompt=2
timed=(--size "$size" --batch "$batch" --steps "$steps")
part "updates" 150 "$folder/gpu" "${timed[@]}" --methods AM-1,AM-3,DRaFT-1,ReFL-5 --repeats 2 --profile 1
part "updates, full adjoint" 90 "$folder/gpu" "${timed[@]}" --methods AM-Full --repeats 1
if python3 -c "import torch" 2> /dev/null; then
    device=$(python3 -c "import torch; print('cuda' if torch.cuda.is_available() else 'cpu')")
    part "the same in PyTorch" 120 python3 benches/peers/gpu.py "${timed[@]}" --device "$device" --methods AM-1,AM-3,DRaFT-1,ReFL-5 --repeats 2
else
    left_out+=("the same in PyTorch: there is none")
fi
for more in 2 4 8; do
    part "batch $((more * batch))" 60 "$folder/gpu" --size "$size" --batch $((more * batch)) --steps "$steps" --methods AM-1 --repeats 1
    tail -n 3 "$report" | grep -q OUT_OF_MEMORY && break
done
part "scripts" 120 "$folder/main" suite:: doc::
say "== left out: ${left_out[*]:-nothing}; $SECONDS s in all, written to $report"
