// Outcomes of a layer call, and the exception for calls that can never work.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

namespace trimaran {

// The values are those of `trimaran.wire.Status`.
enum class Status : int32_t {
  ok = 0,
  bad_layer = 1,
  bad_token_count = 2,
  bad_expert_id = 3,
  internal = 6,
};

enum class DType : int32_t { f32 = 0, bf16 = 1 };

inline size_t dtype_bytes(DType dtype) { return dtype == DType::f32 ? 4 : 2; }

// Bad arguments at set-up time; the message names the argument. Becomes trimaran.errors.KernelError in
// Python.
class KernelError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

}  // namespace trimaran
