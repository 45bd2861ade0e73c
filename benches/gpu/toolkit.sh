#!/usr/bin/env bash
# A CUDA 13 toolkit from PyPI, for building without a card, without root and without NVIDIA's packages: about 3 GB in DIR.
#
#   eval "$(benches/gpu/toolkit.sh DIR)"      # prints what to export
#   cargo build --release --features cuda
set -euo pipefail
dir=${1:?usage: toolkit.sh DIR}
root=$dir/unpacked/nvidia/cu13
if [ ! -e "$root/lib/stubs/libcuda.so" ]; then
    mkdir -p "$dir/wheels" "$dir/unpacked"
    # All of one release: a compiler and libraries of two do not fit.
    python3 -m pip download -q --no-deps -d "$dir/wheels" \
        nvidia-cuda-nvcc==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-runtime==13.0.96 \
        nvidia-cuda-nvrtc==13.0.88 nvidia-cuda-cccl==13.0.85 nvidia-cublas==13.0.2.14 nvidia-curand==10.4.0.35 >&2
    for wheel in "$dir"/wheels/*.whl; do python3 -m zipfile -e "$wheel" "$dir/unpacked" >&2; done
    chmod +x "$root"/bin/* "$root"/nvvm/bin/* 2> /dev/null || true
    for lib in "$root"/lib/*.so.*; do ln -sf "$(basename "$lib")" "${lib%%.so.*}.so"; done
    ln -sfn lib "$root/lib64"
    # The driver's library comes with the driver; to link, its names are enough.
    mkdir -p "$root/lib/stubs"
    grep -ohE '\bcu[A-Z][A-Za-z0-9_]+' "$root/include/cuda.h" "$root/include/cudaTypedefs.h" | sed -E 's/^PFN_//' | sort -u \
        | awk '{n[$1]; n[$1 "_v2"]; n[$1 "_v3"]} END {for (s in n) print "void " s "(void){}"}' > "$dir/stub.c"
    gcc -w -shared -fPIC -Wl,-soname,libcuda.so.1 -o "$root/lib/stubs/libcuda.so" "$dir/stub.c" >&2
fi
root=$(cd "$root" && pwd)
cat << EOF
export CUDA_HOME=$root CUDA_PATH=$root CUDA_ROOT=$root CUDA_TOOLKIT_ROOT_DIR=$root
export PATH=$root/bin:\$PATH LIBRARY_PATH=$root/lib:$root/lib/stubs CUDA_COMPUTE_CAP=\${CUDA_COMPUTE_CAP:-80}
EOF
