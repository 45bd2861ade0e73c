// What CUDA C needs on a processor: its types and intrinsics, and the threads of a block as fibers that take turns at barriers. Blocks run
// one after the other. Comes before every kernel file.
#pragma once
#define HOST 1
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>
#include <vector>

#define __CUDA_ARCH__ 800
#define __CUDACC_VER_MAJOR__ 13
#define __CUDACC_VER_MINOR__ 0
#define CUDA_VERSION 13000
#define __global__ STANDIN_GLOBAL
#define __shared__ STANDIN_SHARED
#define __device__
#define __host__
#define __constant__ static const
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define DYNAMIC(type, name) type *name = (type *)fibers::dynamic
#define assert(x) ((x) ? (void)0 : abort())

struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
static inline float2 make_float2(float x, float y) { return {x, y}; }
static inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
struct Index { unsigned x, y, z; };
static Index gridDim, blockDim, blockIdx, threadIdx;

using std::isnan;
using std::signbit;
template <class A, class B> static inline std::common_type_t<A, B> min(A a, B b) { return b < a ? b : a; }
template <class A, class B> static inline std::common_type_t<A, B> max(A a, B b) { return a < b ? b : a; }
static inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
static inline float normcdff(float x) { return 0.5f * erfcf(-x * 0.70710678f); }
static inline double normcdf(double x) { return 0.5 * erfc(-x * 0.70710678118654752); }

template <class To, class From> static inline To bits(From x) {
    static_assert(sizeof(To) == sizeof(From));
    To y;
    memcpy(&y, &x, sizeof x);
    return y;
}
static inline float __uint_as_float(unsigned u) { return bits<float>(u); }
static inline unsigned __float_as_uint(float x) { return bits<unsigned>(x); }
static inline float __int_as_float(int u) { return bits<float>(u); }
static inline int __float_as_int(float x) { return bits<int>(x); }
static inline double __longlong_as_double(long long u) { return bits<double>(u); }
static inline long long __double_as_longlong(double x) { return bits<long long>(x); }
static inline float host_from_f16(unsigned short u) { return (float)bits<_Float16>(u); }
static inline unsigned short host_to_f16(float x) { return bits<unsigned short>((_Float16)x); }
static inline float host_from_bf16(unsigned short u) { return bits<float>((unsigned)u << 16); }
static inline unsigned short host_to_bf16(float x) {
    unsigned u = bits<unsigned>(x);
    return (u & 0x7fffffff) > 0x7f800000 ? u >> 16 | 0x40 : (u + 0x7fff + (u >> 16 & 1)) >> 16;
}

// Only one thread runs at a time.
template <class T> static inline T atomicAdd(T *p, T v) { T old = *p; *p = old + v; return old; }
template <class T, class U> static inline T atomicMax(T *p, U w) { T old = *p, v = (T)w; if (v > old) *p = v; return old; }
template <class T, class U> static inline T atomicMin(T *p, U w) { T old = *p, v = (T)w; if (v < old) *p = v; return old; }
template <class T> static inline T atomicCAS(T *p, T expected, T v) { T old = *p; if (old == expected) *p = v; return old; }

// A call of a kernel; `sizes` gets those of its parameters where it is given. The driver has the same.
struct Job { void **args; const unsigned *grid, *block; unsigned shared; bool run; unsigned *sizes; };

namespace fibers {
const size_t STACK = 1 << 16;
struct Fiber { void *stack; Index index; unsigned exchanges; bool done; };
struct Barrier { int waiting = 0, generation = 0; };
static std::vector<Fiber> all;
static std::vector<char *> stacks;
static void *scheduler;
static int current, alive, alive_in[32]; // of the block, and of its warps
static Barrier block, warps[32];
static unsigned exchanged[2][32][32][8];
static void *dynamic; // shared memory asked for at the launch
static void (*entry)();

// Keeps what a function must keep on the stack that it leaves, and goes on with another.
extern "C" void standin_switch(void **from, void *to);
asm(".text\n.type standin_switch,@function\nstandin_switch:\n push %rbp\n push %rbx\n push %r12\n push %r13\n push %r14\n push %r15\n"
    " mov %rsp,(%rdi)\n mov %rsi,%rsp\n pop %r15\n pop %r14\n pop %r13\n pop %r12\n pop %rbx\n pop %rbp\n ret\n");

static void turn() { standin_switch(&all[current].stack, scheduler); }

static void wait(Barrier &b, const int &expected) {
    int generation = b.generation;
    for (b.waiting++; b.generation == generation; turn()) {
        if (b.waiting < expected) continue; // threads that ended are no longer expected
        b.waiting = 0, b.generation++;
        return;
    }
}

static void begin() {
    entry();
    all[current].done = true, alive--, alive_in[current / 32]--;
    for (;;) turn();
}

// All threads of one block.
static void run(unsigned threads) {
    static const bool backwards = getenv("STANDIN_BACKWARDS");
    all.resize(threads), alive = threads, block = Barrier();
    for (auto &warp : warps) warp = Barrier();
    memset(alive_in, 0, sizeof alive_in);
    while (stacks.size() < threads) stacks.push_back((char *)aligned_alloc(64, STACK));
    for (unsigned i = 0; i < threads; i++) {
        alive_in[i / 32]++;
        void **top = (void **)(stacks[i] + STACK);
        *--top = 0, *--top = (void *)begin;
        for (int kept = 0; kept < 6; kept++) *--top = 0;
        all[i] = Fiber{top, Index{i % blockDim.x, i / blockDim.x % blockDim.y, i / blockDim.x / blockDim.y}, 0, false};
    }
    while (alive > 0)
        for (unsigned n = 0; n < threads; n++) {
            unsigned i = backwards ? threads - 1 - n : n;
            if (all[i].done) continue;
            current = i, threadIdx = all[i].index;
            standin_switch(&scheduler, all[i].stack);
        }
}

// What every lane of the warp gives, to be read until the next exchange: the one after it waits for all lanes to be there.
static unsigned (*exchange(const unsigned *words, int count))[8] {
    int warp = current / 32, lane = current % 32;
    auto place = exchanged[all[current].exchanges++ % 2][warp];
    for (int i = 0; i < count; i++) place[lane][i] = words[i];
    wait(warps[warp], alive_in[warp]);
    return place;
}
}

static inline void __syncthreads() { fibers::wait(fibers::block, fibers::alive); }
template <class T> static inline T __shfl_xor_sync(unsigned, T v, int o, int = 32) {
    unsigned words[8] = {};
    memcpy(words, &v, sizeof v);
    memcpy(&v, fibers::exchange(words, (sizeof v + 3) / 4)[fibers::current % 32 ^ o], sizeof v);
    return v;
}

template <class... A, size_t... I> static void spread(void (*f)(A...), void **args, std::index_sequence<I...>) {
    f(*(std::decay_t<A> *)args[I]...);
}

// Gives the number of parameters. A PLAIN kernel comes to no barrier, and its threads are a loop.
template <bool PLAIN, class... A> static int call(void (*f)(A...), Job *job) {
    unsigned sizes[] = {(unsigned)sizeof(std::decay_t<A>)..., 0};
    if (job->sizes) memcpy(job->sizes, sizes, sizeof sizes);
    if (!job->run) return sizeof...(A);
    static void (*kernel)(A...);
    static void **args;
    kernel = f, args = job->args;
    fibers::entry = [] { spread(kernel, args, std::index_sequence_for<A...>()); };
    const unsigned *grid = job->grid, *block = job->block, threads = block[0] * block[1] * block[2];
    gridDim = Index{grid[0], grid[1], grid[2]}, blockDim = Index{block[0], block[1], block[2]};
    fibers::dynamic = aligned_alloc(64, (job->shared + 127) / 64 * 64);
    for (unsigned z = 0; z < grid[2]; z++)
        for (unsigned y = 0; y < grid[1]; y++)
            for (unsigned x = 0; x < grid[0]; x++) {
                blockIdx = Index{x, y, z};
                memset(fibers::dynamic, 0xff, job->shared);
                if (!PLAIN) { fibers::run(threads); continue; }
                for (unsigned i = 0; i < threads; i++) {
                    threadIdx = Index{i % block[0], i / block[0] % block[1], i / block[0] / block[1]};
                    fibers::entry();
                }
            }
    free(fibers::dynamic);
    return sizeof...(A);
}
enum { STANDIN_END_OF_HEADER };
