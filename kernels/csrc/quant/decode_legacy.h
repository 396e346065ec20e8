// Scalar decoding of the 32-weight block types and of plain floats: the reference for every other decoder.
#pragma once

#include "quant/blocks.h"
#include "quant/half.h"
#include "quant/iq_tables.h"

namespace trimaran::scalar {

inline int nibble(uint8_t byte, int high) { return high ? byte >> 4 : byte & 0x0f; }

// The fifth bit of weight i.
inline int fifth_bit(const uint8_t* qh, int i) { return (qh[i / 8] >> (i % 8) & 1) << 4; }

inline void decode(const BlockQ4_0& block, float* dst) {
  const float d = load_f16(block.d);
  for (int i = 0; i < 32; ++i) dst[i] = d * static_cast<float>(nibble(block.qs[i % 16], i / 16) - 8);
}

inline void decode(const BlockQ4_1& block, float* dst) {
  const float d = load_f16(block.d);
  const float m = load_f16(block.m);
  for (int i = 0; i < 32; ++i) dst[i] = d * static_cast<float>(nibble(block.qs[i % 16], i / 16)) + m;
}

inline void decode(const BlockQ5_0& block, float* dst) {
  const float d = load_f16(block.d);
  for (int i = 0; i < 32; ++i) {
    const int q = nibble(block.qs[i % 16], i / 16) | fifth_bit(block.qh, i);
    dst[i] = d * static_cast<float>(q - 16);
  }
}

inline void decode(const BlockQ5_1& block, float* dst) {
  const float d = load_f16(block.d);
  const float m = load_f16(block.m);
  for (int i = 0; i < 32; ++i) {
    const int q = nibble(block.qs[i % 16], i / 16) | fifth_bit(block.qh, i);
    dst[i] = d * static_cast<float>(q) + m;
  }
}

inline void decode(const BlockQ8_0& block, float* dst) {
  const float d = load_f16(block.d);
  for (int i = 0; i < 32; ++i) dst[i] = static_cast<float>(block.qs[i]) * d;
}

inline void decode(const BlockIQ4_NL& block, float* dst) {
  const float d = load_f16(block.d);
  for (int i = 0; i < 32; ++i) {
    dst[i] = d * static_cast<float>(kIq4Levels[nibble(block.qs[i % 16], i / 16)]);
  }
}

}  // namespace trimaran::scalar
