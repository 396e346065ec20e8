// Reads memory as fast as the machine can: the floor that decoding speed is measured against.
#pragma once

#include <cstddef>
#include <cstdint>

#include "runtime/thread_pool.h"

namespace trimaran {

// XOR of all whole 8-byte words of [data, data + size), read once by all threads together. Data must be
// 8-aligned.
uint64_t read_memory(ThreadPool& pool, const uint8_t* data, size_t size);

}  // namespace trimaran
