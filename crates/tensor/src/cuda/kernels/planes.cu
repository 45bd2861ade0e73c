// Images: patches for convolutions, doubling, pooling. A block takes rows, a thread some of their numbers: where a row belongs is found once for
// all of them, as divisions cost more than what is done with a number.

#define ROWS(row, i, width)                                                                                                                    \
    for (int row = blockIdx.y; row < rows; row += gridDim.y)                                                                                   \
        for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < (width); i += gridDim.x * blockDim.x)

// Patches of `lines` output lines from `first` on, of images [.., inner, h, w]: columns [images, inner kh kw, lines ow].
extern "C" __global__ void unroll(const T *x, T *columns, int rows, int inner, int h, int w, int kh, int kw, int stride, int padding, int first, int lines, int ow) {
    ROWS(row, i, lines * ow) {
        int taps = kh * kw, plane = row / taps, tap = row % taps, line = i / ow; // plane: image inner + channel
        int y = (first + line) * stride + tap / kw - padding, z = (i - line * ow) * stride + tap % kw - padding;
        bool inside = y >= 0 && y < h && z >= 0 && z < w;
        T value;
        if (inside) value = x[((i64)plane * h + y) * w + z];
        else put(value, 0.0f);
        columns[(i64)row * (lines * ow) + i] = value;
    }
}

// The transpose of `unroll` over whole images: every input number adds up the patch numbers that it was copied to.
extern "C" __global__ void roll(const T *columns, T *x, int rows, int inner, int h, int w, int kh, int kw, int stride, int padding, int oh, int ow) {
    ROWS(row, z, w) {
        int plane = row / h, y = row % h;
        float s = 0.0f;
        for (int a = 0; a < kh; a++) {
            int line = y + padding - a;
            if (line < 0 || line % stride || line / stride >= oh) continue;
            for (int b = 0; b < kw; b++) {
                int column = z + padding - b;
                if (column < 0 || column % stride || column / stride >= ow) continue;
                i64 patch = ((i64)plane * kh + a) * kw + b;
                s += wide(columns[(patch * oh + line / stride) * ow + column / stride]);
            }
        }
        put(x[(i64)row * w + z], s);
    }
}

// x [rows, width] <- v [channels] at row % channels; the beginning of a convolution with a bias.
extern "C" __global__ void lines(const T *v, T *x, int rows, int channels, int width) {
    ROWS(row, i, width) x[(i64)row * width + i] = v[row % channels];
}

// out [rows, 2 w] repeats x [rows / 2, w].
extern "C" __global__ void twice(const T *x, T *out, int rows, int w) {
    ROWS(row, i, 2 * w) out[(i64)row * (2 * w) + i] = x[(i64)(row / 2) * w + i / 2];
}

extern "C" __global__ void twice_back(const T *g, T *out, int rows, int w) {
    ROWS(row, i, w) {
        const T *p = g + (i64)row * (4 * w) + 2 * i;
        put(out[(i64)row * w + i], wide(p[0]) + wide(p[1]) + wide(p[2 * w]) + wide(p[2 * w + 1]));
    }
}

// Largest number of each window of `size` every `stride`, and where it stands in its plane; the first of equal ones.
extern "C" __global__ void largest(const T *x, T *y, u32 *places, int rows, int h, int w, int size, int stride, int oh, int ow) {
    ROWS(row, i, ow) {
        int top = row % oh * stride, left = i * stride, best = top * w + left;
        const T *plane = x + (i64)(row / oh) * h * w;
        for (int a = top; a < top + size; a++)
            for (int b = left; b < left + size; b++) {
                float v = wide(plane[a * w + b]);
                if (v > wide(plane[best]) || v != v) best = a * w + b;
            }
        y[(i64)row * ow + i] = plane[best];
        places[(i64)row * ow + i] = best;
    }
}

// Every input number adds up the gradients of the windows whose largest it was.
extern "C" __global__ void largest_back(const T *g, const u32 *places, T *out, int rows, int h, int w, int size, int stride, int oh, int ow) {
    ROWS(row, i, w) {
        int y = row % h;
        i64 plane = (i64)(row / h) * oh * ow;
        float s = 0.0f;
        for (int a = y < size ? 0 : (y - size) / stride + 1; a <= y / stride && a < oh; a++)
            for (int b = i < size ? 0 : (i - size) / stride + 1; b <= i / stride && b < ow; b++)
                if (places[plane + a * ow + b] == (u32)(y * w + i)) s += wide(g[plane + a * ow + b]);
        put(out[(i64)row * w + i], s);
    }
}

// Mean of windows of `size` beside each other, with `ph`, `pw` zeros in front, which count.
extern "C" __global__ void mean(const T *x, T *y, int rows, int h, int w, int size, int ph, int pw, int oh, int ow) {
    ROWS(row, i, ow) {
        int top = row % oh * size - ph, left = i * size - pw;
        const T *plane = x + (i64)(row / oh) * h * w;
        float s = 0.0f;
        for (int a = top < 0 ? 0 : top; a < top + size && a < h; a++)
            for (int b = left < 0 ? 0 : left; b < left + size && b < w; b++) s += wide(plane[a * w + b]);
        put(y[(i64)row * ow + i], s / (size * size));
    }
}

extern "C" __global__ void mean_back(const T *g, T *out, int rows, int h, int w, int size, int ph, int pw, int oh, int ow) {
    ROWS(row, i, w) {
        int line = (row % h + ph) / size, column = (i + pw) / size;
        bool inside = line < oh && column < ow;
        put(out[(i64)row * w + i], inside ? wide(g[((i64)(row / h) * oh + line) * ow + column]) / (size * size) : 0.0f);
    }
}
