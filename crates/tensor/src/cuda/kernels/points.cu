// Elementwise functions and the gated ones. `n` counts packs of V numbers, `width` numbers.

#define EACH(i) for (i64 i = (i64)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (i64)gridDim.x * blockDim.x)

// The order of `Kind` in op/activation.rs.
enum { SIGMOID, RELU, SILU, SOFTPLUS, QUICK_GELU, GELU_ERF, GELU_TANH };

#define ROOT 0.7978845608028654f // sqrt(2 / pi)
#define CUBIC 0.044715f

__device__ inline float value_of(int kind, float x) {
    switch (kind) {
    case SIGMOID: return logistic(x);
    case RELU: return x < 0.0f ? 0.0f : x;
    case SILU: return x * logistic(x);
    case SOFTPLUS: return fmaxf(x, 0.0f) + log1pf(expf(-fabsf(x)));
    case QUICK_GELU: return x * logistic(1.702f * x);
    case GELU_ERF: return 0.5f * x * (1.0f + erff(x * 0.70710678f));
    default: return x * logistic(2.0f * ROOT * x * (1.0f + CUBIC * x * x));
    }
}

__device__ inline float slope_of(int kind, float x) {
    float s;
    switch (kind) {
    case SIGMOID: return logistic(x) * logistic(-x);
    case RELU: return x > 0.0f ? 1.0f : 0.0f;
    case SILU: s = logistic(x); return s * (1.0f + x * (1.0f - s));
    case SOFTPLUS: return logistic(x);
    case QUICK_GELU: s = logistic(1.702f * x); return s * (1.0f + 1.702f * x * (1.0f - s));
    case GELU_ERF: return 0.5f * (1.0f + erff(x * 0.70710678f)) + x * 0.39894228f * expf(-0.5f * x * x);
    default:
        s = logistic(2.0f * ROOT * x * (1.0f + CUBIC * x * x));
        return s + x * s * (1.0f - s) * 2.0f * ROOT * (1.0f + 3.0f * CUBIC * x * x);
    }
}

// Parts of rows: `width` packs of each, which begin `from` numbers apart in x and `to` in y.
extern "C" __global__ void parts(const T *x, T *y, int rows, int width, i64 from, i64 to) {
    for (int row = blockIdx.y; row < rows; row += gridDim.y)
        for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < width; i += gridDim.x * blockDim.x)
            ((Pack<T> *)(y + row * to))[i] = ((const Pack<T> *)(x + row * from))[i];
}

extern "C" __global__ void value(const T *x, T *y, i64 n, int kind) {
    EACH(i) {
        float v[V];
        load(v, x + i * V);
#pragma unroll
        for (int j = 0; j < V; j++) v[j] = value_of(kind, v[j]);
        store(y + i * V, v);
    }
}

// out = g f'(x)
extern "C" __global__ void slope(const T *g, const T *x, T *out, i64 n, int kind) {
    EACH(i) {
        float v[V], h[V];
        load(v, x + i * V), load(h, g + i * V);
#pragma unroll
        for (int j = 0; j < V; j++) v[j] = h[j] * slope_of(kind, v[j]);
        store(out + i * V, v);
    }
}

// y [rows, width + half] = before [rows, width], then silu(x's first half) times its second, x [rows, 2 half]. Without before, width is 0.
extern "C" __global__ void swiglu(const T *before, const T *x, T *y, i64 n, int width, int half) {
    EACH(i) {
        i64 row = i * V / (width + half), column = i * V % (width + half) - width;
        float a[V], b[V];
        if (column < 0) {
            load(a, before + (row + 1) * width + column);
        } else {
            load(a, x + row * 2 * half + column), load(b, x + row * 2 * half + half + column);
#pragma unroll
            for (int j = 0; j < V; j++) a[j] = a[j] * logistic(a[j]) * b[j];
        }
        store(y + i * V, a);
    }
}

// From g [rows, width + half]; `n` counts packs of its halves.
extern "C" __global__ void swiglu_back(const T *g, const T *x, T *out, i64 n, int width, int half) {
    EACH(i) {
        i64 row = i * V / half, column = i * V % half, at = row * 2 * half + column;
        float a[V], b[V], h[V];
        load(a, x + at), load(b, x + at + half), load(h, g + row * (width + half) + width + column);
#pragma unroll
        for (int j = 0; j < V; j++) {
            float s = logistic(a[j]), ga = h[j] * b[j] * s * (1.0f + a[j] * (1.0f - s));
            b[j] = h[j] * a[j] * s;
            a[j] = ga;
        }
        store(out + at, a), store(out + at + half, b);
    }
}

// out = x + gate y, or gate y where there is no x; x, y [batch, tokens, width], gate [batch, width].
extern "C" __global__ void gated(const T *x, const W *gate, const T *y, T *out, i64 n, int tokens, int width) {
    EACH(i) {
        i64 row = i * V / width, column = i * V % width;
        float a[V], b[V], f[V];
        load(b, y + i * V), load(f, gate + row / tokens * width + column);
        if (x) load(a, x + i * V);
#pragma unroll
        for (int j = 0; j < V; j++) a[j] = (x ? a[j] : 0.0f) + f[j] * b[j];
        store(out + i * V, a);
    }
}

// out = a x + b y
extern "C" __global__ void combine(const T *x, const T *y, T *out, i64 n, float a, float b) {
    EACH(i) {
        float u[V], v[V];
        load(u, x + i * V), load(v, y + i * V);
#pragma unroll
        for (int j = 0; j < V; j++) u[j] = a * u[j] + b * v[j];
        store(out + i * V, u);
    }
}

// out = a x + b
extern "C" __global__ void affine(const T *x, T *out, i64 n, float a, float b) {
    EACH(i) {
        float u[V];
        load(u, x + i * V);
#pragma unroll
        for (int j = 0; j < V; j++) u[j] = a * u[j] + b;
        store(out + i * V, u);
    }
}

// Every row of out [rows, width] becomes v; `n` counts packs of out.
extern "C" __global__ void repeat(const T *v, T *out, i64 n, int width) {
    EACH(i) {
        float u[V];
        load(u, v + i * V % width);
        store(out + i * V, u);
    }
}

// Rotates pairs of x [batch, s, heads, d] by angles cos, sin [s, d / 2]; `turn` -1 turns back. Pairs are (2 i, 2 i + 1), or (i, i + d / 2).
// `n` counts pairs.
extern "C" __global__ void rotate(const T *x, const f32 *cos, const f32 *sin, T *y, i64 n, int s, int heads, int d, int pairs, float turn) {
    EACH(i) {
        int half = d / 2, j = (int)(i % half);
        i64 head = i / half, token = head / heads % s;
        i64 a = head * d + (pairs ? 2 * j : j), b = pairs ? a + 1 : a + half;
        float c = cos[token * half + j], t = turn * sin[token * half + j], u = wide(x[a]), v = wide(x[b]);
        put(y[a], u * c - v * t);
        put(y[b], u * t + v * c);
    }
}

// One step of AdamW; gradient, moments and value are f32. See optim/step.rs.
extern "C" __global__ void adamw(const T *g, f32 *x, f32 *first, f32 *second, i64 n, float scale, float b1, float b2, float rate1, float c2, float epsilon, float decay) {
    EACH(i) {
        float h = scale * wide(g[i]);
        float m = b1 * first[i] + (1.0f - b1) * h, v = b2 * second[i] + (1.0f - b2) * h * h;
        first[i] = m, second[i] = v;
        x[i] = decay * x[i] - rate1 * m / (sqrtf(v / c2) + epsilon);
    }
}
