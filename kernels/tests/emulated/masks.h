// The emulated instructions of 512 bits that take or make masks, and those that move lanes about. Part of
// immintrin.h.
#pragma once

namespace emulated {

inline bool chosen(__mmask16 mask, int lane) { return (mask >> lane & 1) != 0; }

// Lanes that are not chosen are neither read nor written, and zero in the result.
template <class Lane, class Vector>
Vector load_chosen(__mmask16 mask, const void* p) {
  Lanes<Lane, Vector> r(fill<Vector>(int32_t{0}));
  for (int i = 0; i < r.n; ++i) {
    if (chosen(mask, i)) std::memcpy(&r.lane[i], static_cast<const Lane*>(p) + i, sizeof(Lane));
  }
  return r.vector();
}

template <class Function>
__mmask16 compare(Function f) {
  unsigned mask = 0;
  for (int i = 0; i < 16; ++i) mask |= static_cast<unsigned>(f(i)) << i;
  return static_cast<__mmask16>(mask);
}

// Within each 128 bits two lanes of a, then two of b.
template <class Pick>
__m512 pick_in_quarters(const __m512& a, const __m512& b, Pick lane) {
  __m512 r;
  for (int i = 0; i < 16; ++i) r.lane[i] = lane(a.lane + i / 4 * 4, b.lane + i / 4 * 4, i % 4);
  return r;
}

}  // namespace emulated

inline __m512 _mm512_maskz_loadu_ps(__mmask16 mask, const void* p) {
  const auto bits = emulated::load_chosen<uint32_t, __m512i>(mask, p);
  return emulated::load<__m512>(&bits);
}
inline __m512i _mm512_maskz_loadu_epi32(__mmask16 mask, const void* p) {
  return emulated::load_chosen<uint32_t, __m512i>(mask, p);
}
inline __m256i _mm256_maskz_loadu_epi16(__mmask16 mask, const void* p) {
  return emulated::load_chosen<uint16_t, __m256i>(mask, p);
}
inline void _mm512_mask_storeu_ps(void* p, __mmask16 mask, __m512 v) {
  for (int i = 0; i < 16; ++i) {
    if (emulated::chosen(mask, i)) std::memcpy(static_cast<float*>(p) + i, &v.lane[i], sizeof(float));
  }
}

constexpr int _CMP_NEQ_UQ = 4;
constexpr int _CMP_NLT_UQ = 21;
inline __mmask16 _mm512_cmp_ps_mask(__m512 a, __m512 b, int relation) {
  if (relation == _CMP_NEQ_UQ) {
    return emulated::compare([&](int i) { return !(a.lane[i] == b.lane[i]); });
  }
  if (relation != _CMP_NLT_UQ) std::abort();
  return emulated::compare([&](int i) { return !(a.lane[i] < b.lane[i]); });
}
inline __mmask16 _mm512_mask_cmp_ps_mask(__mmask16 mask, __m512 a, __m512 b, int relation) {
  return mask & _mm512_cmp_ps_mask(a, b, relation);
}
inline __mmask16 _mm512_cmpgt_epi32_mask(__m512i a, __m512i b) {
  const emulated::Lanes<int32_t, __m512i> x(a), y(b);
  return emulated::compare([&](int i) { return x.lane[i] > y.lane[i]; });
}
inline __m512 _mm512_mask_mul_ps(__m512 src, __mmask16 mask, __m512 a, __m512 b) {
  for (int i = 0; i < 16; ++i) {
    if (emulated::chosen(mask, i)) src.lane[i] = a.lane[i] * b.lane[i];
  }
  return src;
}
// a · 2^⌊b⌋.
inline __m512 _mm512_maskz_scalef_ps(__mmask16 mask, __m512 a, __m512 b) {
  __m512 r = _mm512_setzero_ps();
  for (int i = 0; i < 16; ++i) {
    if (!emulated::chosen(mask, i)) continue;
    const bool is_nan = std::isnan(a.lane[i]) || std::isnan(b.lane[i]);
    r.lane[i] = is_nan ? NAN : std::ldexp(a.lane[i], static_cast<int>(std::floor(b.lane[i])));
  }
  return r;
}

inline __m512 _mm512_unpacklo_ps(__m512 a, __m512 b) {
  return emulated::pick_in_quarters(
      a, b, [](const float* x, const float* y, int i) { return i % 2 == 0 ? x[i / 2] : y[i / 2]; });
}
inline __m512 _mm512_unpackhi_ps(__m512 a, __m512 b) {
  return emulated::pick_in_quarters(
      a, b, [](const float* x, const float* y, int i) { return i % 2 == 0 ? x[2 + i / 2] : y[2 + i / 2]; });
}
inline __m512 _mm512_shuffle_ps(__m512 a, __m512 b, int choice) {
  return emulated::pick_in_quarters(a, b, [choice](const float* x, const float* y, int i) {
    const int from = choice >> 2 * i & 3;
    return i < 2 ? x[from] : y[from];
  });
}
inline __m512i _mm512_set_epi64(int64_t e7, int64_t e6, int64_t e5, int64_t e4, int64_t e3, int64_t e2,
                                int64_t e1, int64_t e0) {
  const int64_t lanes[8] = {e0, e1, e2, e3, e4, e5, e6, e7};
  return emulated::load<__m512i>(lanes);
}
inline __m512i _mm512_permutex2var_epi64(__m512i a, __m512i index, __m512i b) {
  const emulated::Lanes<uint64_t, __m512i> x(a), y(b);
  emulated::Lanes<uint64_t, __m512i> r(index);
  for (uint64_t& lane : r.lane) lane = ((lane & 8) != 0 ? y : x).lane[lane & 7];
  return r.vector();
}
inline __m512i _mm512_zextsi256_si512(__m256i a) {
  __m512i r{};
  std::memcpy(r.bytes, a.bytes, sizeof a);
  return r;
}
inline __m512i _mm512_inserti64x4(__m512i a, __m256i b, int half) {
  std::memcpy(a.bytes + 32 * half, b.bytes, sizeof b);
  return a;
}
inline __m256i _mm256_cvtepu8_epi16(__m128i a) {
  emulated::Lanes<uint16_t, __m256i> r;
  for (int i = 0; i < 16; ++i) r.lane[i] = a.bytes[i];
  return r.vector();
}
