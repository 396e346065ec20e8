// The experts' activation function, 8 numbers at a time.
#pragma once

#include <cstdint>

namespace trimaran::avx2 {

// As ActivateFn.
void activate(const float* gate, const float* up, int64_t n, float* out);

}  // namespace trimaran::avx2
