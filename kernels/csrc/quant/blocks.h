// Byte layout of GGUF's quantised blocks. All fields are bytes, so a block may lie at any address;
// 16-bit numbers are little-endian pairs read by load_u16 (quant/half.h).
#pragma once

#include <cstdint>

namespace trimaran {

struct BlockQ4_0 {
  uint8_t d[2];    // f16 scale
  uint8_t qs[16];  // weight i in the low nibble of byte i, weight i+16 in the high one
};

struct BlockQ4_1 {
  uint8_t d[2];
  uint8_t m[2];  // f16 offset, added
  uint8_t qs[16];
};

struct BlockQ5_0 {
  uint8_t d[2];
  uint8_t qh[4];  // bit i: fifth bit of weight i
  uint8_t qs[16];
};

struct BlockQ5_1 {
  uint8_t d[2];
  uint8_t m[2];
  uint8_t qh[4];
  uint8_t qs[16];
};

struct BlockQ8_0 {
  uint8_t d[2];
  int8_t qs[32];
};

struct BlockIQ4_NL {
  uint8_t d[2];
  uint8_t qs[16];  // indices into kIq4Levels, order as in Q4_0
};

// Super-blocks of 256 weights.

struct BlockQ2_K {
  uint8_t scales[16];  // per 16 weights: scale in the low nibble, offset in the high one
  uint8_t qs[64];      // 2 bits: 32 bytes hold four runs of 32 weights
  uint8_t d[2];
  uint8_t dmin[2];
};

struct BlockQ3_K {
  uint8_t hmask[32];   // bit r of byte i: third bit of weight 32 r + i, inverted
  uint8_t qs[64];      // low 2 bits, order as in Q2_K
  uint8_t scales[12];  // 16 × 6 bits
  uint8_t d[2];
};

struct BlockQ4_K {
  uint8_t d[2];
  uint8_t dmin[2];
  uint8_t scales[12];  // 8 × (6-bit scale, 6-bit offset)
  uint8_t qs[128];     // 32 bytes hold run 2j in low nibbles, run 2j+1 in high ones
};

struct BlockQ5_K {
  uint8_t d[2];
  uint8_t dmin[2];
  uint8_t scales[12];
  uint8_t qh[32];  // bit r of byte i: fifth bit of weight 32 r + i
  uint8_t qs[128];
};

struct BlockQ6_K {
  uint8_t ql[128];
  uint8_t qh[64];
  int8_t scales[16];  // per 16 weights
  uint8_t d[2];
};

struct BlockIQ4_XS {
  uint8_t d[2];
  uint8_t scales_h[2];
  uint8_t scales_l[4];  // 8 × 6-bit scales with scales_h
  uint8_t qs[128];
};

struct BlockIQ2_XXS {
  uint8_t d[2];
  uint8_t qs[64];  // per 32 weights: 4 grid indices, then 4 × 7 sign bits and a 4-bit scale
};

struct BlockIQ2_XS {
  uint8_t d[2];
  uint8_t qs[64];  // per 8 weights: 9-bit grid index, 7 sign bits
  uint8_t scales[8];
};

struct BlockIQ2_S {
  uint8_t d[2];
  uint8_t qs[32];     // low 8 bits of the grid index of 8 weights
  uint8_t signs[32];  // 8 sign bits
  uint8_t qh[8];      // high 2 bits of four indices
  uint8_t scales[8];
};

struct BlockIQ3_XXS {
  uint8_t d[2];
  uint8_t qs[64];            // grid index of 4 weights
  uint8_t scales_signs[32];  // per 32 weights: 4 × 7 sign bits and a 4-bit scale
};

struct BlockIQ3_S {
  uint8_t d[2];
  uint8_t qs[64];
  uint8_t qh[8];  // ninth bit of eight indices
  uint8_t signs[32];
  uint8_t scales[4];
};

struct BlockIQ1_S {
  uint8_t d[2];
  uint8_t qs[32];
  uint8_t qh[16];  // per 32 weights 16 bits: 4 × 3 high index bits, 3-bit scale, sign of delta
};

struct BlockIQ1_M {
  uint8_t qs[32];
  uint8_t qh[16];     // per 16 weights: two nibbles of 3 high index bits and the sign of delta
  uint8_t scales[8];  // 16 × 3 bits; the four top nibbles make the f16 super-scale
};

static_assert(sizeof(BlockQ4_0) == 18 && sizeof(BlockQ4_1) == 20 && sizeof(BlockQ5_0) == 22 &&
              sizeof(BlockQ5_1) == 24 && sizeof(BlockQ8_0) == 34 && sizeof(BlockIQ4_NL) == 18);
static_assert(sizeof(BlockQ2_K) == 84 && sizeof(BlockQ3_K) == 110 && sizeof(BlockQ4_K) == 144 &&
              sizeof(BlockQ5_K) == 176 && sizeof(BlockQ6_K) == 210 && sizeof(BlockIQ4_XS) == 136);
static_assert(sizeof(BlockIQ2_XXS) == 66 && sizeof(BlockIQ2_XS) == 74 && sizeof(BlockIQ2_S) == 82 &&
              sizeof(BlockIQ3_XXS) == 98 && sizeof(BlockIQ3_S) == 110 && sizeof(BlockIQ1_S) == 50 &&
              sizeof(BlockIQ1_M) == 56);

}  // namespace trimaran
