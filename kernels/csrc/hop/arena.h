// The shared memory between an attention service and an expert service.
//
// The attention service creates the file (shared/trimaran/arena.py states the same layout); this side maps it
// and believes nothing: dimensions are checked and copied once, and every slot field is read once per call.
// Layout, little-endian, offsets in bytes:
//
//   0                 ArenaHeader, one page
//   4096 + i·stride   slot i: SlotControl, then x, ids, weights and y, each on its own 64-byte border
//
// where stride is a slot's size rounded up to a page.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "hop/shared_mapping.h"
#include "runtime/status.h"

namespace trimaran::hop {

using Word = std::atomic<uint32_t>;
static_assert(Word::is_always_lock_free && sizeof(Word) == 4, "the arena needs plain lock-free words");

constexpr size_t kPage = 4096;
constexpr size_t kLine = 64;
constexpr uint32_t kVersion = 2;
constexpr char kMagic[8] = {'T', 'R', 'I', 'A', 'R', 'E', 'N', 'A'};

struct ArenaHeader {
  char magic[8];
  uint32_t version;
  uint32_t dtype;  // DType of x and y
  uint32_t hidden;
  uint32_t top_k;
  uint32_t max_tokens;
  uint32_t n_slots;
  uint64_t slot_stride;
  uint64_t file_bytes;
  alignas(kLine) Word bell;             // grows with every request of any slot; the server's futex
  alignas(kLine) Word server_sleeping;  // not 0 while the server may be in the futex
  alignas(kLine) Word in_flight;        // not 0 during a step whose requests come without a bell
  alignas(kLine) Word abandoned;        // not 0 once the client's host has given this arena up
};
static_assert(offsetof(ArenaHeader, slot_stride) == 32 && offsetof(ArenaHeader, file_bytes) == 40);
static_assert(offsetof(ArenaHeader, bell) == 64 && offsetof(ArenaHeader, server_sleeping) == 128);
static_assert(offsetof(ArenaHeader, in_flight) == 192 && offsetof(ArenaHeader, abandoned) == 256);

// Each side writes its own cache line.
struct SlotControl {
  alignas(kLine) Word
      request_sequence;  // written last by the client: differs from the last one when there is work
  std::atomic<int32_t> layer;
  Word n_tokens;
  alignas(kLine) Word done_sequence;  // written last by the server; the client's futex
  std::atomic<int32_t> status;
  alignas(kLine) Word client_sleeping;  // not 0 while the client may be in the futex
};
static_assert(offsetof(SlotControl, layer) == 4 && offsetof(SlotControl, n_tokens) == 8);
static_assert(offsetof(SlotControl, done_sequence) == 64 && offsetof(SlotControl, status) == 68);
static_assert(offsetof(SlotControl, client_sleeping) == 128 && sizeof(SlotControl) == 192);

struct ArenaDims {
  uint32_t hidden;
  uint32_t top_k;
  uint32_t max_tokens;
  uint32_t n_slots;
  DType dtype;
};

// Offsets within a slot, and sizes, in bytes.
struct ArenaLayout {
  size_t x;        // [max_tokens, hidden] of dtype
  size_t ids;      // [max_tokens, top_k] i32
  size_t weights;  // [max_tokens, top_k] f32
  size_t y;        // [max_tokens, hidden] of dtype
  size_t slot_stride;
  size_t file_bytes;
};

// Throws KernelError on a dimension that is zero or beyond what a model could have.
ArenaLayout arena_layout(const ArenaDims& dims);

// A mapped arena file. The mapping ends with the object.
class Arena {
 public:
  // Throws KernelError, in one line that names the path, if the file is missing, not this user's alone, not
  // an arena of this version, or if its header contradicts itself or its size.
  explicit Arena(const std::string& path);
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  // Whether its file was cut short since: what is read are zeros then, and the peer sees no answer.
  bool lost() const { return mapping_->lost(); }

  const ArenaDims& dims() const { return dims_; }
  const ArenaLayout& layout() const { return layout_; }
  ArenaHeader& header() const { return *reinterpret_cast<ArenaHeader*>(mapping_->data()); }

  // `slot` must be below dims().n_slots.
  SlotControl& control(uint32_t slot) const { return *reinterpret_cast<SlotControl*>(slot_base(slot)); }
  const void* x(uint32_t slot) const { return slot_base(slot) + layout_.x; }
  const int32_t* ids(uint32_t slot) const {
    return reinterpret_cast<const int32_t*>(slot_base(slot) + layout_.ids);
  }
  const float* weights(uint32_t slot) const {
    return reinterpret_cast<const float*>(slot_base(slot) + layout_.weights);
  }
  void* y(uint32_t slot) const { return slot_base(slot) + layout_.y; }

 private:
  uint8_t* slot_base(uint32_t slot) const { return mapping_->data() + kPage + slot * layout_.slot_stride; }

  std::unique_ptr<const SharedMapping> mapping_;
  ArenaDims dims_{};
  ArenaLayout layout_{};
};

}  // namespace trimaran::hop
