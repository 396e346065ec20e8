// Scalar decoding of the grid types: the reference for every other decoder.
#pragma once

#include "quant/blocks.h"
#include "quant/half.h"
#include "quant/iq_tables.h"

namespace trimaran::scalar {

template <class Row>
void put_signed(Row row, int signs, float scale, float* dst) {
  for (int i = 0; i < static_cast<int>(sizeof row); ++i) {
    const float magnitude = scale * static_cast<float>(row >> 8 * i & 0xff);
    dst[i] = (signs >> i & 1) != 0 ? -magnitude : magnitude;
  }
}

inline void put_shifted(uint64_t row, bool negative, float scale, float* dst) {
  const float delta = negative ? -0.125f : 0.125f;
  for (int i = 0; i < 8; ++i) {
    dst[i] = scale * (static_cast<float>(static_cast<int8_t>(row >> 8 * i & 0xff)) + delta);
  }
}

#include "quant/decode_iq.inl"

}  // namespace trimaran::scalar
