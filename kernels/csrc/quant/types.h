// GGUF tensor types that the kernels compute from, with their block geometry.
#pragma once

#include <cstddef>
#include <cstdint>

namespace trimaran {

// Values are those of the file format.
enum class GgmlType : int32_t {
  F32 = 0,
  F16 = 1,
  Q4_0 = 2,
  Q4_1 = 3,
  Q5_0 = 6,
  Q5_1 = 7,
  Q8_0 = 8,
  Q2_K = 10,
  Q3_K = 11,
  Q4_K = 12,
  Q5_K = 13,
  Q6_K = 14,
  IQ2_XXS = 16,
  IQ2_XS = 17,
  IQ3_XXS = 18,
  IQ1_S = 19,
  IQ4_NL = 20,
  IQ3_S = 21,
  IQ2_S = 22,
  IQ4_XS = 23,
  IQ1_M = 29,
  BF16 = 30,
};

constexpr int kTypeSlots = 31;  // size of a table indexed by type

struct TypeTraits {
  GgmlType type;
  const char* name;
  int block_size;  // weights in a block
  int type_size;   // bytes of a block

  size_t row_bytes(int64_t n) const {
    return static_cast<size_t>(n / block_size) * static_cast<size_t>(type_size);
  }
};

// All supported types, in the order of their ids; `count` receives how many.
const TypeTraits* all_types(size_t* count);

// Traits of a type id from a file, or nullptr if it is not supported.
const TypeTraits* find_type(int32_t id);

}  // namespace trimaran
