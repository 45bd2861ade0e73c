// Eight-bit numbers as candle's casts name them, E4M3: four bits of exponent, three of fraction.
#pragma once
#include "cuda_fp16.h"
enum { __NV_E4M3 };
inline float standin_from_fp8(unsigned char b) {
    int exponent = b >> 3 & 15, fraction = b & 7;
    float v = (b & 127) == 127 ? NAN : exponent ? ldexpf(1 + fraction / 8.0f, exponent - 7) : ldexpf(fraction / 8.0f, -6);
    return b & 128 ? -v : v;
}
inline unsigned char standin_to_fp8(float x) {
    if (std::isnan(x)) return 127;
    unsigned char nearest = 0;
    for (int b = 0; b < 127; b++)
        if (fabsf(standin_from_fp8(b) - fabsf(x)) < fabsf(standin_from_fp8(nearest) - fabsf(x))) nearest = b;
    return nearest | (std::signbit(x) ? 128 : 0);
}
struct __nv_fp8_e4m3 {
    unsigned char __x;
    __nv_fp8_e4m3() = default;
    template <class N, class = std::enable_if_t<std::is_arithmetic_v<N>>> __nv_fp8_e4m3(N v) : __x(standin_to_fp8((float)v)) {}
    explicit __nv_fp8_e4m3(__half v) : __x(standin_to_fp8((float)v)) {}
    operator float() const { return standin_from_fp8(__x); }
};
inline __half __nv_cvt_fp8_to_halfraw(unsigned char b, int) { return __half(standin_from_fp8(b)); }
