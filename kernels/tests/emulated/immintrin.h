// Stands in for the compiler's immintrin.h: the intrinsics that the AVX-VNNI, AVX-512 and AMX kernels use,
// one lane at a time, as Intel's manual defines them (SDM vol. 2). So their sources run, unchanged, on a CPU
// without these instructions. A name that is not here does not compile: add it.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "quant/half.h"

template <int kBytes>
struct alignas(kBytes) EmulatedVector {
  uint8_t bytes[kBytes];
};
using __m128i = EmulatedVector<16>;
using __m256i = EmulatedVector<32>;
using __m512i = EmulatedVector<64>;
struct __m256 {
  float lane[8];
};
struct __m512 {
  float lane[16];
};
using __m512bh = __m512i;
using __mmask16 = uint16_t;
using __mmask32 = uint32_t;
using __mmask64 = uint64_t;

namespace emulated {

// Vectors as arrays of lanes.
template <class Lane, class Vector>
struct Lanes {
  static constexpr int n = static_cast<int>(sizeof(Vector) / sizeof(Lane));
  Lane lane[n];

  Lanes() = default;
  explicit Lanes(const Vector& v) { std::memcpy(lane, &v, sizeof v); }
  Vector vector() const {
    Vector v;
    std::memcpy(&v, lane, sizeof v);
    return v;
  }
};

template <class Lane, class Vector, class Function>
Vector map(const Vector& a, const Vector& b, Function f) {
  Lanes<Lane, Vector> x(a), y(b);
  for (int i = 0; i < x.n; ++i) x.lane[i] = static_cast<Lane>(f(x.lane[i], y.lane[i]));
  return x.vector();
}

template <class Floats, class Function>
Floats map_floats(const Floats& a, const Floats& b, const Floats& c, Function f) {
  Floats r;
  for (size_t i = 0; i < sizeof(r) / sizeof(float); ++i) r.lane[i] = f(a.lane[i], b.lane[i], c.lane[i]);
  return r;
}

template <class Vector, class Lane>
Vector fill(Lane value) {
  Lanes<Lane, Vector> r;
  for (Lane& lane : r.lane) lane = value;
  return r.vector();
}

template <class Floats>
Floats fill_floats(float value) {
  Floats r;
  for (float& lane : r.lane) lane = value;
  return r;
}

template <class Lane, class Vector>
Vector widen(const __m128i& a) {
  const Lanes<Lane, __m128i> x(a);
  Lanes<int32_t, Vector> r;
  for (int i = 0; i < r.n; ++i) r.lane[i] = x.lane[i];
  return r.vector();
}

template <class Floats, class Vector>
Floats to_floats(const Vector& a) {
  const Lanes<int32_t, Vector> x(a);
  Floats r;
  for (int i = 0; i < x.n; ++i) r.lane[i] = static_cast<float>(x.lane[i]);
  return r;
}

template <class Floats, class Vector>
Floats half_floats(const Vector& a) {
  Floats r;
  for (size_t i = 0; i < sizeof(a) / 2; ++i) r.lane[i] = trimaran::load_f16(a.bytes + 2 * i);
  return r;
}

template <class Vector>
Vector repeat(const __m128i& a) {
  Vector r;
  for (size_t i = 0; i < sizeof r; i += 16) std::memcpy(r.bytes + i, a.bytes, 16);
  return r;
}

// Bytes picked within each 16.
template <class Vector>
Vector shuffle(const Vector& a, const Vector& index) {
  Vector r;
  for (size_t i = 0; i < sizeof r; ++i) {
    const uint8_t from = index.bytes[i];
    r.bytes[i] = (from & 0x80) != 0 ? uint8_t{0} : a.bytes[i / 16 * 16 + (from & 15)];
  }
  return r;
}

template <class Vector>
Vector madd_pairs(const Vector& a, const Vector& b) {
  const Lanes<int16_t, Vector> x(a), y(b);
  Lanes<int32_t, Vector> r;
  for (int i = 0; i < r.n; ++i) {
    r.lane[i] = x.lane[2 * i] * y.lane[2 * i] + x.lane[2 * i + 1] * y.lane[2 * i + 1];
  }
  return r.vector();
}

template <class Vector>
Vector dot_bytes(const Vector& sum, const Vector& a, const Vector& b) {
  const Lanes<uint8_t, Vector> x(a);
  const Lanes<int8_t, Vector> y(b);
  Lanes<int32_t, Vector> r(sum);
  for (int i = 0; i < x.n; ++i) r.lane[i / 4] += x.lane[i] * y.lane[i];
  return r.vector();
}

inline int saturate_16(int value) { return value > 32767 ? 32767 : value < -32768 ? -32768 : value; }

template <class Vector>
Vector load(const void* p) {
  Vector v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

}  // namespace emulated

inline __m128i _mm_loadu_si128(const __m128i* p) { return emulated::load<__m128i>(p); }
inline __m256i _mm256_loadu_si256(const __m256i* p) { return emulated::load<__m256i>(p); }
inline __m512i _mm512_loadu_si512(const void* p) { return emulated::load<__m512i>(p); }
inline __m512 _mm512_loadu_ps(const void* p) { return emulated::load<__m512>(p); }
inline void _mm512_storeu_ps(void* p, __m512 v) { std::memcpy(p, &v, sizeof v); }
inline void _mm512_storeu_si512(void* p, __m512i v) { std::memcpy(p, &v, sizeof v); }

inline __m512i _mm512_setzero_si512() { return emulated::fill<__m512i>(int32_t{0}); }
inline __m512i _mm512_set1_epi8(char value) { return emulated::fill<__m512i>(value); }
inline __m512i _mm512_set1_epi16(short value) { return emulated::fill<__m512i>(value); }
inline __m512i _mm512_set1_epi32(int value) { return emulated::fill<__m512i>(value); }
inline __m512 _mm512_set1_ps(float value) { return emulated::fill_floats<__m512>(value); }
inline __m512 _mm512_setzero_ps() { return _mm512_set1_ps(0.0f); }

inline __m512i _mm512_and_si512(__m512i a, __m512i b) {
  return emulated::map<uint64_t>(a, b, [](uint64_t x, uint64_t y) { return x & y; });
}
inline __m512i _mm512_or_si512(__m512i a, __m512i b) {
  return emulated::map<uint64_t>(a, b, [](uint64_t x, uint64_t y) { return x | y; });
}
inline __m512i _mm512_xor_si512(__m512i a, __m512i b) {
  return emulated::map<uint64_t>(a, b, [](uint64_t x, uint64_t y) { return x ^ y; });
}
inline __m512i _mm512_srli_epi16(__m512i a, unsigned n) {
  return emulated::map<uint16_t>(a, a, [n](unsigned x, unsigned) { return x >> n; });
}
inline __m512i _mm512_slli_epi16(__m512i a, unsigned n) {
  return emulated::map<uint16_t>(a, a, [n](unsigned x, unsigned) { return x << n; });
}
inline __m512i _mm512_srli_epi32(__m512i a, unsigned n) {
  return emulated::map<uint32_t>(a, a, [n](uint32_t x, uint32_t) { return x >> n; });
}
inline __m512i _mm512_slli_epi32(__m512i a, unsigned n) {
  return emulated::map<uint32_t>(a, a, [n](uint32_t x, uint32_t) { return x << n; });
}
inline __m512i _mm512_add_epi16(__m512i a, __m512i b) {
  return emulated::map<uint16_t>(a, b, [](unsigned x, unsigned y) { return x + y; });
}
inline __m512i _mm512_add_epi32(__m512i a, __m512i b) {
  return emulated::map<uint32_t>(a, b, [](uint32_t x, uint32_t y) { return x + y; });
}
inline __m512i _mm512_mullo_epi16(__m512i a, __m512i b) {
  return emulated::map<uint16_t>(a, b, [](unsigned x, unsigned y) { return x * y; });
}
inline __m512i _mm512_abs_epi8(__m512i a) {
  return emulated::map<int8_t>(a, a, [](int x, int) { return x < 0 ? -x : x; });
}

inline __m512i _mm512_broadcast_i32x4(__m128i a) { return emulated::repeat<__m512i>(a); }
inline __m512i _mm512_shuffle_epi8(__m512i a, __m512i index) { return emulated::shuffle(a, index); }
inline __mmask64 _mm512_movepi8_mask(__m512i a) {
  __mmask64 mask = 0;
  for (int i = 0; i < 64; ++i) mask |= static_cast<__mmask64>(a.bytes[i] >> 7) << i;
  return mask;
}
inline __m512i _mm512_mask_sub_epi8(__m512i src, __mmask64 mask, __m512i a, __m512i b) {
  for (int i = 0; i < 64; ++i) {
    if ((mask >> i & 1) != 0) src.bytes[i] = static_cast<uint8_t>(a.bytes[i] - b.bytes[i]);
  }
  return src;
}
inline __m512i _mm512_mask_blend_epi16(__mmask32 mask, __m512i a, __m512i b) {
  emulated::Lanes<uint16_t, __m512i> x(a), y(b);
  for (int i = 0; i < 32; ++i) x.lane[i] = (mask >> i & 1) != 0 ? y.lane[i] : x.lane[i];
  return x.vector();
}

inline __m512i _mm512_ternarylogic_epi32(__m512i a, __m512i b, __m512i c, int table) {
  using Lanes = emulated::Lanes<uint64_t, __m512i>;
  const Lanes x(a), y(b), z(c);
  Lanes r(emulated::fill<__m512i>(uint64_t{0}));
  for (int i = 0; i < r.n; ++i) {
    for (int row = 0; row < 8; ++row) {
      if ((table >> row & 1) == 0) continue;
      r.lane[i] |= ((row & 4) != 0 ? x.lane[i] : ~x.lane[i]) & ((row & 2) != 0 ? y.lane[i] : ~y.lane[i]) &
                   ((row & 1) != 0 ? z.lane[i] : ~z.lane[i]);
    }
  }
  return r.vector();
}
inline __m512i _mm512_permutexvar_epi16(__m512i index, __m512i table) {
  emulated::Lanes<uint16_t, __m512i> from(index), words(table);
  for (uint16_t& lane : from.lane) lane = words.lane[lane & 31];
  return from.vector();
}
inline __m256i _mm512_castsi512_si256(__m512i a) { return emulated::load<__m256i>(&a); }
inline __m256i _mm512_extracti64x4_epi64(__m512i a, int half) {
  return emulated::load<__m256i>(a.bytes + 32 * half);
}
inline __m512i _mm512_cvtepu16_epi32(__m256i a) {
  const emulated::Lanes<uint16_t, __m256i> x(a);
  emulated::Lanes<uint32_t, __m512i> r;
  for (int i = 0; i < 16; ++i) r.lane[i] = x.lane[i];
  return r.vector();
}
// Denormal numbers become zero, as the instruction has it.
inline __m512bh _mm512_cvtne2ps_pbh(__m512 upper, __m512 lower) {
  emulated::Lanes<uint16_t, __m512i> r;
  for (int i = 0; i < 32; ++i) {
    const float value = i < 16 ? lower.lane[i] : upper.lane[i - 16];
    r.lane[i] = trimaran::float_to_bf16(std::fpclassify(value) == FP_SUBNORMAL ? 0.0f * value : value);
  }
  return r.vector();
}

inline __m512i _mm512_maddubs_epi16(__m512i a, __m512i b) {
  const emulated::Lanes<uint8_t, __m512i> x(a);
  const emulated::Lanes<int8_t, __m512i> y(b);
  emulated::Lanes<int16_t, __m512i> r;
  for (int i = 0; i < 32; ++i) {
    const int sum = x.lane[2 * i] * y.lane[2 * i] + x.lane[2 * i + 1] * y.lane[2 * i + 1];
    r.lane[i] = static_cast<int16_t>(emulated::saturate_16(sum));
  }
  return r.vector();
}
inline __m512i _mm512_madd_epi16(__m512i a, __m512i b) { return emulated::madd_pairs(a, b); }
inline __m512i _mm512_dpbusd_epi32(__m512i sum, __m512i a, __m512i b) {
  return emulated::dot_bytes(sum, a, b);
}

inline __m512i _mm512_cvtepi8_epi32(__m128i a) { return emulated::widen<int8_t, __m512i>(a); }
inline __m512i _mm512_cvtepu8_epi32(__m128i a) { return emulated::widen<uint8_t, __m512i>(a); }
inline __m512 _mm512_cvtepi32_ps(__m512i a) { return emulated::to_floats<__m512>(a); }
inline __m512 _mm512_cvtph_ps(__m256i a) { return emulated::half_floats<__m512>(a); }
inline __m512 _mm512_castsi512_ps(__m512i a) { return emulated::load<__m512>(&a); }
inline __m512i _mm512_castps_si512(__m512 a) { return emulated::load<__m512i>(&a); }

inline __m512 _mm512_mul_ps(__m512 a, __m512 b) {
  return emulated::map_floats(a, b, b, [](float x, float y, float) { return x * y; });
}
inline __m512 _mm512_add_ps(__m512 a, __m512 b) {
  return emulated::map_floats(a, b, b, [](float x, float y, float) { return x + y; });
}
inline __m512 _mm512_sub_ps(__m512 a, __m512 b) {
  return emulated::map_floats(a, b, b, [](float x, float y, float) { return x - y; });
}
inline __m512 _mm512_div_ps(__m512 a, __m512 b) {
  return emulated::map_floats(a, b, b, [](float x, float y, float) { return x / y; });
}
inline __m512 _mm512_max_ps(__m512 a, __m512 b) {
  return emulated::map_floats(a, b, b, [](float x, float y, float) { return x > y ? x : y; });
}
inline __m512 _mm512_min_ps(__m512 a, __m512 b) {
  return emulated::map_floats(a, b, b, [](float x, float y, float) { return x < y ? x : y; });
}
constexpr int _MM_FROUND_TO_NEAREST_INT = 0;
constexpr int _MM_FROUND_NO_EXC = 8;
inline __m512 _mm512_roundscale_ps(__m512 a, int mode) {
  if (mode != _MM_FROUND_NO_EXC) std::abort();
  return emulated::map_floats(a, a, a, [](float x, float, float) { return std::nearbyint(x); });
}
inline __m512i _mm512_cvtps_epi32(__m512 a) {
  emulated::Lanes<int32_t, __m512i> r;
  for (int i = 0; i < 16; ++i) r.lane[i] = static_cast<int32_t>(std::nearbyint(a.lane[i]));
  return r.vector();
}
inline float _mm512_reduce_add_ps(__m512 a) {
  float sum = 0;
  for (const float lane : a.lane) sum += lane;
  return sum;
}
inline __m512 _mm512_fmadd_ps(__m512 a, __m512 b, __m512 c) {
  return emulated::map_floats(a, b, c, [](float x, float y, float z) { return std::fma(x, y, z); });
}
inline __m512 _mm512_fnmadd_ps(__m512 a, __m512 b, __m512 c) {
  return emulated::map_floats(a, b, c, [](float x, float y, float z) { return std::fma(-x, y, z); });
}
inline __m512 _mm512_fmsub_ps(__m512 a, __m512 b, __m512 c) {
  return emulated::map_floats(a, b, c, [](float x, float y, float z) { return std::fma(x, y, -z); });
}

// 256 bits: what the AVX-VNNI kernels use.

inline __m128i _mm_loadl_epi64(const __m128i* p) {
  __m128i v{};
  std::memcpy(v.bytes, p, 8);
  return v;
}
inline void _mm256_store_si256(__m256i* p, __m256i v) { std::memcpy(p, &v, sizeof v); }
inline __m256 _mm256_loadu_ps(const void* p) { return emulated::load<__m256>(p); }
inline void _mm256_storeu_ps(void* p, __m256 v) { std::memcpy(p, &v, sizeof v); }
inline __m256i _mm256_setzero_si256() { return emulated::fill<__m256i>(int32_t{0}); }
inline __m256i _mm256_set1_epi8(char value) { return emulated::fill<__m256i>(value); }
inline __m256i _mm256_set1_epi16(short value) { return emulated::fill<__m256i>(value); }
inline __m256i _mm256_set1_epi32(int value) { return emulated::fill<__m256i>(value); }
inline __m256 _mm256_set1_ps(float value) { return emulated::fill_floats<__m256>(value); }
inline __m256 _mm256_setzero_ps() { return emulated::fill_floats<__m256>(0.0f); }
inline __m256i _mm256_broadcastsi128_si256(__m128i a) { return emulated::repeat<__m256i>(a); }
inline __m256i _mm256_shuffle_epi8(__m256i a, __m256i index) { return emulated::shuffle(a, index); }
inline __m256i _mm256_and_si256(__m256i a, __m256i b) {
  return emulated::map<uint64_t>(a, b, [](uint64_t x, uint64_t y) { return x & y; });
}
inline __m256i _mm256_or_si256(__m256i a, __m256i b) {
  return emulated::map<uint64_t>(a, b, [](uint64_t x, uint64_t y) { return x | y; });
}
inline __m256i _mm256_xor_si256(__m256i a, __m256i b) {
  return emulated::map<uint64_t>(a, b, [](uint64_t x, uint64_t y) { return x ^ y; });
}
inline __m256i _mm256_srli_epi16(__m256i a, int n) {
  return emulated::map<uint16_t>(a, a, [n](unsigned x, unsigned) { return x >> n; });
}
inline __m256i _mm256_slli_epi16(__m256i a, int n) {
  return emulated::map<uint16_t>(a, a, [n](unsigned x, unsigned) { return x << n; });
}
inline __m256i _mm256_srli_epi32(__m256i a, int n) {
  return emulated::map<uint32_t>(a, a, [n](uint32_t x, uint32_t) { return x >> n; });
}
inline __m256i _mm256_madd_epi16(__m256i a, __m256i b) { return emulated::madd_pairs(a, b); }
inline __m256i _mm256_dpbusd_avx_epi32(__m256i sum, __m256i a, __m256i b) {
  return emulated::dot_bytes(sum, a, b);
}
inline __m256i _mm256_cvtepi8_epi32(__m128i a) { return emulated::widen<int8_t, __m256i>(a); }
inline __m256i _mm256_cvtepu8_epi32(__m128i a) { return emulated::widen<uint8_t, __m256i>(a); }
inline __m256 _mm256_cvtepi32_ps(__m256i a) { return emulated::to_floats<__m256>(a); }
inline __m256 _mm256_cvtph_ps(__m128i a) { return emulated::half_floats<__m256>(a); }
inline __m256 _mm256_mul_ps(__m256 a, __m256 b) {
  return emulated::map_floats(a, b, b, [](float x, float y, float) { return x * y; });
}
inline __m256 _mm256_fmadd_ps(__m256 a, __m256 b, __m256 c) {
  return emulated::map_floats(a, b, c, [](float x, float y, float z) { return std::fma(x, y, z); });
}
inline __m256 _mm256_fnmadd_ps(__m256 a, __m256 b, __m256 c) {
  return emulated::map_floats(a, b, c, [](float x, float y, float z) { return std::fma(-x, y, z); });
}

// AMX: eight tiles a thread, with the shapes that the configuration names.
namespace emulated {

struct Tile {
  int rows = 0;
  int row_bytes = 0;
  uint8_t bytes[16][64] = {};
};
inline thread_local Tile tiles[8];

inline float bf16_at(const uint8_t* p) { return trimaran::bf16_to_float(trimaran::load_u16(p)); }

}  // namespace emulated

inline void _tile_release() {
  for (emulated::Tile& tile : emulated::tiles) tile = {};
}
inline void _tile_loadconfig(const void* config) {
  const auto* bytes = static_cast<const uint8_t*>(config);
  if (bytes[0] != 1) std::abort();
  for (int i = 0; i < 8; ++i) {
    emulated::tiles[i] = {};
    emulated::tiles[i].row_bytes = trimaran::load_u16(bytes + 16 + 2 * i);
    emulated::tiles[i].rows = bytes[48 + i];
  }
}
inline void _tile_zero(int t) { std::memset(emulated::tiles[t].bytes, 0, sizeof emulated::tiles[t].bytes); }
inline void _tile_loadd(int t, const void* base, long pitch) {
  emulated::Tile& tile = emulated::tiles[t];
  if (tile.rows == 0) std::abort();
  _tile_zero(t);
  for (int r = 0; r < tile.rows; ++r) {
    std::memcpy(tile.bytes[r], static_cast<const uint8_t*>(base) + r * pitch,
                static_cast<size_t>(tile.row_bytes));
  }
}
inline void _tile_stored(int t, void* base, long pitch) {
  const emulated::Tile& tile = emulated::tiles[t];
  if (tile.rows == 0) std::abort();
  for (int r = 0; r < tile.rows; ++r) {
    std::memcpy(static_cast<uint8_t*>(base) + r * pitch, tile.bytes[r], static_cast<size_t>(tile.row_bytes));
  }
}
inline void _tile_dpbf16ps(int sum, int a, int b) {
  emulated::Tile& c = emulated::tiles[sum];
  for (int m = 0; m < c.rows; ++m) {
    for (int n = 0; n < c.row_bytes / 4; ++n) {
      float even = 0, odd = 0, total;
      for (int k = 0; k < emulated::tiles[a].row_bytes / 4; ++k) {
        const uint8_t* x = emulated::tiles[a].bytes[m] + 4 * k;
        const uint8_t* w = emulated::tiles[b].bytes[k] + 4 * n;
        even = std::fma(emulated::bf16_at(x), emulated::bf16_at(w), even);
        odd = std::fma(emulated::bf16_at(x + 2), emulated::bf16_at(w + 2), odd);
      }
      std::memcpy(&total, c.bytes[m] + 4 * n, sizeof total);
      total += even + odd;
      std::memcpy(c.bytes[m] + 4 * n, &total, sizeof total);
    }
  }
}

#include "masks.h"
