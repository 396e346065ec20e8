// Decoding of the grid types: a few bits choose a row of 4 or 8 magnitudes, others its signs and scale.
// Included once per instruction set, inside its namespace and target region, after these two:
//   put_signed(row, signs, scale, dst)      dst[i] = (scale · byte i of row) · ±1; bit i of `signs` is a minus
//   put_shifted(row, negative, scale, dst)  dst[i] = scale · (signed byte i of row ± 1/8)
// A row is a uint64_t of eight bytes or (put_signed only) a uint32_t of four.

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
  for (int half = 0; half < 16; ++half) {
    const int scale = block.scales[half / 2] >> (half % 2 * 4) & 15;
    const float db = d * (0.5f + static_cast<float>(scale)) * 0.25f;
    for (int j = 2 * half; j < 2 * half + 2; ++j) {
      const uint16_t q = load_u16(block.qs + 2 * j);
      put_signed(kIq2XsGrid[q & 511], kIqSignMasks[q >> 9], db, dst + 8 * j);
    }
  }
}

inline void decode(const BlockIQ2_S& block, float* dst) {
  const float d = load_f16(block.d);
  for (int half = 0; half < 16; ++half) {
    const int scale = block.scales[half / 2] >> (half % 2 * 4) & 15;
    const float db = d * (0.5f + static_cast<float>(scale)) * 0.25f;
    for (int j = 2 * half; j < 2 * half + 2; ++j) {
      const int index = block.qs[j] | (block.qh[j / 4] >> (j % 4 * 2) & 3) << 8;
      put_signed(kIq2SGrid[index], block.signs[j], db, dst + 8 * j);
    }
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
  for (int run = 0; run < 8; ++run) {
    const int scale = block.scales[run / 2] >> (run % 2 * 4) & 15;
    const float db = d * static_cast<float>(1 + 2 * scale);
    for (int j = 0; j < 8; ++j) {
      const int index = block.qs[8 * run + j] | (block.qh[run] >> j & 1) << 8;
      const int signs = block.signs[4 * run + j / 2] >> (j % 2 * 4);
      put_signed(kIq3SGrid[index], signs, db, dst + 32 * run + 4 * j);
    }
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
  for (int half = 0; half < 16; ++half) {
    const int scale = load_u16(block.scales + half / 4 * 2) >> (half % 4 * 3) & 7;
    const float dl = d * static_cast<float>(2 * scale + 1);
    for (int j = 0; j < 2; ++j) {
      const int high = block.qh[half] >> (j * 4) & 15;
      const int index = block.qs[2 * half + j] | (high & 7) << 8;
      put_shifted(kIq1Grid[index], (high & 8) != 0, dl, dst + 16 * half + 8 * j);
    }
  }
}
