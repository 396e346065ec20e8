// The scales of quantised activations, eight halves at a time.
#pragma once

#include "packed/activations.h"

namespace trimaran::avx2 {

constexpr int kHalvesAtOnce = 8;

struct HalfScales {
  alignas(32) float scales[kHalvesAtOnce];    // NaN where a number is not finite
  alignas(32) float inverses[kHalvesAtOnce];  // 0 of a half that counts as zeros
};

// `x`: kHalvesAtOnce halves, one after the other.
HalfScales find_scales(const float* x);

}  // namespace trimaran::avx2
