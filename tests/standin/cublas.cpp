// Products as cuBLAS makes them: by columns, accumulated in f32, or in f64 for doubles. Sizes, types and distances are checked as it checks them.
#include "driver.h"
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>
#define API extern "C" __attribute__((visibility("default"))) int
enum { OK = 0, NOT_INITIALIZED = 1, INVALID_VALUE = 7, NOT_SUPPORTED = 15 };
enum { F32 = 0, F64 = 1, F16 = 2, BF16 = 14 };
enum { COMPUTE_32F = 68 };
struct Handle { void *stream = nullptr; intptr_t context = standin_context(); };

API cublasCreate_v2(Handle **h) {
    if (getenv("STANDIN_TRACE")) fprintf(stderr, "stand-in: a handle of cuBLAS\n");
    if (!standin_context()) return NOT_INITIALIZED;
    *h = new Handle;
    return OK;
}
API cublasDestroy_v2(Handle *h) { delete h; return OK; }
API cublasSetStream_v2(Handle *h, void *s) { h->stream = s; return OK; }

// A matrix by columns, or its transpose; `every` numbers to the next of the batch.
struct Matrix { unsigned long long at; int type; bool turned; long leading, every; };

static size_t size(int type) { return type == F64 ? 8 : type == F32 ? 4 : 2; }
template <class N> static N read(const char *p, int type) {
    double d; float f; _Float16 h; uint16_t b;
    switch (type) {
    case F64: memcpy(&d, p, 8); return (N)d;
    case F32: memcpy(&f, p, 4); return (N)f;
    case F16: memcpy(&h, p, 2); return (N)h;
    default: memcpy(&b, p, 2); uint32_t u = (uint32_t)b << 16; memcpy(&f, &u, 4); return (N)f;
    }
}
template <class N> static void write(char *p, int type, N v) {
    float f = (float)v;
    _Float16 h = (_Float16)f;
    uint32_t u;
    memcpy(&u, &f, 4);
    uint16_t b = (u & 0x7fffffff) > 0x7f800000 ? u >> 16 | 0x40 : (u + 0x7fff + (u >> 16 & 1)) >> 16;
    double d = v;
    memcpy(p, type == F64 ? (void *)&d : type == F32 ? (void *)&f : type == F16 ? (void *)&h : (void *)&b, size(type));
}

// Rows of `k` numbers, one behind the other: of a matrix whose rows or columns they are.
template <class N> static std::vector<N> rows(const Matrix &x, long i, long n, long k, bool columns) {
    std::vector<N> out(n * k);
    long last = columns ? k - 1 + (n - 1) * x.leading : n - 1 + (k - 1) * x.leading;
    const char *from = (const char *)standin_bytes(x.at + i * x.every * size(x.type), (last + 1) * size(x.type));
    for (long r = 0; r < n; r++)
        for (long j = 0; j < k; j++) out[r * k + j] = read<N>(from + (columns ? j + r * x.leading : r + j * x.leading) * size(x.type), x.type);
    return out;
}
template <class N> static void multiply(long m, long n, long k, double alpha, double beta, const Matrix &a, const Matrix &b, const Matrix &c, long batch) {
    std::vector<N> left, right;
    for (long i = 0; i < batch && m && n; i++) {
        if (k && (i == 0 || a.every)) left = rows<N>(a, i, m, k, a.turned);
        if (k && (i == 0 || b.every)) right = rows<N>(b, i, n, k, !b.turned);
        char *to = (char *)standin_bytes(c.at + i * c.every * size(c.type), (m + (n - 1) * c.leading) * size(c.type));
        for (long y = 0; y < n; y++)
            for (long x = 0; x < m; x++) {
                N sum = 0;
                const N *u = left.data() + x * k, *v = right.data() + y * k;
#pragma omp simd reduction(+ : sum)
                for (long j = 0; j < k; j++) sum += u[j] * v[j];
                char *p = to + (x + y * c.leading) * size(c.type);
                write<N>(p, c.type, (N)alpha * sum + (beta ? (N)beta * read<N>(p, c.type) : 0));
            }
    }
}
static int product(Handle *h, long m, long n, long k, double alpha, double beta, Matrix a, Matrix b, Matrix c, long batch) {
    if (standin_context() != h->context) return NOT_INITIALIZED;
    auto least = [](const Matrix &x, long n) { return x.leading >= (n < 1 ? 1 : n); };
    if (m < 0 || n < 0 || k < 0 || batch < 0 || !least(a, a.turned ? k : m) || !least(b, b.turned ? n : k) || !least(c, m)) return INVALID_VALUE;
    bool wide = c.type == F32 && (a.type == F16 || a.type == BF16);
    if (a.type != b.type || (c.type != a.type && !wide)) return NOT_SUPPORTED;
    standin_push(h->stream, [=] {
        a.type == F64 ? multiply<double>(m, n, k, alpha, beta, a, b, c, batch) : multiply<float>(m, n, k, alpha, beta, a, b, c, batch);
    });
    return OK;
}
typedef unsigned long long At;
API cublasGemmStridedBatchedEx(Handle *h, int ta, int tb, int m, int n, int k, const float *alpha, At a, int ka, int la, long long sa,
                               At b, int kb, int lb, long long sb, const float *beta, At c, int kc, int lc, long long sc, int batch, int compute, int) {
    if (compute != COMPUTE_32F) return NOT_SUPPORTED;
    return product(h, m, n, k, *alpha, *beta, {a, ka, ta != 0, la, (long)sa}, {b, kb, tb != 0, lb, (long)sb}, {c, kc, false, lc, (long)sc}, batch);
}
API cublasDgemmStridedBatched(Handle *h, int ta, int tb, int m, int n, int k, const double *alpha, At a, int la, long long sa,
                              At b, int lb, long long sb, const double *beta, At c, int lc, long long sc, int batch) {
    return product(h, m, n, k, *alpha, *beta, {a, F64, ta != 0, la, (long)sa}, {b, F64, tb != 0, lb, (long)sb}, {c, F64, false, lc, (long)sc}, batch);
}
