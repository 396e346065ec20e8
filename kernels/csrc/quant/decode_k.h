// Scalar decoding of the K types: 256 weights, scales per 16 or 32 of them.
#pragma once

#include "quant/blocks.h"
#include "quant/decode_legacy.h"
#include "quant/half.h"

namespace trimaran::scalar {

struct ScaleMin {
  int scale;
  int min;
};

// Sub-block j's 6-bit scale and offset of Q4_K and Q5_K: the first four are plain, the last four are put
// together from nibbles of bytes 8-11 and the spare top bits of bytes 0-7.
inline ScaleMin scale_min(const uint8_t* packed, int j) {
  if (j < 4) return {packed[j] & 63, packed[j + 4] & 63};
  return {(packed[j + 4] & 15) | (packed[j - 4] >> 6) << 4, (packed[j + 4] >> 4) | (packed[j] >> 6) << 4};
}

// Sub-block j's 6-bit scale of Q3_K, without its bias of 32.
inline int q3_scale(const uint8_t* packed, int j) {
  const int low = nibble(packed[j % 8], j / 8);
  const int high = packed[8 + j % 4] >> (2 * (j / 4)) & 3;
  return (low | high << 4) - 32;
}

// Sub-block j's 6-bit scale of IQ4_XS, without its bias of 32.
inline int iq4_scale(const BlockIQ4_XS& block, int j) {
  const int low = nibble(block.scales_l[j / 2], j % 2);
  const int high = load_u16(block.scales_h) >> (2 * j) & 3;
  return (low | high << 4) - 32;
}

inline void decode(const BlockQ2_K& block, float* dst) {
  const float d = load_f16(block.d);
  const float dmin = load_f16(block.dmin);
  for (int run = 0; run < 8; ++run) {
    const uint8_t* qs = block.qs + 32 * (run / 4);
    const int shift = 2 * (run % 4);
    for (int i = 0; i < 32; ++i) {
      const uint8_t packed = block.scales[2 * run + i / 16];
      const float dl = d * static_cast<float>(packed & 15);
      const float ml = dmin * static_cast<float>(packed >> 4);
      dst[32 * run + i] = dl * static_cast<float>(qs[i] >> shift & 3) - ml;
    }
  }
}

inline void decode(const BlockQ3_K& block, float* dst) {
  const float d = load_f16(block.d);
  for (int run = 0; run < 8; ++run) {
    const uint8_t* qs = block.qs + 32 * (run / 4);
    const int shift = 2 * (run % 4);
    for (int i = 0; i < 32; ++i) {
      const float dl = d * static_cast<float>(q3_scale(block.scales, 2 * run + i / 16));
      const int offset = (block.hmask[i] >> run & 1) != 0 ? 0 : 4;
      dst[32 * run + i] = dl * static_cast<float>((qs[i] >> shift & 3) - offset);
    }
  }
}

inline void decode(const BlockQ4_K& block, float* dst) {
  const float d = load_f16(block.d);
  const float dmin = load_f16(block.dmin);
  for (int run = 0; run < 8; ++run) {
    const ScaleMin sm = scale_min(block.scales, run);
    const float dl = d * static_cast<float>(sm.scale);
    const float ml = dmin * static_cast<float>(sm.min);
    const uint8_t* qs = block.qs + 32 * (run / 2);
    for (int i = 0; i < 32; ++i) dst[32 * run + i] = dl * static_cast<float>(nibble(qs[i], run % 2)) - ml;
  }
}

inline void decode(const BlockQ5_K& block, float* dst) {
  const float d = load_f16(block.d);
  const float dmin = load_f16(block.dmin);
  for (int run = 0; run < 8; ++run) {
    const ScaleMin sm = scale_min(block.scales, run);
    const float dl = d * static_cast<float>(sm.scale);
    const float ml = dmin * static_cast<float>(sm.min);
    const uint8_t* qs = block.qs + 32 * (run / 2);
    for (int i = 0; i < 32; ++i) {
      const int q = nibble(qs[i], run % 2) | (block.qh[i] >> run & 1) << 4;
      dst[32 * run + i] = dl * static_cast<float>(q) - ml;
    }
  }
}

inline void decode(const BlockQ6_K& block, float* dst) {
  const float d = load_f16(block.d);
  for (int run = 0; run < 8; ++run) {
    const uint8_t* ql = block.ql + 64 * (run / 4) + 32 * (run % 2);
    const uint8_t* qh = block.qh + 32 * (run / 4);
    for (int i = 0; i < 32; ++i) {
      const float dl = d * static_cast<float>(block.scales[2 * run + i / 16]);
      const int q = nibble(ql[i], run / 2 % 2) | (qh[i] >> (2 * (run % 4)) & 3) << 4;
      dst[32 * run + i] = dl * static_cast<float>(q - 32);
    }
  }
}

inline void decode(const BlockIQ4_XS& block, float* dst) {
  const float d = load_f16(block.d);
  for (int run = 0; run < 8; ++run) {
    const float dl = d * static_cast<float>(iq4_scale(block, run));
    const uint8_t* qs = block.qs + 16 * run;
    for (int i = 0; i < 32; ++i) {
      dst[32 * run + i] = dl * static_cast<float>(kIq4Levels[nibble(qs[i % 16], i / 16)]);
    }
  }
}

}  // namespace trimaran::scalar
