// Rearranging a matrix of the file into the packed layout. No bit of a weight is lost or changed.
#pragma once

#include <cstdint>

#include "packed/format.h"
#include "runtime/row_tile.h"
#include "runtime/thread_pool.h"

namespace trimaran {

// Packs all rows of `source` to `dst`, packed_bytes(format, rows, columns) bytes at a 64-byte boundary; rows
// that fill up the last stripe are zeros.
void pack(ThreadPool& pool, const Format& format, const RowMatrix& source, uint8_t* dst);

}  // namespace trimaran
