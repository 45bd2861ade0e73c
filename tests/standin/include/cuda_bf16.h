// bfloat16 as candle's kernels use it.
#pragma once
#include "cuda_fp16.h"
STANDIN_NUMBER(__nv_bfloat16, host_from_bf16, host_to_bf16)
struct __nv_bfloat162 { __nv_bfloat16 x, y; };
inline float __bfloat162float(__nv_bfloat16 x) { return x; }
inline __nv_bfloat16 __float2bfloat16(float x) { return __nv_bfloat16(x); }
inline __nv_bfloat16 __float2bfloat16_rn(float x) { return __nv_bfloat16(x); }
inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 x) { return x.__x; }
inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short u) { __nv_bfloat16 x; x.__x = u; return x; }
#define STANDIN_PAIR(NAME, OP) inline __nv_bfloat162 NAME(__nv_bfloat162 a, __nv_bfloat162 b) { return {a.x OP b.x, a.y OP b.y}; }
STANDIN_PAIR(__hadd2, +)
STANDIN_PAIR(__hsub2, -)
STANDIN_PAIR(__hmul2, *)
STANDIN_PAIR(__h2div, /)
