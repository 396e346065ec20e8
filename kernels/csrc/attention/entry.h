// How a token's latent and rotated key lie in the cache.
#pragma once

#include <cstddef>
#include <cstdint>

namespace trimaran {

// f32, bf16: latent + rope values. fp8 (E4M3), int8: latent codes, then a float32 scale for each kScaleGroup
// of them, then the rotated key as bf16: rounding it would move every score.
enum class EntryFormat : int32_t { f32 = 0, bf16 = 1, fp8 = 2, int8 = 3 };
constexpr int kEntryFormats = 4;
constexpr int kScaleGroup = 128;

struct EntryShape {
  EntryFormat format;
  int latent;
  int rope;

  static int padded(int n) { return (n + 7) / 8 * 8; }
  int padded_latent() const { return padded(latent); }
  int padded_rope() const { return padded(rope); }
  int width() const { return padded_latent() + padded_rope(); }
  bool quantised() const { return format == EntryFormat::fp8 || format == EntryFormat::int8; }
  int groups() const { return (latent + kScaleGroup - 1) / kScaleGroup; }
  size_t scales_at() const { return static_cast<size_t>((latent + 3) / 4 * 4); }
  size_t rope_at() const { return scales_at() + static_cast<size_t>(groups()) * sizeof(float); }
  size_t bytes() const {
    const auto values = static_cast<size_t>(latent + rope);
    if (format == EntryFormat::f32) return values * 4;
    if (format == EntryFormat::bf16) return values * 2;
    return (rope_at() + static_cast<size_t>(rope) * 2 + 3) / 4 * 4;
  }
};

// Writes one entry from its values; the reference of all decoders is `decode_entry`. Codes are rounded to
// nearest, ties to even, with scales of the group's largest magnitude over 448 (fp8) or 127 (int8). A group
// that is not finite decodes to NaN.
void encode_entry(const EntryShape& shape, const float* latent, const float* rope, uint8_t* entry);
void decode_entry(const EntryShape& shape, const uint8_t* entry, float* dst);

// Float of an E4M3 code (arXiv 2209.05433), and the nearest code of a value within ±448.
float fp8_to_float(uint8_t code);
uint8_t float_to_fp8(float value);

}  // namespace trimaran
