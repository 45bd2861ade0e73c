// A CUDA driver without a card. What is asked of a stream waits until something has to wait for it, so that what the program forgets to
// order comes out wrong every time; STANDIN_EAGER=1 is the other extreme. Memory begins as NaN, lies at addresses that the host cannot
// read, and is checked for what was written behind its end.
#include "driver.h"
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <dlfcn.h>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <sys/mman.h>
#include <unistd.h>
#include <vector>

enum {
    OK = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NO_DEVICE = 100, INVALID_DEVICE = 101, INVALID_IMAGE = 200, INVALID_CONTEXT = 201,
    NOT_FOUND = 500, NOT_READY = 600, NOT_SUPPORTED = 801
};
typedef unsigned long long Address;
struct Job { void **args; const unsigned *grid, *block; unsigned shared; bool run; unsigned *sizes; };
struct Module { int (*invoke)(const char *, Job *); };
struct Function { Module *module; std::string name; int count; unsigned sizes[64]; unsigned most_shared; };
struct Stream { int device; std::deque<std::function<void()>> waiting; uint64_t asked = 0, done = 0; };
struct Event { Stream *stream = nullptr; uint64_t ticket = 0; };
struct Block { size_t size; int device; };

static std::recursive_mutex lock;
static thread_local intptr_t context; // of device `context - 1`
static const char *running = nullptr;
static bool trace = getenv("STANDIN_TRACE");

static unsigned long long number(const char *name, unsigned long long otherwise) {
    const char *value = getenv(name);
    return value ? strtoull(value, nullptr, 10) : otherwise;
}
static int devices() { return number("STANDIN_DEVICES", 1); }

[[noreturn]] static void die(const char *what, const char *name) {
    char text[512];
    int n = snprintf(text, sizeof text, "stand-in: %s `%s`\n", what, name ? name : "nothing");
    if (write(2, text, n)) {}
    _exit(70);
}

// Whether STANDIN_FAIL asks for an error of this function or kernel now.
static int failing(const char *name) {
    static std::map<std::string, int> calls;
    const char *plan = getenv("STANDIN_FAIL");
    size_t length = strlen(name);
    if (!plan || strncmp(plan, name, length) || plan[length] != '=') return OK;
    const char *at = strchr(plan, '@');
    return ++calls[name] == (at ? atoi(at + 1) : 1) ? atoi(plan + length + 1) : OK;
}
#define BEGIN                                         \
    std::lock_guard<std::recursive_mutex> held(lock); \
    if (int error = failing(__func__)) return error
#define IN_CONTEXT BEGIN; if (!context) return INVALID_CONTEXT

// Streams.

static Stream *stream_of(void *s) {
    static Stream legacy[16];
    static thread_local Stream own[16];
    int device = context ? context - 1 : 0;
    if (s == nullptr || s == (void *)1) return &legacy[device];
    return s == (void *)2 ? &own[device] : (Stream *)s;
}
static void drain(Stream *s, uint64_t ticket = UINT64_MAX) {
    while (!s->waiting.empty() && s->done < ticket) {
        auto next = std::move(s->waiting.front());
        s->waiting.pop_front(), s->done++;
        next();
    }
}
static void push(Stream *s, std::function<void()> work) {
    static bool eager = getenv("STANDIN_EAGER");
    s->waiting.push_back(std::move(work)), s->asked++;
    if (eager || s->waiting.size() > 4096) drain(s);
}
void standin_push(void *stream, std::function<void()> work) {
    std::lock_guard<std::recursive_mutex> held(lock);
    push(stream_of(stream), std::move(work));
}
intptr_t standin_context() { return context; }

// Memory. Addresses are never given twice, so that one that is used after it was freed is known.

static const size_t ROOM = 1ull << 40, PAGE = 4096;
static char *seen, *real; // the addresses that the program gets, and where the bytes are
static size_t next_block;
static std::map<Address, Block> blocks;
static std::map<char *, size_t> pinned;
static uint64_t used[16], high[16];

static size_t limit() { return number("STANDIN_MEMORY", 16ull << 30); }
static bool on_card(Address p) { return p >= (Address)seen && p < (Address)seen + ROOM; }

static const std::pair<const Address, Block> *block_of(Address p, size_t n) {
    auto it = blocks.upper_bound(p);
    return it != blocks.begin() && (--it, p + n <= it->first + it->second.size) ? &*it : nullptr;
}
void *standin_bytes(Address p, size_t n) {
    if (!block_of(p, n)) die("memory that nobody holds is used by", running);
    return real + (p - (Address)seen);
}
static void fault(int signal, siginfo_t *info, void *) {
    if (running) die(signal == SIGILL ? "misaligned address in" : "illegal address in", running);
    die(on_card((Address)info->si_addr) ? "the host reads a card's memory, after" : "illegal address on the host, after", "the last call");
}
static int take(Address *p, size_t n) {
    int device = context - 1;
    size_t room = (n + PAGE + 255) / PAGE * PAGE; // at least 256 bytes behind the end
    *p = 0;
    if (n == 0) return INVALID_VALUE;
    if (used[device] + n > limit()) return OUT_OF_MEMORY;
    memset(real + next_block, 0xff, room);
    *p = (Address)seen + next_block, next_block += room;
    blocks[*p] = {n, device}, used[device] += n, high[device] = std::max(high[device], used[device]);
    return OK;
}
static void give(Address p) {
    auto it = blocks.find(p);
    if (it == blocks.end()) die("memory freed twice, or never held, after", running);
    size_t n = it->second.size, room = (n + PAGE + 255) / PAGE * PAGE;
    unsigned char *bytes = (unsigned char *)real + (p - (Address)seen);
    for (size_t i = n; i < n + 256; i++)
        if (bytes[i] != 0xff) die("written behind the end of a block", "some kernel or copy before it was freed");
    madvise(bytes, room, MADV_DONTNEED);
    blocks.erase(it);
}
// What is freed in a stream can be given to what is asked of it later, before either has happened.
static void forgo(Address p) {
    auto it = blocks.find(p);
    if (it != blocks.end()) used[it->second.device] -= it->second.size;
}
static bool is_pinned(const void *p) {
    auto it = pinned.upper_bound((char *)p);
    return it != pinned.begin() && (--it, (char *)p < it->first + it->second);
}

#define API extern "C" __attribute__((visibility("default"))) int

API cuInit(unsigned) {
    BEGIN;
    if (devices() == 0) return NO_DEVICE;
    if (seen) return OK;
    seen = (char *)mmap(nullptr, ROOM, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    real = (char *)mmap(nullptr, ROOM, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (seen == MAP_FAILED || real == MAP_FAILED) die("no room for", "memory");
    struct sigaction action = {};
    action.sa_sigaction = fault, action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigaction(SIGILL, &action, nullptr), sigaction(SIGSEGV, &action, nullptr);
    return OK;
}
API cuDeviceGet(int *d, int i) { BEGIN; *d = i; return i < 0 || i >= devices() ? INVALID_DEVICE : OK; }
API cuDeviceGetCount(int *n) { BEGIN; *n = devices(); return OK; }
API cuDeviceGetName(char *s, int n, int) { BEGIN; snprintf(s, n, "stand-in"); return OK; }
API cuDeviceGetUuid_v2(void *u, int d) { BEGIN; memset(u, d, 16); return OK; }
API cuDeviceTotalMem_v2(size_t *n, int) { BEGIN; *n = limit(); return OK; }
API cuDeviceGetAttribute(int *v, int attribute, int) {
    BEGIN;
    int capability = number("STANDIN_CAPABILITY", 80);
    *v = attribute == 75 ? capability / 10 : attribute == 76 ? capability % 10 : attribute == 115 ? number("STANDIN_POOLS", 1) : 0;
    return OK;
}
API cuDevicePrimaryCtxRetain(intptr_t *c, int d) { BEGIN; *c = d + 1; return OK; }
API cuDevicePrimaryCtxRelease_v2(int) { return OK; }
API cuCtxDestroy_v2(void *) { return OK; }
API cuCtxGetCurrent(intptr_t *c) { *c = context; return OK; }
API cuCtxSetCurrent(intptr_t c) { context = c; return OK; }
API cuCtxSynchronize() { IN_CONTEXT; drain(stream_of(nullptr)), drain(stream_of((void *)2)); return OK; }

API cuStreamCreate(Stream **s, unsigned) { IN_CONTEXT; *s = new Stream{(int)context - 1, {}}; return OK; }
API cuStreamDestroy_v2(void *s) { BEGIN; drain(stream_of(s)); return OK; }
API cuStreamSynchronize(void *s) { BEGIN; drain(stream_of(s)); return OK; }
API cuStreamIsCapturing(void *, int *v) { *v = 0; return OK; }
API cuStreamWaitEvent(void *s, Event *e, unsigned) {
    BEGIN;
    Event now = *e;
    if (now.stream) push(stream_of(s), [=] { drain(now.stream, now.ticket); });
    return OK;
}
API cuEventCreate(Event **e, unsigned) { IN_CONTEXT; *e = new Event; return OK; }
API cuEventDestroy_v2(Event *e) { BEGIN; delete e; return OK; }
API cuEventRecord(Event *e, void *s) { BEGIN; Stream *on = stream_of(s); push(on, [] {}), *e = {on, on->asked}; return OK; }
API cuEventSynchronize(Event *e) { BEGIN; if (e->stream) drain(e->stream, e->ticket); return OK; }
API cuEventQuery(Event *e) { BEGIN; return e->stream && e->stream->done < e->ticket ? NOT_READY : OK; }
API cuEventElapsedTime_v2(float *t, Event *, Event *) { *t = 1; return OK; }

API cuMemGetInfo_v2(size_t *free, size_t *total) { IN_CONTEXT; *total = limit(), *free = *total - used[context - 1]; return OK; }
API cuMemAlloc_v2(Address *p, size_t n) { IN_CONTEXT; return take(p, n); }
API cuMemAllocAsync(Address *p, size_t n, void *) { IN_CONTEXT; return take(p, n); }
API cuMemFree_v2(Address p) { BEGIN; drain(stream_of(nullptr)), drain(stream_of((void *)2)), forgo(p), give(p); return OK; }
API cuMemFreeAsync(Address p, void *s) { BEGIN; forgo(p), push(stream_of(s), [=] { give(p); }); return OK; }
API cuMemHostAlloc(char **p, size_t n, unsigned) { IN_CONTEXT; *p = (char *)aligned_alloc(PAGE, (n + PAGE - 1) / PAGE * PAGE), pinned[*p] = n; return OK; }
API cuMemFreeHost(char *p) { BEGIN; memset(p, 0xff, pinned[p]), pinned.erase(p), free(p); return OK; }
API cuMemcpyHtoDAsync_v2(Address to, const char *from, size_t n, void *s) {
    IN_CONTEXT;
    if (is_pinned(from)) { push(stream_of(s), [=] { memcpy(standin_bytes(to, n), from, n); }); return OK; }
    auto staged = std::make_shared<std::vector<char>>(from, from + n);
    push(stream_of(s), [=] { memcpy(standin_bytes(to, n), staged->data(), n); });
    return OK;
}
API cuMemcpyDtoHAsync_v2(void *to, Address from, size_t n, void *s) {
    IN_CONTEXT;
    push(stream_of(s), [=] { memcpy(to, standin_bytes(from, n), n); });
    if (!is_pinned(to)) drain(stream_of(s));
    return OK;
}
API cuMemcpyDtoDAsync_v2(Address to, Address from, size_t n, void *s) {
    IN_CONTEXT;
    push(stream_of(s), [=] { memmove(standin_bytes(to, n), standin_bytes(from, n), n); });
    return OK;
}
API cuMemcpyPeerAsync(Address to, void *, Address from, void *, size_t n, void *s) { return cuMemcpyDtoDAsync_v2(to, from, n, s); }
API cuMemsetD8Async(Address p, unsigned char v, size_t n, void *s) {
    IN_CONTEXT;
    push(stream_of(s), [=] { memset(standin_bytes(p, n), v, n); });
    return OK;
}

enum { USED_NOW = 7, USED_HIGH = 8 }; // attributes of a pool, which is its device's number + 1
API cuDeviceGetMemPool(intptr_t *p, int d) { BEGIN; *p = d + 1; return number("STANDIN_POOLS", 1) ? OK : NOT_SUPPORTED; }
API cuMemPoolTrimTo(intptr_t, size_t) { BEGIN; return OK; }
API cuMemPoolSetAttribute(intptr_t p, int attribute, uint64_t *v) {
    BEGIN;
    if (attribute == USED_HIGH && *v) return INVALID_VALUE;
    if (attribute == USED_HIGH) high[p - 1] = used[p - 1];
    return OK;
}
API cuMemPoolGetAttribute(intptr_t p, int attribute, uint64_t *v) {
    BEGIN;
    *v = attribute == USED_NOW ? used[p - 1] : attribute == USED_HIGH ? high[p - 1] : 0;
    return OK;
}

// Kernels.

API cuModuleLoadData(Module **m, const char *image) {
    IN_CONTEXT;
    const char *mark = "//standin:";
    if (strncmp(image, mark, strlen(mark))) return INVALID_IMAGE;
    std::string path(image + strlen(mark));
    path.resize(path.find('\n'));
    void *library = path.empty() ? nullptr : dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!path.empty() && !library) die("cannot load", dlerror());
    *m = new Module{library ? (int (*)(const char *, Job *))dlsym(library, "standin_invoke") : nullptr};
    return OK;
}
API cuModuleLoad(Module **, const char *) { return NOT_FOUND; }
API cuModuleUnload(Module *) { return OK; } // work that waits may still call it
API cuModuleGetFunction(Function **f, Module *m, const char *name) {
    BEGIN;
    auto function = new Function{m, name, -1, {}, 48 << 10};
    Job job = {nullptr, nullptr, nullptr, 0, false, function->sizes};
    if (m->invoke) function->count = m->invoke(name, &job);
    *f = function;
    return function->count < 0 ? NOT_FOUND : OK;
}
API cuFuncSetAttribute(Function *f, int attribute, int v) {
    BEGIN;
    if (attribute == 8 && v > 163 << 10) return INVALID_VALUE;
    if (attribute == 8) f->most_shared = v;
    return OK;
}

// The kernel's parameters are copied when it is launched, and what they point to must be there when it runs.
static void run(Function *f, Stream *s, std::vector<uint64_t> values, std::vector<unsigned> grid, std::vector<unsigned> block, unsigned shared) {
    std::vector<void *> args;
    running = f->name.c_str();
    for (int i = 0, word = 0; i < f->count; word += (f->sizes[i++] + 7) / 8) {
        if (f->sizes[i] == 8 && on_card(values[word])) {
            auto of = block_of(values[word], 0);
            if (of && of->second.device != s->device) die("memory of another card is used by", running);
            values[word] = (uint64_t)standin_bytes(values[word], 0);
        }
        args.push_back(&values[word]);
    }
    Job job = {args.data(), grid.data(), block.data(), shared, true, nullptr};
    f->module->invoke(running, &job);
    running = nullptr;
}
API cuLaunchKernel(Function *f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared, void *s, void **params, void **) {
    IN_CONTEXT;
    if (int error = failing(f->name.c_str())) return error;
    if (trace) fprintf(stderr, "stand-in: %s (%u, %u, %u) of (%u, %u, %u)\n", f->name.c_str(), gx, gy, gz, bx, by, bz);
    bool grid = gx && gy && gz && gx < 1u << 31 && gy < 65536 && gz < 65536;
    bool block = bx && by && bz && (uint64_t)bx * by * bz <= 1024 && bz <= 64;
    if (!grid || !block || shared > f->most_shared) return INVALID_VALUE;
    std::vector<uint64_t> values;
    for (int i = 0; i < f->count; i++) {
        values.resize(values.size() + (f->sizes[i] + 7) / 8);
        memcpy(&values[values.size() - (f->sizes[i] + 7) / 8], params[i], f->sizes[i]);
    }
    Stream *on = stream_of(s);
    push(on, [=] { run(f, on, values, {gx, gy, gz}, {bx, by, bz}, shared); });
    return OK;
}
API cuGetErrorName(int e, const char **s) {
    static thread_local char text[32];
    snprintf(text, sizeof text, "error %d", e), *s = text;
    return OK;
}
API cuGetErrorString(int e, const char **s) { return cuGetErrorName(e, s); }
