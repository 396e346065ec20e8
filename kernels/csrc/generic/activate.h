// The experts' activation function, one number at a time: what all instruction sets compute, to the bit.
#pragma once

#include <cmath>
#include <cstdint>

#include "quant/half.h"

namespace trimaran {

// e^x = 2^n · e^r with n = x / ln 2 rounded, |r| ≤ ln 2 / 2; ln 2 is subtracted in two parts, e^r is its
// Taylor polynomial of degree 7. Within [kLeastPower, kMostPower] the error is at most 2 units in the last
// place.
namespace exponential {
constexpr float kLeastPower = -87.0f;
constexpr float kMostPower = 88.0f;
constexpr float kPerLn2 = 1.44269504088896341f;
constexpr float kUpperLn2 = 0.693359375f;
constexpr float kLowerLn2 = -2.12194440e-4f;
constexpr float kTaylor[] = {1.0f / 5040, 1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f};
constexpr int kTerms = sizeof kTaylor / sizeof kTaylor[0];
}  // namespace exponential

// e^x for x clamped to what floats hold; e^kLeastPower for NaN.
inline float bounded_exp(float x) {
  using namespace exponential;
  x = x > kLeastPower ? x : kLeastPower;
  x = x < kMostPower ? x : kMostPower;
  const float n = std::nearbyint(x * kPerLn2);
  float r = std::fma(-n, kUpperLn2, x);
  r = std::fma(-n, kLowerLn2, r);
  float y = kTaylor[0];
  for (int i = 1; i < kTerms; ++i) y = std::fma(y, r, kTaylor[i]);
  return y * float_from_bits(static_cast<uint32_t>(static_cast<int32_t>(n) + 127) << 23);
}

inline float silu(float x) { return x / (1.0f + bounded_exp(-x)); }

namespace generic {

inline void activate(const float* gate, const float* up, int64_t n, float* out) {
  for (int64_t i = 0; i < n; ++i) out[i] = silu(gate[i]) * up[i];
}

}  // namespace generic
}  // namespace trimaran
