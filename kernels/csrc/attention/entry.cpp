#include "attention/entry.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "quant/half.h"

namespace trimaran {
namespace {

constexpr float kLargestFp8 = 448.0f;
constexpr float kLargestInt8 = 127.0f;

float largest(const float* values, int n) {
  float most = 0;
  for (int i = 0; i < n; ++i) {
    const float magnitude = std::fabs(values[i]);
    if (!(magnitude <= most)) most = magnitude;  // keeps a NaN
    if (std::isnan(most)) break;
  }
  return most;
}

uint8_t code_of(EntryFormat format, float value) {
  if (format == EntryFormat::fp8) return float_to_fp8(value);
  return static_cast<uint8_t>(static_cast<int8_t>(std::nearbyint(value)));
}

float value_of(EntryFormat format, uint8_t code) {
  return format == EntryFormat::fp8 ? fp8_to_float(code) : static_cast<float>(static_cast<int8_t>(code));
}

void encode_group(EntryFormat format, const float* values, int n, uint8_t* codes, uint8_t* scale_at) {
  const float most = largest(values, n);
  float scale = most / (format == EntryFormat::fp8 ? kLargestFp8 : kLargestInt8);
  const float limit = format == EntryFormat::fp8 ? kLargestFp8 : kLargestInt8;
  if (!std::isfinite(most)) scale = std::numeric_limits<float>::quiet_NaN();
  std::memcpy(scale_at, &scale, sizeof scale);
  if (!(scale >= std::numeric_limits<float>::min())) {  // zeros, numbers too small to matter, or NaN
    std::fill_n(codes, n, uint8_t{0});
    return;
  }
  for (int i = 0; i < n; ++i) codes[i] = code_of(format, std::clamp(values[i] / scale, -limit, limit));
}

void put_bf16(const float* values, int n, uint8_t* dst) {
  for (int i = 0; i < n; ++i) {
    const uint16_t bits = float_to_bf16(values[i]);
    std::memcpy(dst + 2 * i, &bits, sizeof bits);
  }
}

void get_bf16(const uint8_t* src, int n, float* dst) {
  for (int i = 0; i < n; ++i) dst[i] = bf16_to_float(load_u16(src + 2 * i));
}

void encode_codes(const EntryShape& shape, const float* latent, uint8_t* entry) {
  for (int group = 0; group < shape.groups(); ++group) {
    const int first = group * kScaleGroup;
    const int n = std::min(kScaleGroup, shape.latent - first);
    encode_group(shape.format, latent + first, n, entry + first, entry + shape.scales_at() + 4 * group);
  }
}

void decode_codes(const EntryShape& shape, const uint8_t* entry, float* dst) {
  for (int i = 0; i < shape.latent; ++i) {
    float scale;
    std::memcpy(&scale, entry + shape.scales_at() + 4 * (i / kScaleGroup), sizeof scale);
    dst[i] = value_of(shape.format, entry[i]) * scale;
  }
}

}  // namespace

float fp8_to_float(uint8_t code) {
  const float sign = (code & 0x80) != 0 ? -1.0f : 1.0f;
  const int exponent = code >> 3 & 15;
  const int mantissa = code & 7;
  if (exponent == 15 && mantissa == 7) return std::numeric_limits<float>::quiet_NaN();
  if (exponent == 0) return sign * static_cast<float>(mantissa) * 0x1p-9f;
  return sign * std::ldexp(static_cast<float>(8 + mantissa), exponent - 10);
}

uint8_t float_to_fp8(float value) {
  const auto sign = static_cast<uint8_t>(std::signbit(value) ? 0x80 : 0);
  const float magnitude = std::fabs(value);
  int exponent = 0;
  std::frexp(magnitude, &exponent);
  // The distance between neighbours: that of the smallest normals, 2^-9, for everything below 2^-6.
  const int step = std::max(exponent - 4, -9);
  const int units = static_cast<int>(std::nearbyint(std::ldexp(magnitude, -step)));  // 0 to 16
  if (units == 0) return sign;
  // units · 2^step with eight units to an octave; 16 units are the first of the next one.
  return static_cast<uint8_t>(sign | ((step + 9) * 8 + units));
}

void encode_entry(const EntryShape& shape, const float* latent, const float* rope, uint8_t* entry) {
  if (shape.format == EntryFormat::f32) {
    std::memcpy(entry, latent, static_cast<size_t>(shape.latent) * 4);
    std::memcpy(entry + 4 * shape.latent, rope, static_cast<size_t>(shape.rope) * 4);
  } else if (shape.format == EntryFormat::bf16) {
    put_bf16(latent, shape.latent, entry);
    put_bf16(rope, shape.rope, entry + 2 * shape.latent);
  } else {
    encode_codes(shape, latent, entry);
    put_bf16(rope, shape.rope, entry + shape.rope_at());
  }
}

void decode_entry(const EntryShape& shape, const uint8_t* entry, float* dst) {
  float* rope = dst + shape.padded_latent();
  std::fill(dst + shape.latent, rope, 0.0f);
  std::fill(rope + shape.rope, rope + shape.padded_rope(), 0.0f);
  if (shape.format == EntryFormat::f32) {
    std::memcpy(dst, entry, static_cast<size_t>(shape.latent) * 4);
    std::memcpy(rope, entry + 4 * shape.latent, static_cast<size_t>(shape.rope) * 4);
  } else if (shape.format == EntryFormat::bf16) {
    get_bf16(entry, shape.latent, dst);
    get_bf16(entry + 2 * shape.latent, shape.rope, rope);
  } else {
    decode_codes(shape, entry, dst);
    get_bf16(entry + shape.rope_at(), shape.rope, rope);
  }
}

}  // namespace trimaran
