#include "quant/decode_table.h"

#include "quant/decode_iq.h"
#include "quant/decode_k.h"
#include "quant/decode_legacy.h"

namespace trimaran {
namespace {

template <class Block, int kBlockSize>
void decode_row(const uint8_t* src, int64_t n, float* dst) {
  const Block* block = reinterpret_cast<const Block*>(src);
  for (int64_t i = 0; i < n; i += kBlockSize) scalar::decode(*block++, dst + i);
}

void decode_f32(const uint8_t* src, int64_t n, float* dst) {
  std::memcpy(dst, src, static_cast<size_t>(n) * 4);
}

void decode_f16(const uint8_t* src, int64_t n, float* dst) {
  for (int64_t i = 0; i < n; ++i) dst[i] = load_f16(src + 2 * i);
}

void decode_bf16(const uint8_t* src, int64_t n, float* dst) {
  for (int64_t i = 0; i < n; ++i) dst[i] = bf16_to_float(load_u16(src + 2 * i));
}

}  // namespace

void fill_scalar_decoders(DecodeFn* table) {
  const auto set = [table](GgmlType type, DecodeFn decoder) { table[static_cast<int>(type)] = decoder; };
  set(GgmlType::F32, decode_f32);
  set(GgmlType::F16, decode_f16);
  set(GgmlType::BF16, decode_bf16);
  set(GgmlType::Q4_0, decode_row<BlockQ4_0, 32>);
  set(GgmlType::Q4_1, decode_row<BlockQ4_1, 32>);
  set(GgmlType::Q5_0, decode_row<BlockQ5_0, 32>);
  set(GgmlType::Q5_1, decode_row<BlockQ5_1, 32>);
  set(GgmlType::Q8_0, decode_row<BlockQ8_0, 32>);
  set(GgmlType::IQ4_NL, decode_row<BlockIQ4_NL, 32>);
  set(GgmlType::Q2_K, decode_row<BlockQ2_K, 256>);
  set(GgmlType::Q3_K, decode_row<BlockQ3_K, 256>);
  set(GgmlType::Q4_K, decode_row<BlockQ4_K, 256>);
  set(GgmlType::Q5_K, decode_row<BlockQ5_K, 256>);
  set(GgmlType::Q6_K, decode_row<BlockQ6_K, 256>);
  set(GgmlType::IQ4_XS, decode_row<BlockIQ4_XS, 256>);
  set(GgmlType::IQ2_XXS, decode_row<BlockIQ2_XXS, 256>);
  set(GgmlType::IQ2_XS, decode_row<BlockIQ2_XS, 256>);
  set(GgmlType::IQ2_S, decode_row<BlockIQ2_S, 256>);
  set(GgmlType::IQ3_XXS, decode_row<BlockIQ3_XXS, 256>);
  set(GgmlType::IQ3_S, decode_row<BlockIQ3_S, 256>);
  set(GgmlType::IQ1_S, decode_row<BlockIQ1_S, 256>);
  set(GgmlType::IQ1_M, decode_row<BlockIQ1_M, 256>);
}

}  // namespace trimaran
