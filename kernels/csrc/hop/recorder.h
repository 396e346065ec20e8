// Writes calls to a file, for replay without the attention side. expert_service/trimaran_experts/recording.py
// reads it and states the same layout, little-endian, offsets in bytes:
//
//   0    magic "TRIRECRD", u32 version, hidden, top_k, n_experts, then 104 bytes of the model's fingerprint,
//        padded with zeros
//   128  the calls: u32 mark "CALL", i32 layer, u32 n_tokens, dtype of x and y, i32 status, u32 0, u64 ns
//   since
//        the recording began; then x, ids, weights and y as the arena has them
#pragma once

#include <chrono>
#include <cstdint>
#include <mutex>
#include <string>
#include <vector>

#include "hop/call.h"

namespace trimaran::hop {

class Recorder {
 public:
  // Creates the file, for this user only. It grows to at most `max_bytes`; later calls are left out. Throws
  // KernelError if the file is there already or cannot be made.
  Recorder(const std::string& path, uint64_t max_bytes, const EngineDims& dims,
           const std::string& fingerprint);
  ~Recorder();
  Recorder(const Recorder&) = delete;
  Recorder& operator=(const Recorder&) = delete;

  // ids and weights are the checked copies of the call's own. Any thread may call.
  void write(const Call& call, const std::vector<int32_t>& ids, const std::vector<float>& weights,
             int32_t status) noexcept;

  uint64_t calls() const;
  uint64_t bytes() const;
  // Whether a call did not fit or could not be written.
  bool full() const;

 private:
  bool put(const void* data, size_t size) noexcept;

  const EngineDims dims_;
  const uint64_t max_bytes_;
  const std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
  mutable std::mutex mutex_;
  int fd_ = -1;
  uint64_t bytes_ = 0;
  uint64_t calls_ = 0;
  bool full_ = false;
};

}  // namespace trimaran::hop
