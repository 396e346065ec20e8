// Vectors as the kernels read them: f32, padded with zeros to whole SIMD vectors.
#pragma once

#include <cstdint>
#include <vector>

#include "runtime/status.h"
#include "runtime/thread_pool.h"

namespace trimaran {

// Pointers to the rows of an activation matrix. Rows that are f32 and need no padding stay where they are,
// others are converted into a buffer that is kept from call to call.
class PaddedRows {
 public:
  // data: [n, columns] of dtype; it must outlive the use of rows().
  void set(ThreadPool& pool, const void* data, DType dtype, int64_t n, int64_t columns);
  const float* const* rows() const { return rows_.data(); }

 private:
  std::vector<float> buffer_;
  std::vector<const float*> rows_;
};

}  // namespace trimaran
