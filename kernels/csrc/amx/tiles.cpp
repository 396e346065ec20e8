#include "amx/tiles.h"

#if defined(__x86_64__)

#include <immintrin.h>

#include <algorithm>

#include "amx/activations.h"
#include "amx/panel.h"
#include "amx/registers.h"
#include "amx/scheme.h"
#include "isa/target.h"
#include "packed/ahead.h"

TRIMARAN_TARGET_BEGIN("amx-tile,amx-bf16,avx512f,avx512bw,avx512vl,avx2,fma,f16c")

namespace trimaran::amx {
namespace {

// Steps whose coefficients are decoded at a time: at most 2 stripes × 16 tiles = 32 KiB.
constexpr int kCoefficientSteps = 8;

// Products whose sums wait in the first-level cache to be scaled: 16 KiB for one block or two.
template <int kBlocks>
constexpr int kWaiting = kStepGroups / kBlocks;

int step_groups(const Format& f, int64_t n_cells, int64_t step) {
  return static_cast<int>(std::min<int64_t>(kStepGroups, n_cells * f.groups() - step * kStepGroups));
}

// The caller's view of one or two blocks at one step.
struct Blocks {
  const uint8_t* x;  // of the first block
  int64_t block_bytes;
  float* out;  // of stripe 0 and the first block
  int64_t stripe_floats;
};

// Calls run<2> or run<1> for pairs of blocks, and for what is left.
template <class Run>
inline void for_blocks(const TileProduct& product, int64_t step, float* out, const Run& run) {
  const int64_t stripe_floats = static_cast<int64_t>(product.blocks) * kSumFloats;
  Blocks blocks{product.x + step * StepLayout{product.terms}.bytes(), product.block_bytes, out,
                stripe_floats};
  int block = 0;
  for (; block + 2 <= product.blocks; block += 2) {
    run.template pass<2>(blocks);
    blocks.x += 2 * product.block_bytes;
    blocks.out += 2 * kSumFloats;
  }
  if (block < product.blocks) run.template pass<1>(blocks);
}

// out (+)= Σ coefficients · sums of activations, chained through some steps.

struct CoefficientPass {
  const uint8_t (*tiles)[kCoefficientSteps * 2][kTileBytes];  // [stripe][tile]
  int n_steps;
  int tiles_a_step;
  StepLayout layout;
  bool first;

  template <int kBlocks>
  void pass(const Blocks& b) const {
    if (first) {
      clear_sums<kBlocks>();
    } else {
      load_sums<kBlocks>(b.out, b.stripe_floats);
    }
    const int sums_at = tiles_a_step == 1 ? layout.group_sums() : layout.half_sums();
    for (int step = 0; step < n_steps; ++step) {
      for (int i = 0; i < tiles_a_step; ++i) {
        const int tile = step * tiles_a_step + i;
        load_weights(tiles[0][tile], tiles[1][tile]);
        add_products<kBlocks>(b.x + step * layout.bytes() + (sums_at + i) * kTileBytes, b.block_bytes);
      }
    }
    store_sums<kBlocks>(b.out, b.stripe_floats);
  }
};

// Steps [begin, begin + kCoefficientSteps).
template <class Tag>
void add_coefficients(const TileProduct& product, int64_t begin, float* out) {
  constexpr const Format& f = Tag::format;
  constexpr int cells_a_step = kStepColumns / f.cell_columns;
  constexpr int scales_a_step = kStepColumns / f.scale_columns;
  alignas(64) uint8_t tiles[kTileStripes][kCoefficientSteps * 2][kTileBytes];
  const int64_t first = begin * cells_a_step;
  const int64_t end = std::min<int64_t>(product.n_cells, first + kCoefficientSteps * cells_a_step);
  const int steps = static_cast<int>(end - first + cells_a_step - 1) / cells_a_step;
  for (int s = 0; s < kTileStripes; ++s) {
    const int64_t used = (end - first) * f.scales() * 2 * kLineBytes;
    std::fill_n(tiles[s][0] + used, steps * scales_a_step * 2 * kLineBytes - used, uint8_t{0});
    const uint8_t* cell = product.stripes + s * product.stripe_bytes + first * f.cell_bytes();
    for (int64_t i = first; i < end; ++i, cell += f.cell_bytes()) {
      decode_coefficients<Tag>(cell, static_cast<int>(i - first) * f.scales(), tiles[s][0]);
    }
  }
  __asm__ volatile("" ::"r"(tiles) : "memory");  // some compilers' tile loads do not say that they read it
  const CoefficientPass pass{tiles, steps, coefficient_tiles(f), StepLayout{product.terms}, begin == 0};
  for_blocks(product, begin, out, pass);
}

// out += weights · activations of one step, through sums that are scaled.

// out[vector][row] += Σ over i < n of sums[i][vector][row] · scales[i][row].
inline void add_scaled(const float* sums, int64_t pitch, const float (*scales)[kStripeRows], int n,
                       float* out) {
  __m512 total[kBlockVectors];
  for (int v = 0; v < kBlockVectors; ++v) total[v] = _mm512_loadu_ps(out + v * kStripeRows);
  for (int i = 0; i < n; ++i, sums += pitch) {
    const __m512 scale = _mm512_loadu_ps(scales[i]);
    for (int v = 0; v < kBlockVectors; ++v) {
      total[v] = _mm512_fmadd_ps(_mm512_loadu_ps(sums + v * kStripeRows), scale, total[v]);
    }
  }
  for (int v = 0; v < kBlockVectors; ++v) _mm512_storeu_ps(out + v * kStripeRows, total[v]);
}

template <int kTerms, int kPlanes, bool kDeferred>
struct ScaledPass {
  const StripePanel<kPlanes>* panels;  // [stripe]
  int groups;

  template <int kBlocks>
  void add_group(const Blocks& b, int g) const {
    constexpr StepLayout layout{kTerms};
    for (int plane = 0; plane < kPlanes; ++plane) {
      load_weights(panels[0].tiles[g * kPlanes + plane], panels[1].tiles[g * kPlanes + plane]);
      for (int term = 0; term < kTerms; ++term) {
        add_products<kBlocks>(b.x + layout.tile(g, term) * kTileBytes, b.block_bytes);
      }
    }
  }

  // waiting: [product][stripe][block] tiles, of which the last `n` products are done.
  template <int kBlocks>
  void scale(const Blocks& b, const float* waiting, int first, int n) const {
    constexpr int64_t pitch = kTileStripes * kBlocks * kSumFloats;
    for (int s = 0; s < kTileStripes; ++s) {
      for (int i = 0; i < kBlocks; ++i) {
        add_scaled(waiting + (s * kBlocks + i) * kSumFloats, pitch, panels[s].scales + first, n,
                   b.out + s * b.stripe_floats + i * kSumFloats);
      }
    }
  }

  template <int kBlocks>
  void pass(const Blocks& b) const {
    alignas(64) float waiting[kWaiting<kBlocks>][kTileStripes * kBlocks * kSumFloats];
    if constexpr (kDeferred) {
      for (int first = 0; first < groups; first += kWaiting<kBlocks>) {
        const int n = std::min(kWaiting<kBlocks>, groups - first);
        for (int i = 0; i < n; ++i) {
          clear_sums<kBlocks>();
          add_group<kBlocks>(b, first + i);
          store_sums<kBlocks>(waiting[i], kBlocks * kSumFloats);
        }
        scale<kBlocks>(b, waiting[0], first, n);
      }
    } else {
      clear_sums<kBlocks>();
      for (int g = 0; g < groups; ++g) add_group<kBlocks>(b, g);
      store_sums<kBlocks>(waiting[0], kBlocks * kSumFloats);
      scale<kBlocks>(b, waiting[0], 0, 1);
    }
  }
};

// What is read ahead during cell i: all of a cell soon to come, and the scales that the next coefficients
// need.
template <class Tag>
struct Reading {
  Ahead ahead;

  void prefetch_scales(int64_t i) const {
    constexpr const Format& f = Tag::format;
    constexpr int distance = kCoefficientSteps * (kStepColumns / f.cell_columns);
    const uint8_t* cell = ahead.cell(i + distance);
    for (int at = f.scales_at(); at < f.cell_bytes(); at += kCacheLineBytes)
      __builtin_prefetch(cell + at, 0, 2);
  }
};

template <class Tag, int kPlanes>
void decode_panel(const TileProduct& product, int stripe, int64_t first, int64_t end,
                  StripePanel<kPlanes>& panel) {
  constexpr const Format& f = Tag::format;
  const uint8_t* cells = product.stripes + stripe * product.stripe_bytes;
  const uint8_t* after =
      product.next != nullptr ? product.next : product.stripes + kTileStripes * product.stripe_bytes;
  const Reading<Tag> reading{Ahead(f, cells, product.n_cells, after + stripe * product.stripe_bytes)};
  for (int64_t i = first; i < end; ++i) {
    if constexpr (has_coefficients(f)) reading.prefetch_scales(i);
    decode_cell<Tag, kPlanes>(cells + i * f.cell_bytes(), reading.ahead.at(i),
                              static_cast<int>(i - first) * f.groups(), panel);
  }
}

// Steps [begin, begin + kCoefficientSteps).
template <class Tag, int kTerms>
void add_steps(const TileProduct& product, int64_t begin, float* out) {
  constexpr const Format& f = Tag::format;
  constexpr int kPlanes = kTerms > 1 && !is_exact(f) ? 2 : 1;
  constexpr int64_t cells_a_step = kStepColumns / f.cell_columns;
  StripePanel<kPlanes> panels[kTileStripes];
  for (int64_t step = begin; step < begin + kCoefficientSteps && step * cells_a_step < product.n_cells;
       ++step) {
    const int64_t first = step * cells_a_step;
    const int64_t end = std::min(product.n_cells, first + cells_a_step);
    for (int s = 0; s < kTileStripes; ++s) decode_panel<Tag, kPlanes>(product, s, first, end, panels[s]);
    __asm__ volatile("" ::"r"(panels) : "memory");
    const ScaledPass<kTerms, kPlanes, defers_scales(f)> pass{panels, step_groups(f, product.n_cells, step)};
    for_blocks(product, step, out, pass);
  }
}

template <class Tag>
void multiply(const TileProduct& product, float* out) {
  constexpr const Format& f = Tag::format;
  constexpr int64_t cells_a_step = kStepColumns / f.cell_columns;
  const TileRegisters registers;
  if constexpr (!has_coefficients(f)) {
    std::fill_n(out, int64_t{kTileStripes} * product.blocks * kSumFloats, 0.0f);
  }
  for (int64_t begin = 0; begin * cells_a_step < product.n_cells; begin += kCoefficientSteps) {
    if constexpr (has_coefficients(f)) add_coefficients<Tag>(product, begin, out);
    if (product.terms == 1) {
      add_steps<Tag, 1>(product, begin, out);
    } else {
      add_steps<Tag, 2>(product, begin, out);
    }
  }
}

// Break-even with dot products (docs/kernels/wide.md): decoding codes takes a third of decoding numbers.
constexpr int least_tokens(const Format& f) { return defers_scales(f) && f.kind != CodeKind::bytes ? 6 : 10; }

TilePrimitives make() {
  TilePrimitives p{{}, round, {}};
  for_each_format([&p](auto tag) {
    using Tag = decltype(tag);
    p.least_tokens[static_cast<int>(Tag::format.type)] = least_tokens(Tag::format);
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
