// What the libraries beside the driver ask of it.
#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>

// Work for a stream, after all that was asked of it before.
void standin_push(void *stream, std::function<void()> work);
// Where `n` bytes of a card's memory are, which must be held; only for work that runs.
void *standin_bytes(unsigned long long address, size_t n);
// The calling thread's context, 0 without one.
intptr_t standin_context();
