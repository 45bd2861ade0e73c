// Normalised rows, softmax of rows, sums of columns. Rows are of `width` numbers, a multiple of V.

struct Moments { float mean, size; };

// Mean (0 if it stays) and 1 / deviation of a row.
__device__ inline Moments moments_of(const T *x, int width, int centre, float eps) {
    float v[V], s = 0.0f, mean = 0.0f;
    if (centre) {
        for (int i = threadIdx.x * V; i < width; i += blockDim.x * V) {
            load(v, x + i);
#pragma unroll
            for (int j = 0; j < V; j++) s += v[j];
        }
        mean = row_sum(s) / width;
        s = 0.0f;
    }
    for (int i = threadIdx.x * V; i < width; i += blockDim.x * V) {
        load(v, x + i);
#pragma unroll
        for (int j = 0; j < V; j++) s += (v[j] - mean) * (v[j] - mean);
    }
    return Moments{mean, 1.0f / sqrtf(row_sum(s) / width + eps)};
}

// Turns the pairs of a pack by their angles times `way` of 1 or -1.
__device__ inline void turn(float v[V], const f32 *cos, const f32 *sin, float way) {
#pragma unroll
    for (int j = 0; j + 1 < V; j += 2) {
        float c = cos[j / 2], s = way * sin[j / 2], a = v[j], b = v[j + 1];
        v[j] = a * c - b * s;
        v[j + 1] = a * s + b * c;
    }
}

// y = (x - mean) size (more + w) + b; each `block` of rows has a w and a b of its own. w and b may be missing. Where there are angles
// cos, sin [tokens, width / 2], rows are [batch, tokens, heads], packs hold pairs (2 i, 2 i + 1), and y is turned by those of its token.
extern "C" __global__ __launch_bounds__(1024) void normalise(const T *x, const W *w, const W *b, T *y, const f32 *cos, const f32 *sin, i64 rows, int width, int tokens, int heads,
                                     i64 block, int centre, float more, float eps) {
    i64 row = (i64)blockIdx.x * blockDim.y + threadIdx.y;
    if (row >= rows) return;
    x += row * width, y += row * width;
    Moments m = moments_of(x, width, centre, eps);
    i64 at = row / block * width;
    if (cos) cos += row / heads % tokens * (width / 2), sin += row / heads % tokens * (width / 2);
    for (int i = threadIdx.x * V; i < width; i += blockDim.x * V) {
        float v[V], f[V];
        load(v, x + i);
#pragma unroll
        for (int j = 0; j < V; j++) v[j] = (v[j] - m.mean) * m.size;
        if (w) {
            load(f, w + at + i);
#pragma unroll
            for (int j = 0; j < V; j++) v[j] *= more + f[j];
        }
        if (b) {
            load(f, b + at + i);
#pragma unroll
            for (int j = 0; j < V; j++) v[j] += f[j];
        }
        if (cos) turn(v, cos + i / 2, sin + i / 2, 1.0f);
        store(y + i, v);
    }
}

// g (more + w) from number i of the row on, g turned back where there are angles.
__device__ inline void scaled(float h[V], const T *g, const W *w, const f32 *cos, const f32 *sin, int i, float more) {
    load(h, g + i);
    if (cos) turn(h, cos + i / 2, sin + i / 2, -1.0f);
    if (w) {
        float f[V];
        load(f, w + i);
#pragma unroll
        for (int j = 0; j < V; j++) h[j] *= more + f[j];
    }
}

// Gradient of x: (h - mean(h) - n mean(h n)) size, with h as above and n = (x - mean) size.
extern "C" __global__ __launch_bounds__(1024) void normalise_back(const T *g, const T *x, const W *w, T *out, const f32 *cos, const f32 *sin, i64 rows, int width, int tokens,
                                          int heads, i64 block, int centre, float more, float eps) {
    i64 row = (i64)blockIdx.x * blockDim.y + threadIdx.y;
    if (row >= rows) return;
    g += row * width, x += row * width, out += row * width;
    if (w) w += row / block * width;
    if (cos) cos += row / heads % tokens * (width / 2), sin += row / heads % tokens * (width / 2);
    Moments m = moments_of(x, width, centre, eps);
    float level = 0.0f, along = 0.0f, h[V], v[V];
    for (int i = threadIdx.x * V; i < width; i += blockDim.x * V) {
        load(v, x + i), scaled(h, g, w, cos, sin, i, more);
#pragma unroll
        for (int j = 0; j < V; j++) level += h[j], along += h[j] * (v[j] - m.mean);
    }
    level = row_sum(level) / width, along = row_sum(along) * m.size / width;
    if (!centre) level = 0.0f;
    for (int i = threadIdx.x * V; i < width; i += blockDim.x * V) {
        load(v, x + i), scaled(h, g, w, cos, sin, i, more);
#pragma unroll
        for (int j = 0; j < V; j++) v[j] = (h[j] - level - (v[j] - m.mean) * m.size * along) * m.size;
        store(out + i, v);
    }
}

// Mean and 1 / deviation of every row, `[rows, 2]`.
extern "C" __global__ __launch_bounds__(1024) void moments(const T *x, f32 *out, i64 rows, int width, int centre, float eps) {
    i64 row = (i64)blockIdx.x * blockDim.y + threadIdx.y;
    if (row >= rows) return;
    Moments m = moments_of(x + row * width, width, centre, eps);
    if (threadIdx.x == 0) out[2 * row] = m.mean, out[2 * row + 1] = m.size;
}

// Sums over rows: `out [blocks, chunks, width]` of g, or of g x, or of g (x - mean) size where there are moments; 256 rows a chunk.
// blockDim = (32, 8); grid = (columns, chunks, blocks).
extern "C" __global__ __launch_bounds__(256) void columns(const T *g, const T *x, const f32 *moments, f32 *out, i64 rows, int width) {
    __shared__ float parts[8][33];
    int column = blockIdx.x * 32 + threadIdx.x;
    i64 first = (i64)blockIdx.y * 256, last = first + 256 < rows ? first + 256 : rows, base = (i64)blockIdx.z * rows;
    float s = 0.0f;
    if (column < width) {
        for (i64 row = first + threadIdx.y; row < last; row += 8) {
            i64 at = (base + row) * width + column;
            float f = x ? wide(x[at]) : 1.0f;
            if (moments) f = (f - moments[2 * (base + row)]) * moments[2 * (base + row) + 1];
            s += wide(g[at]) * f;
        }
    }
    parts[threadIdx.y][threadIdx.x] = s;
    __syncthreads();
    if (threadIdx.y == 0 && column < width) {
        for (int i = 1; i < 8; i++) s += parts[i][threadIdx.x];
        out[((i64)blockIdx.z * gridDim.y + blockIdx.y) * width + column] = s;
    }
}

// y = softmax(x), rows.
extern "C" __global__ __launch_bounds__(1024) void softmax(const T *x, T *y, i64 rows, int width) {
    i64 row = (i64)blockIdx.x * blockDim.y + threadIdx.y;
    if (row >= rows) return;
    x += row * width, y += row * width;
    float top = -INF, s = 0.0f, v[V];
    for (int i = threadIdx.x * V; i < width; i += blockDim.x * V) {
        load(v, x + i);
#pragma unroll
        for (int j = 0; j < V; j++) top = fmaxf(top, v[j]);
    }
    top = row_max(top);
    for (int i = threadIdx.x * V; i < width; i += blockDim.x * V) {
        load(v, x + i);
#pragma unroll
        for (int j = 0; j < V; j++) s += expf(v[j] - top);
    }
    s = 1.0f / row_sum(s);
    for (int i = threadIdx.x * V; i < width; i += blockDim.x * V) {
        load(v, x + i);
#pragma unroll
        for (int j = 0; j < V; j++) v[j] = expf(v[j] - top) * s;
        store(y + i, v);
    }
}

// out = y (g - sum(g y)), rows.
extern "C" __global__ __launch_bounds__(1024) void softmax_back(const T *g, const T *y, T *out, i64 rows, int width) {
    i64 row = (i64)blockIdx.x * blockDim.y + threadIdx.y;
    if (row >= rows) return;
    g += row * width, y += row * width, out += row * width;
    float s = 0.0f, v[V], h[V];
    for (int i = threadIdx.x * V; i < width; i += blockDim.x * V) {
        load(v, y + i), load(h, g + i);
#pragma unroll
        for (int j = 0; j < V; j++) s += v[j] * h[j];
    }
    s = row_sum(s);
    for (int i = threadIdx.x * V; i < width; i += blockDim.x * V) {
        load(v, y + i), load(h, g + i);
#pragma unroll
        for (int j = 0; j < V; j++) v[j] *= h[j] - s;
        store(out + i, v);
    }
}

// out[row] = sum of a b along the row, f32; row `r` of `[batch, tokens, heads]` goes to `[batch, heads, tokens]`.
extern "C" __global__ __launch_bounds__(1024) void inner(const T *a, const T *b, f32 *out, i64 rows, int width, int tokens, int heads) {
    i64 row = (i64)blockIdx.x * blockDim.y + threadIdx.y;
    if (row >= rows) return;
    a += row * width, b += row * width;
    float s = 0.0f, v[V], h[V];
    for (int i = threadIdx.x * V; i < width; i += blockDim.x * V) {
        load(v, a + i), load(h, b + i);
#pragma unroll
        for (int j = 0; j < V; j++) s += v[j] * h[j];
    }
    s = row_sum(s);
    i64 head = row % heads, token = row / heads % tokens, image = row / heads / tokens;
    if (threadIdx.x == 0) out[(image * heads + head) * tokens + token] = s;
}
