// A host's idea of CUDA, so that the kernels can be tested without a card: blocks run one after the other, the threads of a block as fibers that
// take turns at barriers. Slow, for small shapes. `invoke` calls a kernel as cuLaunchKernel does.
#define HOST 1
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <ucontext.h>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __shared__ static
#define __align__(n) __attribute__((aligned(n)))
#define DYNAMIC(type, name) type *name = (type *)fibers::dynamic

struct uint4 { unsigned x, y, z, w; };
static inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return uint4{x, y, z, w}; }
struct Index { unsigned x, y, z; };
static Index gridDim, blockDim, blockIdx, threadIdx;

static inline float __uint_as_float(unsigned u) { float x; memcpy(&x, &u, 4); return x; }
static inline unsigned __float_as_uint(float x) { unsigned u; memcpy(&u, &x, 4); return u; }
static inline float host_from_f16(unsigned short bits) { _Float16 x; memcpy(&x, &bits, 2); return (float)x; }
static inline unsigned short host_to_f16(float v) { _Float16 x = (_Float16)v; unsigned short bits; memcpy(&bits, &x, 2); return bits; }

namespace fibers {
struct Fiber { ucontext_t context; char *stack; bool done; };
struct Barrier { int waiting = 0, generation = 0; };
static std::vector<Fiber> all;
static ucontext_t scheduler;
static int current, alive;
static Barrier block, warps[32];
static int alive_in[32];
static unsigned exchanged[32][32][8];
static void *dynamic;
static void (*entry)(void *);
static void *argument;

static void turn() { swapcontext(&all[current].context, &scheduler); }
static void wait(Barrier &b, const int &expected) {
    int generation = b.generation;
    if (++b.waiting >= expected) { b.waiting = 0; b.generation++; return; }
    while (b.generation == generation) {
        turn();
        if (b.generation == generation && b.waiting >= expected) { b.waiting = 0; b.generation++; }
    }
}
static void begin() {
    entry(argument);
    all[current].done = true;
    alive--, alive_in[current / 32]--;
    turn();
}
// All threads of one block, `threadIdx` set at each turn.
static void run(unsigned threads) {
    all.resize(threads);
    alive = threads;
    memset(alive_in, 0, sizeof alive_in);
    block = Barrier();
    for (auto &w : warps) w = Barrier();
    for (unsigned i = 0; i < threads; i++) {
        alive_in[i / 32]++;
        Fiber &f = all[i];
        f.done = false;
        f.stack = (char *)malloc(1 << 17);
        getcontext(&f.context);
        f.context.uc_stack.ss_sp = f.stack, f.context.uc_stack.ss_size = 1 << 17, f.context.uc_link = 0;
        makecontext(&f.context, begin, 0);
    }
    while (alive > 0)
        for (unsigned i = 0; i < threads; i++) {
            if (all[i].done) continue;
            current = i;
            threadIdx = Index{i % blockDim.x, i / blockDim.x, 0};
            swapcontext(&scheduler, &all[i].context);
        }
    for (auto &f : all) free(f.stack);
}
// What every lane of the warp gives, to be read until the next exchange but one.
static unsigned (*exchange(const unsigned *words, int count))[8] {
    int warp = current / 32, lane = current % 32;
    wait(warps[warp], alive_in[warp]);
    memcpy(exchanged[warp][lane], words, 4 * count);
    wait(warps[warp], alive_in[warp]);
    return exchanged[warp];
}
}

static inline void __syncthreads() { fibers::wait(fibers::block, fibers::alive); }
static inline float __shfl_xor_sync(unsigned, float v, int o) {
    unsigned u = __float_as_uint(v);
    int other = (fibers::current % 32) ^ o;
    return __uint_as_float(fibers::exchange(&u, 1)[other][0]);
}

template <class... A, size_t... I> static void spread(void (*f)(A...), void **args, std::index_sequence<I...>) {
    f(*(std::decay_t<A> *)args[I]...);
}
template <class... A> static int call(void (*f)(A...), void **args, const unsigned *grid, const unsigned *threads, unsigned shared) {
    static void (*kernel)(A...);
    static void **given;
    kernel = f, given = args;
    gridDim = Index{grid[0], grid[1], grid[2]}, blockDim = Index{threads[0], threads[1], 1};
    fibers::dynamic = aligned_alloc(64, (shared + 127) / 64 * 64);
    fibers::entry = [](void *) { spread(kernel, given, std::index_sequence_for<A...>()); };
    for (unsigned z = 0; z < grid[2]; z++)
        for (unsigned y = 0; y < grid[1]; y++)
            for (unsigned x = 0; x < grid[0]; x++) {
                blockIdx = Index{x, y, z};
                memset(fibers::dynamic, 0xff, shared);
                fibers::run(threads[0] * threads[1]);
            }
    free(fibers::dynamic);
    return sizeof...(A);
}
