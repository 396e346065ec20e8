// y = x · Wᵀ from a matrix's own bits.
#pragma once

#include "isa/primitives.h"
#include "runtime/matrix.h"
#include "runtime/thread_pool.h"

namespace trimaran {

// x: [n, columns], out: [n, rows], both f32 row-major; n and rows may be 0. Throws KernelError on a matrix
// that does not fit. Activations are f32 for weights in the file's layout, int8 (packed/activations.h) for
// packed ones. Results do not depend on the number of threads nor on n.
void linear(ThreadPool& pool, const Primitives& primitives, const Matrix& weights, int64_t rows,
            int64_t columns, const float* x, int64_t n, float* out);

}  // namespace trimaran
