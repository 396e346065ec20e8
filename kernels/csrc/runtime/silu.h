// The experts' activation function.
#pragma once

#include <cmath>

namespace trimaran {

inline float silu(float x) { return x / (1.0f + std::exp(-x)); }

}  // namespace trimaran
