// Half precision as candle's kernels use it: numbers that are rounded when stored, arithmetic in f32.
#pragma once
#define STANDIN_NUMBER(NAME, FROM, TO)                                                                         \
    struct NAME {                                                                                              \
        unsigned short __x;                                                                                    \
        NAME() = default;                                                                                      \
        template <class N, class = std::enable_if_t<std::is_arithmetic_v<N>>> NAME(N v) : __x(TO((float)v)) {} \
        operator float() const { return FROM(__x); }                                                           \
    };                                                                                                         \
    inline NAME operator+(NAME a, NAME b) { return NAME((float)a + (float)b); }                                \
    inline NAME operator-(NAME a, NAME b) { return NAME((float)a - (float)b); }                                \
    inline NAME operator*(NAME a, NAME b) { return NAME((float)a * (float)b); }                                \
    inline NAME operator/(NAME a, NAME b) { return NAME((float)a / (float)b); }                                \
    inline NAME operator-(NAME a) { return NAME(-(float)a); }                                                  \
    inline NAME &operator+=(NAME &a, NAME b) { return a = a + b; }                                             \
    inline NAME &operator-=(NAME &a, NAME b) { return a = a - b; }                                             \
    inline NAME &operator*=(NAME &a, NAME b) { return a = a * b; }                                             \
    inline bool operator<(NAME a, NAME b) { return (float)a < (float)b; }                                      \
    inline bool operator>(NAME a, NAME b) { return (float)a > (float)b; }                                      \
    inline bool operator<=(NAME a, NAME b) { return (float)a <= (float)b; }                                    \
    inline bool operator>=(NAME a, NAME b) { return (float)a >= (float)b; }                                    \
    inline bool operator==(NAME a, NAME b) { return (float)a == (float)b; }                                    \
    inline bool operator!=(NAME a, NAME b) { return (float)a != (float)b; }                                    \
    inline bool __hisnan(NAME a) { return std::isnan((float)a); }                                              \
    inline NAME hsqrt(NAME a) { return NAME(sqrtf(a)); }                                                       \
    inline NAME hcos(NAME a) { return NAME(cosf(a)); }                                                         \
    inline NAME hsin(NAME a) { return NAME(sinf(a)); }                                                         \
    inline NAME hlog(NAME a) { return NAME(logf(a)); }                                                         \
    inline NAME hexp(NAME a) { return NAME(expf(a)); }                                                         \
    inline NAME __habs(NAME a) { return NAME(fabsf(a)); }                                                      \
    inline NAME __hmax_nan(NAME a, NAME b) { return __hisnan(a) ? a : __hisnan(b) ? b : a < b ? b : a; }       \
    inline NAME __hmin_nan(NAME a, NAME b) { return __hisnan(a) ? a : __hisnan(b) ? b : b < a ? b : a; }

STANDIN_NUMBER(__half, host_from_f16, host_to_f16)
typedef __half __half_raw;
inline float __half2float(__half x) { return x; }
inline __half __float2half(float x) { return __half(x); }
inline __half __float2half_rn(float x) { return __half(x); }
inline unsigned short __half_as_ushort(__half x) { return x.__x; }
inline __half __ushort_as_half(unsigned short u) { __half x; x.__x = u; return x; }
