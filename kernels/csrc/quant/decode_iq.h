// Scalar decoding of the grid types: a few bits choose a row of 4 or 8 magnitudes, others its signs and
// scale.
#pragma once

#include "quant/blocks.h"
#include "quant/half.h"
#include "quant/iq_tables.h"

namespace trimaran {

// dst[i] = (scale · byte i of row) · ±1 for each byte of the grid row; bit i of `signs` makes weight i
// negative.
template <class Row>
void put_signed(Row row, int signs, float scale, float* dst) {
  for (int i = 0; i < static_cast<int>(sizeof row); ++i) {
    const float magnitude = scale * static_cast<float>(row >> 8 * i & 0xff);
    dst[i] = (signs >> i & 1) != 0 ? -magnitude : magnitude;
  }
}

inline void decode(const BlockIQ2_XXS& block, float* dst) {
  const float d = load_f16(block.d);
  for (int run = 0; run < 8; ++run) {
    const uint8_t* qs = block.qs + 8 * run;
    const uint32_t packed = load_u32(qs + 4);
    const float db = d * (0.5f + static_cast<float>(packed >> 28)) * 0.25f;
    for (int j = 0; j < 4; ++j) {
      put_signed(kIq2XxsGrid[qs[j]], kIqSignMasks[packed >> 7 * j & 127], db, dst + 32 * run + 8 * j);
    }
  }
}

inline void decode(const BlockIQ2_XS& block, float* dst) {
  const float d = load_f16(block.d);
  for (int j = 0; j < 32; ++j) {
    const int scale = block.scales[j / 4] >> (j / 2 % 2 * 4) & 15;
    const float db = d * (0.5f + static_cast<float>(scale)) * 0.25f;
    const uint16_t q = load_u16(block.qs + 2 * j);
    put_signed(kIq2XsGrid[q & 511], kIqSignMasks[q >> 9], db, dst + 8 * j);
  }
}

inline void decode(const BlockIQ2_S& block, float* dst) {
  const float d = load_f16(block.d);
  for (int j = 0; j < 32; ++j) {
    const int scale = block.scales[j / 4] >> (j / 2 % 2 * 4) & 15;
    const float db = d * (0.5f + static_cast<float>(scale)) * 0.25f;
    const int index = block.qs[j] | (block.qh[j / 4] >> (j % 4 * 2) & 3) << 8;
    put_signed(kIq2SGrid[index], block.signs[j], db, dst + 8 * j);
  }
}

inline void decode(const BlockIQ3_XXS& block, float* dst) {
  const float d = load_f16(block.d);
  for (int run = 0; run < 8; ++run) {
    const uint32_t packed = load_u32(block.scales_signs + 4 * run);
    const float db = d * (0.5f + static_cast<float>(packed >> 28)) * 0.5f;
    for (int j = 0; j < 8; ++j) {
      const int signs = kIqSignMasks[packed >> 7 * (j / 2) & 127] >> (j % 2 * 4);
      put_signed(kIq3XxsGrid[block.qs[8 * run + j]], signs, db, dst + 32 * run + 4 * j);
    }
  }
}

inline void decode(const BlockIQ3_S& block, float* dst) {
  const float d = load_f16(block.d);
  for (int j = 0; j < 64; ++j) {
    const int scale = block.scales[j / 16] >> (j / 8 % 2 * 4) & 15;
    const float db = d * static_cast<float>(1 + 2 * scale);
    const int index = block.qs[j] | (block.qh[j / 8] >> j % 8 & 1) << 8;
    put_signed(kIq3SGrid[index], block.signs[j / 2] >> (j % 2 * 4), db, dst + 4 * j);
  }
}

// dst[i] = scale · (signed byte i of row ± 1/8) for 8 weights.
inline void put_shifted(uint64_t row, bool negative, float scale, float* dst) {
  const float delta = negative ? -0.125f : 0.125f;
  for (int i = 0; i < 8; ++i) {
    dst[i] = scale * (static_cast<float>(static_cast<int8_t>(row >> 8 * i & 0xff)) + delta);
  }
}

inline void decode(const BlockIQ1_S& block, float* dst) {
  const float d = load_f16(block.d);
  for (int run = 0; run < 8; ++run) {
    const uint16_t qh = load_u16(block.qh + 2 * run);
    const float dl = d * static_cast<float>(2 * (qh >> 12 & 7) + 1);
    for (int j = 0; j < 4; ++j) {
      const int index = block.qs[4 * run + j] | (qh >> 3 * j & 7) << 8;
      put_shifted(kIq1Grid[index], (qh & 0x8000) != 0, dl, dst + 32 * run + 8 * j);
    }
  }
}

// The f16 super-scale of IQ1_M is spread over the top nibbles of its four 16-bit scale words.
inline float iq1m_super_scale(const BlockIQ1_M& block) {
  uint32_t bits = 0;
  for (int i = 0; i < 4; ++i) bits |= static_cast<uint32_t>(load_u16(block.scales + 2 * i) >> 12) << 4 * i;
  return f16_to_float(static_cast<uint16_t>(bits));
}

inline void decode(const BlockIQ1_M& block, float* dst) {
  const float d = iq1m_super_scale(block);
  for (int j = 0; j < 32; ++j) {
    const int sub_block = j / 2;
    const int scale = load_u16(block.scales + sub_block / 4 * 2) >> (sub_block % 4 * 3) & 7;
    const float dl = d * static_cast<float>(2 * scale + 1);
    const int high = block.qh[sub_block] >> (j % 2 * 4) & 15;
    const int index = block.qs[j] | (high & 7) << 8;
    put_shifted(kIq1Grid[index], (high & 8) != 0, dl, dst + 8 * j);
  }
}

}  // namespace trimaran
