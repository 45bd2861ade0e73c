// Images: patches for convolutions, doubling, pooling. One thread a number.

#define EACH(i) for (i64 i = (i64)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (i64)gridDim.x * blockDim.x)

// Patches of `lines` output lines from `first` on, of images [.., inner, h, w]: columns [images, inner kh kw, lines ow].
extern "C" __global__ void unroll(const T *x, T *columns, i64 n, int inner, int h, int w, int kh, int kw, int stride, int padding, int first, int lines, int ow) {
    EACH(i) {
        int pixels = lines * ow, pixel = (int)(i % pixels), patch = inner * kh * kw, row = (int)(i / pixels % patch);
        i64 image = i / pixels / patch;
        int c = row / (kh * kw), y = (first + pixel / ow) * stride + row / kw % kh - padding, z = pixel % ow * stride + row % kw - padding;
        bool inside = y >= 0 && y < h && z >= 0 && z < w;
        T value;
        if (inside) value = x[((image * inner + c) * h + y) * w + z];
        else put(value, 0.0f);
        columns[i] = value;
    }
}

// The transpose of `unroll` over whole images: every input number adds up the patch numbers that it was copied to.
extern "C" __global__ void roll(const T *columns, T *x, i64 n, int inner, int h, int w, int kh, int kw, int stride, int padding, int oh, int ow) {
    EACH(i) {
        int z = (int)(i % w), y = (int)(i / w % h), c = (int)(i / w / h % inner);
        i64 image = i / w / h / inner;
        float s = 0.0f;
        for (int a = 0; a < kh; a++) {
            int line = y + padding - a;
            if (line < 0 || line % stride || line / stride >= oh) continue;
            for (int b = 0; b < kw; b++) {
                int column = z + padding - b;
                if (column < 0 || column % stride || column / stride >= ow) continue;
                i64 row = image * inner * kh * kw + (c * kh + a) * kw + b;
                s += wide(columns[(row * oh + line / stride) * ow + column / stride]);
            }
        }
        put(x[i], s);
    }
}

// x [rows, width] <- v [channels] at row % channels; the beginning of a convolution with a bias.
extern "C" __global__ void lines(const T *v, T *x, i64 n, int channels, i64 width) {
    EACH(i) x[i] = v[i / width % channels];
}

// out [.., 2 h, 2 w] repeats x [.., h, w].
extern "C" __global__ void twice(const T *x, T *out, i64 n, int w) {
    EACH(i) {
        i64 row = i / (2 * w), column = i % (2 * w);
        out[i] = x[row / 2 * w + column / 2];
    }
}

extern "C" __global__ void twice_back(const T *g, T *out, i64 n, int w) {
    EACH(i) {
        const T *p = g + i / w * 4 * w + i % w * 2;
        put(out[i], wide(p[0]) + wide(p[1]) + wide(p[2 * w]) + wide(p[2 * w + 1]));
    }
}

// Largest number of each window of `size` every `stride`, and where it stands in its plane; the first of equal ones.
extern "C" __global__ void largest(const T *x, T *y, u32 *places, i64 n, int h, int w, int size, int stride, int oh, int ow) {
    EACH(i) {
        int row = (int)(i / ow % oh) * stride, column = (int)(i % ow) * stride;
        const T *plane = x + i / ow / oh * h * w;
        int best = row * w + column;
        for (int a = row; a < row + size; a++)
            for (int b = column; b < column + size; b++) {
                float v = wide(plane[a * w + b]);
                if (v > wide(plane[best]) || v != v) best = a * w + b;
            }
        y[i] = plane[best];
        places[i] = best;
    }
}

// Every input number adds up the gradients of the windows whose largest it was.
extern "C" __global__ void largest_back(const T *g, const u32 *places, T *out, i64 n, int h, int w, int size, int stride, int oh, int ow) {
    EACH(i) {
        int column = (int)(i % w), row = (int)(i / w % h);
        i64 plane = i / w / h * oh * ow;
        float s = 0.0f;
        for (int a = row < size ? 0 : (row - size) / stride + 1; a <= row / stride && a < oh; a++)
            for (int b = column < size ? 0 : (column - size) / stride + 1; b <= column / stride && b < ow; b++)
                if (places[plane + a * ow + b] == (u32)(row * w + column)) s += wide(g[plane + a * ow + b]);
        put(out[i], s);
    }
}

// Mean of windows of `size` beside each other, with `ph`, `pw` zeros in front, which count.
extern "C" __global__ void mean(const T *x, T *y, i64 n, int h, int w, int size, int ph, int pw, int oh, int ow) {
    EACH(i) {
        int row = (int)(i / ow % oh) * size - ph, column = (int)(i % ow) * size - pw;
        const T *plane = x + i / ow / oh * h * w;
        float s = 0.0f;
        for (int a = row < 0 ? 0 : row; a < row + size && a < h; a++)
            for (int b = column < 0 ? 0 : column; b < column + size && b < w; b++) s += wide(plane[a * w + b]);
        put(y[i], s / (size * size));
    }
}

extern "C" __global__ void mean_back(const T *g, T *out, i64 n, int h, int w, int size, int ph, int pw, int oh, int ow) {
    EACH(i) {
        int column = ((int)(i % w) + pw) / size, row = ((int)(i / w % h) + ph) / size;
        bool inside = row < oh && column < ow;
        put(out[i], inside ? wide(g[(i / w / h * oh + row) * ow + column]) / (size * size) : 0.0f);
    }
}
