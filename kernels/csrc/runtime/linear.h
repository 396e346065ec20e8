// y = x · Wᵀ from a matrix's own bits.
#pragma once

#include <mutex>
#include <vector>

#include "isa/primitives.h"
#include "runtime/padded_rows.h"
#include "runtime/quantized_rows.h"
#include "runtime/thread_pool.h"
#include "runtime/weights.h"

namespace trimaran {

// A matrix ready to be multiplied with. Activations are f32 for weights in the file's layout, int8
// (packed/activations.h) for packed ones. Results do not depend on the number of threads nor on n.
class Linear {
 public:
  // The pool, the primitives and the matrix's memory must outlive this. Throws KernelError on a matrix that
  // does not fit.
  Linear(ThreadPool& pool, const Primitives& primitives, const Matrix& matrix, int64_t rows, int64_t columns);

  // x: [n, columns], out: [n, rows], both f32 row-major; n may be 0. Any thread may call, one after another.
  void multiply(const float* x, int64_t n, float* out);

  int64_t rows() const { return weights_.rows(); }
  int64_t columns() const { return columns_; }

 private:
  Vectors prepare(const float* x, int64_t n);
  // `next`: see Weights::multiply.
  void multiply_tile(int64_t tile, const Vectors& x, int64_t n, float* out, const uint8_t* next) const;

  ThreadPool& pool_;
  const Primitives& primitives_;
  const Weights weights_;
  const int64_t columns_;

  std::mutex callers_;  // guards what follows: the buffers of the call in progress
  PaddedRows floats_;
  QuantizedRows codes_;
  std::vector<QuantizedVector> views_;
};

}  // namespace trimaran
