#include "amx/tiles.h"

#if defined(__x86_64__)

#include <immintrin.h>

#include <algorithm>
#include <cstring>

#include "amx/panel.h"
#include "isa/target.h"
#include "quant/half.h"

TRIMARAN_TARGET_BEGIN("amx-tile,amx-bf16,avx512f,avx512bw,avx512vl,avx2,fma,f16c")

namespace trimaran::amx {
namespace {

// Weights that are decoded at a time: 2 stripes × 16 tiles = 32 KiB, which stay in the first-level cache
// (48 KiB) while vectors stream past.
constexpr int64_t kPanelColumns = 512;
constexpr int kPanelTiles = kPanelColumns / kGroupColumns;

// Below this, decoding weights to bf16 takes longer than dot products.
constexpr int kLeastTokens = 12;

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

// One pass of the panel: the sums of one or two blocks, stripe 0 in tiles 0 and 1, stripe 1 in 2 and 3.
struct Pass {
  const uint8_t* panel;  // [stripe][kPanelTiles] tiles
  int tiles;             // of the panel that are in use
  const uint8_t* x;      // of the first block, at the panel's first column
  int64_t block_bytes;
  float* out;  // of the first block
  int64_t stripe_floats;
  bool first;  // sums start here
};

constexpr int kBlockFloats = kBlockVectors * kStripeRows;
constexpr int kPitch = 64;  // bytes from row to row of a tile in memory

template <bool kTwoBlocks>
inline void start_sums(const Pass& p) {
  if (p.first) {
    _tile_zero(0);
    _tile_zero(2);
    if constexpr (kTwoBlocks) {
      _tile_zero(1);
      _tile_zero(3);
    }
    return;
  }
  _tile_loadd(0, p.out, kPitch);
  _tile_loadd(2, p.out + p.stripe_floats, kPitch);
  if constexpr (kTwoBlocks) {
    _tile_loadd(1, p.out + kBlockFloats, kPitch);
    _tile_loadd(3, p.out + p.stripe_floats + kBlockFloats, kPitch);
  }
}

template <bool kTwoBlocks>
inline void store_sums(const Pass& p) {
  _tile_stored(0, p.out, kPitch);
  _tile_stored(2, p.out + p.stripe_floats, kPitch);
  if constexpr (kTwoBlocks) {
    _tile_stored(1, p.out + kBlockFloats, kPitch);
    _tile_stored(3, p.out + p.stripe_floats + kBlockFloats, kPitch);
  }
}

// Four loads and four products a step of 32 columns.
template <bool kTwoBlocks>
inline void run(const Pass& p) {
  start_sums<kTwoBlocks>(p);
  for (int i = 0; i < p.tiles; ++i) {
    _tile_loadd(6, p.panel + i * kTileBytes, kPitch);
    _tile_loadd(4, p.x + i * kTileBytes, kPitch);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, p.panel + (kPanelTiles + i) * kTileBytes, kPitch);
    _tile_dpbf16ps(2, 4, 7);
    if constexpr (kTwoBlocks) {
      _tile_loadd(5, p.x + p.block_bytes + i * kTileBytes, kPitch);
      _tile_dpbf16ps(1, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
  store_sums<kTwoBlocks>(p);
}

// Cells [begin, end) of both stripes.
template <class Tag>
void decode_panel(const TileProduct& product, int64_t begin, int64_t end, uint8_t* panel) {
  constexpr const Format& f = Tag::format;
  for (int s = 0; s < kTileStripes; ++s) {
    const uint8_t* stripe = product.stripes + s * product.stripe_bytes;
    uint8_t* tiles = panel + s * kPanelTiles * kTileBytes;
    for (int64_t i = begin; i < end; ++i) {
      decode_cell<Tag>(stripe + i * f.cell_bytes(), tiles + (i - begin) * f.groups() * kTileBytes);
    }
  }
}

template <class Tag>
void multiply(const TileProduct& product, float* out) {
  constexpr const Format& f = Tag::format;
  constexpr int64_t step = kPanelColumns / f.cell_columns;
  alignas(64) uint8_t panel[kTileStripes * kPanelTiles * kTileBytes];
  const TileRegisters registers;
  const int64_t stripe_floats = static_cast<int64_t>(product.blocks) * kBlockFloats;
  for (int64_t begin = 0; begin < product.n_cells; begin += step) {
    const int64_t end = std::min(product.n_cells, begin + step);
    decode_panel<Tag>(product, begin, end, panel);
    __asm__ volatile("" ::"r"(panel) : "memory");  // some compilers' tile loads do not say that they read it
    Pass pass{panel,
              static_cast<int>(end - begin) * f.groups(),
              product.x + begin * f.groups() * kTileBytes,
              product.block_bytes,
              out,
              stripe_floats,
              begin == 0};
    int block = 0;
    for (; block + 2 <= product.blocks; block += 2) {
      run<true>(pass);
      pass.x += 2 * product.block_bytes;
      pass.out += 2 * kBlockFloats;
    }
    if (block < product.blocks) run<false>(pass);
  }
}

void round(const float* x, uint8_t* line) {
  uint16_t rounded[kGroupColumns];
  for (int i = 0; i < kGroupColumns; ++i) rounded[i] = float_to_bf16(x[i]);
  std::memcpy(line, rounded, sizeof rounded);
}

TilePrimitives make() {
  TilePrimitives p{kLeastTokens, round, {}};
  for_each_format([&p](auto tag) {
    using Tag = decltype(tag);
    p.multiply[static_cast<int>(Tag::format.type)] = multiply<Tag>;
  });
  return p;
}

}  // namespace

const TilePrimitives& tile_primitives() {
  static const TilePrimitives instance = make();
  return instance;
}

}  // namespace trimaran::amx

TRIMARAN_TARGET_END

#endif
