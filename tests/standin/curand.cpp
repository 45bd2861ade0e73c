// Random numbers on the card: other ones than cuRAND's, of the same distributions. Odd counts of normals are refused, as it refuses them.
#include "driver.h"
#include <random>
#define API extern "C" __attribute__((visibility("default"))) int
enum { OK = 0, LENGTH_NOT_MULTIPLE = 105 };
struct Generator { std::mt19937_64 state; void *stream = nullptr; };

API curandCreateGenerator(Generator **g, int) { *g = new Generator; return OK; }
API curandDestroyGenerator(Generator *) { return OK; } // work that waits may still use it
API curandSetStream(Generator *g, void *s) { g->stream = s; return OK; }
API curandSetPseudoRandomGeneratorSeed(Generator *g, unsigned long long seed) { g->state.seed(seed); return OK; }
API curandSetGeneratorOffset(Generator *, unsigned long long) { return OK; }

template <class N, class Distribution> static int fill(Generator *g, unsigned long long to, size_t n, Distribution draw) {
    standin_push(g->stream, [=]() mutable {
        N *numbers = (N *)standin_bytes(to, n * sizeof(N));
        for (size_t i = 0; i < n; i++) numbers[i] = draw(g->state);
    });
    return OK;
}
typedef unsigned long long At;
API curandGenerateUniform(Generator *g, At to, size_t n) { return fill<float>(g, to, n, std::uniform_real_distribution<float>()); }
API curandGenerateUniformDouble(Generator *g, At to, size_t n) { return fill<double>(g, to, n, std::uniform_real_distribution<double>()); }
API curandGenerateNormal(Generator *g, At to, size_t n, float mean, float deviation) {
    return n % 2 ? LENGTH_NOT_MULTIPLE : fill<float>(g, to, n, std::normal_distribution<float>(mean, deviation));
}
API curandGenerateNormalDouble(Generator *g, At to, size_t n, double mean, double deviation) {
    return n % 2 ? LENGTH_NOT_MULTIPLE : fill<double>(g, to, n, std::normal_distribution<double>(mean, deviation));
}
