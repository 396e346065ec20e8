// The tile registers of a thread, and what stands in them during a product of two stripes and one or two
// blocks.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "isa/target.h"
#include "isa/tiles.h"

TRIMARAN_TARGET_BEGIN("amx-tile,amx-bf16,avx512f,avx512bw,avx512vl,avx2,fma,f16c")

namespace trimaran::amx {

// What ldtilecfg reads (Intel SDM vol. 1, 18.2): palette 1, all eight tiles of 16 rows × 64 bytes.
struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
static_assert(sizeof(TileConfig) == 64);
constexpr TileConfig kConfig{};

// Tiles are registers of a thread; given back, a switch of threads need not save their 8 KiB.
class TileRegisters {
 public:
  TileRegisters() { _tile_loadconfig(&kConfig); }
  ~TileRegisters() { _tile_release(); }
  TileRegisters(const TileRegisters&) = delete;
  TileRegisters& operator=(const TileRegisters&) = delete;
};

constexpr int kPitch = kLineBytes;  // bytes from row to row of a tile in memory
constexpr int kSumFloats = kBlockVectors * kStripeRows;

// Sums: stripe 0 in tiles 0 and 1, stripe 1 in 2 and 3. Blocks of vectors in 4 and 5, stripes in 6 and 7.

template <int kBlocks>
inline void clear_sums() {
  _tile_zero(0);
  _tile_zero(2);
  if constexpr (kBlocks > 1) {
    _tile_zero(1);
    _tile_zero(3);
  }
}

// out: of stripe 0 and the first block; blocks follow each other.
template <int kBlocks>
inline void load_sums(const float* out, int64_t stripe_floats) {
  _tile_loadd(0, out, kPitch);
  _tile_loadd(2, out + stripe_floats, kPitch);
  if constexpr (kBlocks > 1) {
    _tile_loadd(1, out + kSumFloats, kPitch);
    _tile_loadd(3, out + stripe_floats + kSumFloats, kPitch);
  }
}

template <int kBlocks>
inline void store_sums(float* out, int64_t stripe_floats) {
  _tile_stored(0, out, kPitch);
  _tile_stored(2, out + stripe_floats, kPitch);
  if constexpr (kBlocks > 1) {
    _tile_stored(1, out + kSumFloats, kPitch);
    _tile_stored(3, out + stripe_floats + kSumFloats, kPitch);
  }
}

inline void load_weights(const uint8_t* first, const uint8_t* second) {
  _tile_loadd(6, first, kPitch);
  _tile_loadd(7, second, kPitch);
}

// The weights in 6 and 7 times a tile of each block.
template <int kBlocks>
inline void add_products(const uint8_t* x, int64_t block_bytes) {
  _tile_loadd(4, x, kPitch);
  _tile_dpbf16ps(0, 4, 6);
  _tile_dpbf16ps(2, 4, 7);
  if constexpr (kBlocks > 1) {
    _tile_loadd(5, x + block_bytes, kPitch);
    _tile_dpbf16ps(1, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
}

}  // namespace trimaran::amx

TRIMARAN_TARGET_END
