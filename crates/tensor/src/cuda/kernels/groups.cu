// Group normalisation of images `[batch, channels, pixels]`, with SiLU behind it if `gated`. A block takes a row: one group of one image,
// `share` channels of `pixels` numbers, a multiple of V.

struct Moments { float mean, size; };

// One pass; numbers are taken relative to the first, so that a large mean costs no digits.
__device__ inline Moments moments_of(const T *x, i64 width, float eps) {
    float shift = wide(x[0]), s = 0.0f, q = 0.0f, v[V];
    for (i64 i = threadIdx.x * V; i < width; i += blockDim.x * V) {
        load(v, x + i);
#pragma unroll
        for (int j = 0; j < V; j++) {
            float d = v[j] - shift;
            s += d, q += d * d;
        }
    }
    float mean = row_sum(s) / width, square = row_sum(q) / width;
    return Moments{mean + shift, 1.0f / sqrtf(fmaxf(square - mean * mean, 0.0f) + eps)};
}

extern "C" __global__ __launch_bounds__(1024) void group(const T *x, const W *w, const W *b, T *y, int groups, int share, i64 pixels, int gated, float eps) {
    i64 width = share * pixels;
    x += blockIdx.x * width, y += blockIdx.x * width;
    Moments m = moments_of(x, width, eps);
    int first = (int)(blockIdx.x % groups) * share;
    for (int c = 0; c < share; c++) {
        float factor = wide(w[first + c]) * m.size, offset = wide(b[first + c]) - m.mean * factor, v[V];
        for (i64 i = threadIdx.x * V; i < pixels; i += blockDim.x * V) {
            load(v, x + c * pixels + i);
#pragma unroll
            for (int j = 0; j < V; j++) {
                float o = v[j] * factor + offset;
                v[j] = gated ? o * logistic(o) : o;
            }
            store(y + c * pixels + i, v);
        }
    }
}

// Gradient of x, and where `sums [2, batch * channels]` is given what weight and bias get of each image's channel.
extern "C" __global__ __launch_bounds__(1024) void group_back(const T *g, const T *x, const W *w, const W *b, T *out, f32 *sums, int groups, int share, i64 pixels, int gated, float eps) {
    i64 width = share * pixels;
    g += blockIdx.x * width, x += blockIdx.x * width, out += blockIdx.x * width;
    Moments m = moments_of(x, width, eps);
    int first = (int)(blockIdx.x % groups) * share;
    float level = 0.0f, along = 0.0f, v[V], h[V];
    for (int pass = 0; pass < 2; pass++) {
        for (int c = 0; c < share; c++) {
            float weight = wide(w[first + c]), factor = weight * m.size, offset = wide(b[first + c]) - m.mean * factor;
            float plain = 0.0f, with_x = 0.0f;
            for (i64 i = threadIdx.x * V; i < pixels; i += blockDim.x * V) {
                load(v, x + c * pixels + i), load(h, g + c * pixels + i);
#pragma unroll
                for (int j = 0; j < V; j++) {
                    float o = v[j] * factor + offset, s = logistic(o);
                    float hj = gated ? h[j] * s * (1.0f + o * (1.0f - s)) : h[j], d = v[j] - m.mean;
                    if (pass == 0) plain += hj, with_x += hj * d;
                    else v[j] = (hj * weight - level - d * m.size * along) * m.size;
                }
                if (pass == 1) store(out + c * pixels + i, v);
            }
            if (pass == 0) {
                level += plain * weight, along += with_x * weight;
                if (sums) {
                    plain = row_sum(plain), with_x = row_sum(with_x) * m.size;
                    i64 line = (i64)blockIdx.x * share + c;
                    if (threadIdx.x == 0) sums[line] = with_x, sums[(i64)gridDim.x * share + line] = plain;
                }
            }
        }
        if (pass == 0) level = row_sum(level) / width, along = row_sum(along) * m.size / width;
    }
}
