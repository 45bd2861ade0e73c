// Scaled dot-product attention of half-precision numbers on tensor cores, scores never stored. After FlashAttention-2 (arXiv:2307.08691); the
// backward adds nothing atomically, so that it gives the same numbers every time.
//
// q, o [batch, s, heads, d], k, v [batch, t, kv, d]; d is a multiple of 8 and at most HEAD, a define, a multiple of 16. Four warps a block,
// each with 16 rows of the block's 64. Fragments are those of mma.m16n8k16: a thread holds rows lane / 4 and + 8, columns 2 (lane % 4) and + 1.
// Tiles are copied while others are computed with: what a thread asked for is there for it after `landed`, for all after a barrier behind that.

#define ROW (HEAD + 8) // of a tile in shared memory; the rest keeps banks apart
#define STEPS (HEAD / 16)
#define LOG2E 1.4426950408889634f

#ifndef HOST
#ifdef IS_BF16
#define MMA "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32"
#else
#define MMA "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32"
#endif
// c += a b for one 16 x 8 tile.
__device__ inline void mma(float c[4], const u32 a[4], u32 b0, u32 b1) {
    asm volatile(MMA " {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
// Four 8 x 8 matrices whose rows the lanes point at, eight lanes a matrix.
__device__ inline void matrices(u32 r[4], const T *row) {
    u32 p = (u32)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(p) : "memory");
}
__device__ inline void transposed(u32 r[4], const T *row) {
    u32 p = (u32)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(p) : "memory");
}
// 16 bytes of global memory, or zeros.
__device__ inline void copy(T *to, const T *from, bool there) {
    u32 p = (u32)__cvta_generic_to_shared(to);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" : : "r"(p), "l"(from), "r"(there ? 16 : 0) : "memory");
}
__device__ inline void landed() { asm volatile("cp.async.wait_all;" : : : "memory"); }
#else
#include "mma.h"
#endif

__device__ inline u32 pack(float a, float b) {
    T x, y;
    put(x, a), put(y, b);
    return (u32)x.bits | (u32)y.bits << 16;
}

// Rows first .. first + count of a head into a tile; zeros where there are none.
__device__ inline void tile(T *to, const T *from, int first, int rows, i64 stride, int d, int count) {
    for (int i = threadIdx.x; i < count * (HEAD / 8); i += 128) {
        int row = i / (HEAD / 8), column = i % (HEAD / 8) * 8;
        bool there = first + row < rows && column < d;
        copy(to + row * ROW + column, there ? from + (i64)(first + row) * stride + column : from, there);
    }
}

// c[n] += the warp's 16 rows of `a` times rows 8 n .. of `b`, transposed: scores of a tile. NB: rows of b by 8, even.
template <int NB> __device__ inline void scores(float c[NB][4], const T *a, const T *b) {
    int lane = threadIdx.x & 31;
    const T *arow = a + (lane & 15) * ROW + (lane >> 4) * 8, *brow = b + ((lane & 7) + (lane >> 4) * 8) * ROW + (lane >> 3 & 1) * 8;
#pragma unroll
    for (int k = 0; k < STEPS; k++) {
        u32 x[4], y[4];
        matrices(x, arow + k * 16);
#pragma unroll
        for (int n = 0; n < NB; n += 2) {
            matrices(y, brow + n * 8 * ROW + k * 16);
            mma(c[n], x, y[0], y[1]);
            mma(c[n + 1], x, y[2], y[3]);
        }
    }
}

// sum [16, HEAD] += p [16, 8 NB] times the tile b [8 NB, HEAD].
template <int NB> __device__ inline void add_product(float sum[HEAD / 8][4], const float p[NB][4], const T *b) {
    int lane = threadIdx.x & 31;
    const T *brow = b + (lane & 15) * ROW + (lane >> 4) * 8;
#pragma unroll
    for (int k = 0; k < NB / 2; k++) {
        u32 x[4] = {pack(p[2 * k][0], p[2 * k][1]), pack(p[2 * k][2], p[2 * k][3]), pack(p[2 * k + 1][0], p[2 * k + 1][1]),
                    pack(p[2 * k + 1][2], p[2 * k + 1][3])};
        u32 y[4];
#pragma unroll
        for (int n = 0; n < HEAD / 8; n += 2) {
            transposed(y, brow + k * 16 * ROW + n * 8);
            mma(sum[n], x, y[0], y[1]);
            mma(sum[n + 1], x, y[2], y[3]);
        }
    }
}

// The warp's rows of `sum` times a factor each, to rows first + .. of a head.
__device__ inline void give(T *to, const float sum[HEAD / 8][4], float upper, float lower, int first, int rows, i64 stride, int d) {
    int lane = threadIdx.x & 31, row = first + (lane >> 2), column = (lane & 3) * 2;
#pragma unroll
    for (int n = 0; n < HEAD / 8; n++) {
        if (n * 8 + column >= d) continue;
        if (row < rows) *(u32 *)(to + row * stride + n * 8 + column) = pack(sum[n][0] * upper, sum[n][1] * upper);
        if (row + 8 < rows) *(u32 *)(to + (row + 8) * stride + n * 8 + column) = pack(sum[n][2] * lower, sum[n][3] * lower);
    }
}

struct Head { i64 query, key, line; const f32 *mask; int b, h; };

// Where a query head begins in q, k and `[batch, heads, s]`, and its part of the mask.
__device__ inline Head head(int b, int h, int s, int t, int heads, int kv, int d, const f32 *mask, i64 per_batch, i64 per_head) {
    int key = h / (heads / kv);
    return Head{((i64)b * s * heads + h) * d, ((i64)b * t * kv + key) * d, ((i64)b * heads + h) * s,
                mask ? mask + b * per_batch + h * per_head : (const f32 *)0, b, h};
}

// o and lse, the log of the sum of exponentials of every score row. grid = (queries / 64, heads, batch).
extern "C" __global__ __launch_bounds__(128) void forward(const T *q, const T *k, const T *v, const f32 *mask, T *o, f32 *lse, int s, int t, int heads, int kv, int d,
                                   float scale, i64 per_batch, i64 per_head) {
    __shared__ __align__(16) T keys[64 * ROW];
    __shared__ __align__(16) T values[64 * ROW];
    Head z = head(blockIdx.z, blockIdx.y, s, t, heads, kv, d, mask, per_batch, per_head);
    int lane = threadIdx.x & 31, first = blockIdx.x * 64, row = first + (threadIdx.x >> 5) * 16 + (lane >> 2);
    i64 wide_row = (i64)heads * d, narrow_row = (i64)kv * d;
    u32 a[STEPS][4];
    tile(keys, q + z.query, first, s, wide_row, d, 64);
    landed();
    __syncthreads();
#pragma unroll
    for (int i = 0; i < STEPS; i++) matrices(a[i], keys + ((threadIdx.x >> 5) * 16 + (lane & 15)) * ROW + (lane >> 4) * 8 + i * 16);
    float sum[HEAD / 8][4] = {}, top[2] = {-INF, -INF}, total[2] = {0.0f, 0.0f};
    __syncthreads();
    tile(keys, k + z.key, 0, t, narrow_row, d, 64);
    for (int start = 0; start < t; start += 64) {
        landed();
        __syncthreads(); // the keys are there, and nobody reads the values before
        tile(values, v + z.key, start, t, narrow_row, d, 64);
        float c[8][4] = {};
        const T *brow = keys + ((lane & 7) + (lane >> 4) * 8) * ROW + (lane >> 3 & 1) * 8;
#pragma unroll
        for (int i = 0; i < STEPS; i++) {
            u32 y[4];
#pragma unroll
            for (int n = 0; n < 8; n += 2) {
                matrices(y, brow + n * 8 * ROW + i * 16);
                mma(c[n], a[i], y[0], y[1]);
                mma(c[n + 1], a[i], y[2], y[3]);
            }
        }
        landed();
        __syncthreads(); // the values are there, and nobody reads the keys
        if (start + 64 < t) tile(keys, k + z.key, start + 64, t, narrow_row, d, 64);
        float reached[2] = {top[0], top[1]};
#pragma unroll
        for (int n = 0; n < 8; n++)
#pragma unroll
            for (int j = 0; j < 4; j++) {
                int key = start + n * 8 + (lane & 3) * 2 + (j & 1), query = row + (j >> 1) * 8;
                float x = c[n][j] * scale;
                if (z.mask && query < s && key < t) x += z.mask[(i64)query * t + key];
                c[n][j] = key < t ? x * LOG2E : -INF;
                reached[j >> 1] = fmaxf(reached[j >> 1], c[n][j]);
            }
#pragma unroll
        for (int r = 0; r < 2; r++) {
            for (int w = 1; w < 4; w *= 2) reached[r] = fmaxf(reached[r], __shfl_xor_sync(0xffffffffu, reached[r], w));
            float base = reached[r] == -INF ? 0.0f : reached[r], shrink = exp2f(top[r] - base);
            top[r] = reached[r];
            total[r] *= shrink;
#pragma unroll
            for (int n = 0; n < 8; n++)
#pragma unroll
                for (int j = 2 * r; j < 2 * r + 2; j++) {
                    c[n][j] = exp2f(c[n][j] - base);
                    total[r] += c[n][j];
                }
#pragma unroll
            for (int n = 0; n < HEAD / 8; n++) sum[n][2 * r] *= shrink, sum[n][2 * r + 1] *= shrink;
        }
        add_product<8>(sum, c, values);
    }
#pragma unroll
    for (int r = 0; r < 2; r++) {
        for (int w = 1; w < 4; w *= 2) total[r] += __shfl_xor_sync(0xffffffffu, total[r], w);
        int query = row + r * 8;
        if ((lane & 3) == 0 && query < s) lse[z.line + query] = (top[r] + log2f(total[r])) / LOG2E;
        total[r] = total[r] > 0.0f ? 1.0f / total[r] : 0.0f;
    }
    give(o + z.query, sum, total[0], total[1], first + (threadIdx.x >> 5) * 16, s, wide_row, d);
}

// exp(x - lse), 0 in a row without any score.
__device__ inline float probability(float x, float lse) { return lse == -INF ? 0.0f : exp2f((x - lse) * LOG2E); }

// Shared memory of both backwards: two tiles of 64 rows that stay, and two of 32 rows twice, to compute with and for what comes next.
#define BACKWARD_TILES(a, b, c, e) \
    DYNAMIC(T, a); \
    T *b = a + 64 * ROW, *c = b + 64 * ROW, *e = c + 64 * ROW
#define NEXT(x, i) ((x) + ((i) & 1) * 32 * ROW)

// Gradients of k and v. grid = (keys / 64, kv, batch). Rows of a warp are keys: S^T = K Q^T, dP^T = V dO^T, dS = P (dP - delta).
extern "C" __global__ __launch_bounds__(128) void backward_keys(const T *q, const T *k, const T *v, const f32 *mask, const T *g, const f32 *lse, const f32 *delta, T *gk,
                                         T *gv, int s, int t, int heads, int kv, int d, float scale, i64 per_batch, i64 per_head) {
    BACKWARD_TILES(keys, values, queries, grads);
    int lane = threadIdx.x & 31, first = blockIdx.x * 64, own = (threadIdx.x >> 5) * 16, row = first + own + (lane >> 2);
    i64 wide_row = (i64)heads * d, narrow_row = (i64)kv * d, key_head = ((i64)blockIdx.z * t * kv + blockIdx.y) * d;
    tile(keys, k + key_head, first, t, narrow_row, d, 64);
    tile(values, v + key_head, first, t, narrow_row, d, 64);
    float sum_k[HEAD / 8][4] = {}, sum_v[HEAD / 8][4] = {};
    int tiles = (s + 31) / 32, steps = tiles * (heads / kv); // the query heads of this key head, one behind the other
    for (int i = -1; i < steps; i++) {
        landed();
        __syncthreads(); // tile i is there, and nobody reads the one before
        if (i + 1 < steps) {
            Head z = head(blockIdx.z, blockIdx.y * (heads / kv) + (i + 1) / tiles, s, t, heads, kv, d, mask, per_batch, per_head);
            int start = (i + 1) % tiles * 32;
            tile(NEXT(queries, i + 1), q + z.query, start, s, wide_row, d, 32);
            tile(NEXT(grads, i + 1), g + z.query, start, s, wide_row, d, 32);
        }
        if (i < 0) continue;
        Head z = head(blockIdx.z, blockIdx.y * (heads / kv) + i / tiles, s, t, heads, kv, d, mask, per_batch, per_head);
        int start = i % tiles * 32;
        float p[4][4] = {}, ds[4][4] = {};
        scores<4>(p, keys + own * ROW, NEXT(queries, i));
        scores<4>(ds, values + own * ROW, NEXT(grads, i));
#pragma unroll
        for (int n = 0; n < 4; n++)
#pragma unroll
            for (int j = 0; j < 4; j++) {
                int query = start + n * 8 + (lane & 3) * 2 + (j & 1), key = row + (j >> 1) * 8;
                bool inside = query < s && key < t;
                float x = p[n][j] * scale;
                if (z.mask && inside) x += z.mask[(i64)query * t + key];
                p[n][j] = inside ? probability(x, lse[z.line + query]) : 0.0f;
                ds[n][j] = inside ? p[n][j] * (ds[n][j] - delta[z.line + query]) : 0.0f;
            }
        add_product<4>(sum_v, p, NEXT(grads, i));
        add_product<4>(sum_k, ds, NEXT(queries, i));
    }
    give(gk + key_head, sum_k, scale, scale, first + own, t, narrow_row, d);
    give(gv + key_head, sum_v, 1.0f, 1.0f, first + own, t, narrow_row, d);
}

// Gradient of q. grid = (queries / 64, heads, batch). Rows of a warp are queries.
extern "C" __global__ __launch_bounds__(128) void backward_queries(const T *q, const T *k, const T *v, const f32 *mask, const T *g, const f32 *lse, const f32 *delta,
                                            T *gq, int s, int t, int heads, int kv, int d, float scale, i64 per_batch, i64 per_head) {
    BACKWARD_TILES(queries, grads, keys, values);
    Head z = head(blockIdx.z, blockIdx.y, s, t, heads, kv, d, mask, per_batch, per_head);
    int lane = threadIdx.x & 31, first = blockIdx.x * 64, own = (threadIdx.x >> 5) * 16, row = first + own + (lane >> 2);
    i64 wide_row = (i64)heads * d, narrow_row = (i64)kv * d;
    tile(queries, q + z.query, first, s, wide_row, d, 64);
    tile(grads, g + z.query, first, s, wide_row, d, 64);
    float sum[HEAD / 8][4] = {}, level[2], change[2];
#pragma unroll
    for (int r = 0; r < 2; r++) {
        bool inside = row + r * 8 < s;
        level[r] = inside ? lse[z.line + row + r * 8] : -INF;
        change[r] = inside ? delta[z.line + row + r * 8] : 0.0f;
    }
    for (int i = -1; i * 32 < t; i++) {
        landed();
        __syncthreads(); // tile i is there, and nobody reads the one before
        if ((i + 1) * 32 < t) {
            tile(NEXT(keys, i + 1), k + z.key, (i + 1) * 32, t, narrow_row, d, 32);
            tile(NEXT(values, i + 1), v + z.key, (i + 1) * 32, t, narrow_row, d, 32);
        }
        if (i < 0) continue;
        int start = i * 32;
        float p[4][4] = {}, ds[4][4] = {};
        scores<4>(p, queries + own * ROW, NEXT(keys, i));
        scores<4>(ds, grads + own * ROW, NEXT(values, i));
#pragma unroll
        for (int n = 0; n < 4; n++)
#pragma unroll
            for (int j = 0; j < 4; j++) {
                int key = start + n * 8 + (lane & 3) * 2 + (j & 1), query = row + (j >> 1) * 8;
                bool inside = query < s && key < t;
                float x = p[n][j] * scale;
                if (z.mask && inside) x += z.mask[(i64)query * t + key];
                ds[n][j] = inside ? probability(x, level[j >> 1]) * (ds[n][j] - change[j >> 1]) : 0.0f;
            }
        add_product<4>(sum, ds, NEXT(keys, i));
    }
    give(gq + z.query, sum, scale, scale, first + own, s, wide_row, d);
}
