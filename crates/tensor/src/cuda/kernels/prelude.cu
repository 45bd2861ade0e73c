// What every kernel file begins with. Defines given by the launcher: `T`, the number type of activations (f32, bf16 or f16), `W`, that of
// weights, and `V`, numbers per memory access. All arithmetic is f32. Where a processor stands in for the card (`HOST`),
// tests/standin/include/kernel.h comes first.

typedef unsigned short u16;
typedef unsigned int u32;
typedef long long i64;
typedef float f32;
struct bf16 { u16 bits; };
struct f16 { u16 bits; };

#define INF __uint_as_float(0x7f800000u)

__device__ inline float wide(f32 x) { return x; }
__device__ inline float wide(bf16 x) { return __uint_as_float((u32)x.bits << 16); }

#ifndef HOST
#define DYNAMIC(type, name)                                                                                                                    \
    extern __shared__ __align__(16) char shared_bytes[];                                                                                       \
    type *name = (type *)shared_bytes
#endif

#ifdef HOST
__device__ inline u16 to_bf16(float x) {
    u32 u = __float_as_uint(x);
    if ((u & 0x7fffffff) > 0x7f800000) return (u16)(u >> 16 | 0x40);
    return (u16)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}
__device__ inline float wide(f16 x) { return host_from_f16(x.bits); }
__device__ inline u16 to_f16(float x) { return host_to_f16(x); }
#else
__device__ inline u16 to_bf16(float x) {
    u16 y;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y) : "f"(x));
    return y;
}
__device__ inline float wide(f16 x) {
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
    return y;
}
__device__ inline u16 to_f16(float x) {
    u16 y;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y) : "f"(x));
    return y;
}
#endif

__device__ inline void put(f32 &y, float x) { y = x; }
__device__ inline void put(bf16 &y, float x) { y.bits = to_bf16(x); }
__device__ inline void put(f16 &y, float x) { y.bits = to_f16(x); }

#ifndef V
#define V 1
#endif

// V numbers, read and written at once.
template <class A> struct alignas(sizeof(A) * V) Pack { A v[V]; };

template <class A> __device__ inline void load(float out[V], const A *x) {
    const Pack<A> p = *(const Pack<A> *)x;
#pragma unroll
    for (int i = 0; i < V; i++) out[i] = wide(p.v[i]);
}

template <class A> __device__ inline void store(A *y, const float x[V]) {
    Pack<A> p;
#pragma unroll
    for (int i = 0; i < V; i++) put(p.v[i], x[i]);
    *(Pack<A> *)y = p;
}

// Sum, or maximum, over the threads of a row: those of one `threadIdx.y`, a warp, or all of a block where a row takes more. Every thread gets it.
template <bool MAX> __device__ inline float across(float v) {
    for (int o = 16; o > 0; o >>= 1) {
        float w = __shfl_xor_sync(0xffffffffu, v, o);
        v = MAX ? fmaxf(v, w) : v + w;
    }
    if (blockDim.x > 32) {
        __shared__ float parts[32];
        int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
        __syncthreads();
        if (lane == 0) parts[warp] = v;
        __syncthreads();
        v = lane < (int)(blockDim.x >> 5) ? parts[lane] : (MAX ? -INF : 0.0f);
        for (int o = 16; o > 0; o >>= 1) {
            float w = __shfl_xor_sync(0xffffffffu, v, o);
            v = MAX ? fmaxf(v, w) : v + w;
        }
    }
    return v;
}

__device__ inline float row_sum(float v) { return across<false>(v); }
__device__ inline float row_max(float v) { return across<true>(v); }
__device__ inline float logistic(float x) { return 1.0f / (1.0f + expf(-x)); }
