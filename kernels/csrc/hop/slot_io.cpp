#include "hop/slot_io.h"

#include <cstring>

#include "quant/half.h"

namespace trimaran::hop {

void put_tokens(const Arena& arena, uint32_t slot, uint32_t n, const void* x, DType dtype, const int32_t* ids,
                const float* weights) {
  if (n == 0) return;
  const ArenaDims& dims = arena.dims();
  const size_t values = size_t{n} * dims.hidden;
  const size_t routes = size_t{n} * dims.top_k * 4;
  auto* target = const_cast<void*>(arena.x(slot));
  if (dtype == dims.dtype) {
    std::memcpy(target, x, values * dtype_bytes(dtype));
  } else {
    for (size_t i = 0; i < values; ++i) {
      static_cast<uint16_t*>(target)[i] = float_to_bf16(static_cast<const float*>(x)[i]);
    }
  }
  std::memcpy(const_cast<int32_t*>(arena.ids(slot)), ids, routes);
  std::memcpy(const_cast<float*>(arena.weights(slot)), weights, routes);
}

void take_answer(const Arena& arena, uint32_t slot, uint32_t n, float* y) {
  if (n == 0) return;
  const ArenaDims& dims = arena.dims();
  const size_t values = size_t{n} * dims.hidden;
  const void* answer = arena.y(slot);
  if (dims.dtype == DType::f32) {
    std::memcpy(y, answer, values * sizeof(float));
  } else {
    for (size_t i = 0; i < values; ++i) y[i] = bf16_to_float(static_cast<const uint16_t*>(answer)[i]);
  }
}

void add_answer(const Arena& arena, uint32_t slot, uint32_t n, float* y) {
  const ArenaDims& dims = arena.dims();
  const size_t values = size_t{n} * dims.hidden;
  const void* answer = arena.y(slot);
  if (dims.dtype == DType::f32) {
    for (size_t i = 0; i < values; ++i) y[i] += static_cast<const float*>(answer)[i];
  } else {
    for (size_t i = 0; i < values; ++i) y[i] += bf16_to_float(static_cast<const uint16_t*>(answer)[i]);
  }
}

}  // namespace trimaran::hop
