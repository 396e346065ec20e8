// The rows of an activation matrix, quantised once for all matrices that they meet.
#pragma once

#include <cstdint>
#include <vector>

#include "isa/primitives.h"
#include "runtime/thread_pool.h"

namespace trimaran {

class QuantizedRows {
 public:
  // Room for n rows; their contents are whatever was there, but for the padding of the last cell, which is
  // zero.
  void resize(int64_t n, int64_t columns);

  // rows: n pointers to `columns` floats, columns a multiple of 32.
  void set(ThreadPool& pool, const Primitives& primitives, const float* const* rows, int64_t n,
           int64_t columns);

  QuantizedSlot slot(int64_t row) { return layout_.slot(at(row)); }
  QuantizedVector vector(int64_t row) const { return layout_.vector(buffer_.data() + offset(row)); }

 private:
  size_t offset(int64_t row) const { return static_cast<size_t>(row) * layout_.bytes; }
  uint8_t* at(int64_t row) { return buffer_.data() + offset(row); }

  ActivationLayout layout_{0};
  std::vector<uint8_t> buffer_;
};

}  // namespace trimaran
