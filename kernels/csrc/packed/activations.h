// Activations as the packed kernels read them: int8 with one scale per 16 columns.
#pragma once

#include <cstddef>
#include <cstdint>

#include "packed/format.h"

namespace trimaran {

// One vector, padded with zeros to whole cells of 256 columns; group g is columns 32 g .. 32 g + 31, half h
// columns 16 h .. 16 h + 15.
//   x[c] ≈ scales[c / 16] × codes[c]
struct QuantizedVector {
  const int8_t* codes;
  const float* scales;   // per half
  const float* halves;   // per half: scale × Σ codes
  const float* sums;     // per group: the sum of its two halves
  const int16_t* lanes;  // per half two numbers: -Σ codes of columns 0, 1 and of columns 2, 3 of each four
};

// The same, to be written.
struct QuantizedSlot {
  int8_t* codes;
  float* scales;
  float* halves;
  float* sums;
  int16_t* lanes;
};

// A half's scale is max |x| / levels, levels being the one of kMostLevels, kMostLevels - 1, ... that leaves
// the least squared error: rounding 16 numbers is a game of chance, and the best of eight throws errs 15 %
// less than one.
constexpr int kMostLevels = 127;
constexpr int kTries = 8;
// A half whose largest number is smaller counts as zeros.
constexpr float kTiny = 1e-30f;

// Where the parts of a vector of so many groups lie in one piece of memory.
struct ActivationLayout {
  explicit ActivationLayout(int64_t columns);

  QuantizedSlot slot(uint8_t* base) const;
  QuantizedVector vector(const uint8_t* base) const;

  int64_t groups;  // padded
  size_t bytes;    // of a vector, a multiple of 64
};

}  // namespace trimaran
