// AVX-512 attention primitives (F, BW, VL). Products, weights and decoded entries are AVX2's to the bit.
#pragma once

#include "attention/primitives.h"

namespace trimaran::avx512 {

const AttentionPrimitives& attention_primitives();

void multiply(const Product& product, const float* b);
void multiply_half(const Product& product, const uint16_t* b);
void multiply_codes(const Product& product, const uint8_t* b);
void widen_codes(const uint8_t* src, int64_t blocks, int n, float* dst);
void decode_entry(const EntryShape& shape, const uint8_t* entry, float* dst);
bool softmax(const ScoreTile& tile);

}  // namespace trimaran::avx512
