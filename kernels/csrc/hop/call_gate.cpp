#include "hop/call_gate.h"

#include <algorithm>
#include <cstring>

#include "hop/doorbell.h"

namespace trimaran::hop {
namespace {

// Whether no exponent is all ones, for 16-bit (bf16) and 32-bit (f32) patterns alike.
template <class Bits>
bool all_finite(const void* values, size_t n, Bits exponent) {
  const auto* bytes = static_cast<const uint8_t*>(values);
  bool finite = true;
  for (size_t i = 0; i < n; ++i) {
    Bits bits;
    std::memcpy(&bits, bytes + i * sizeof(Bits), sizeof(Bits));
    finite &= (bits & exponent) != exponent;
  }
  return finite;
}

bool finite_vectors(const void* x, size_t n, DType dtype) {
  return dtype == DType::f32 ? all_finite<uint32_t>(x, n, 0x7F800000u) : all_finite<uint16_t>(x, n, 0x7F80u);
}

int64_t nanoseconds(Clock::duration duration) { return std::chrono::nanoseconds(duration).count(); }

int32_t code(Status status) { return static_cast<int32_t>(status); }

}  // namespace

int32_t CallGate::run(const Call& call, uint32_t max_tokens) noexcept {
  waiting_.fetch_add(1);
  int32_t status = code(Status::internal);
  try {
    const std::lock_guard<std::mutex> lock(mutex_);
    status = run_locked(call, max_tokens);
  } catch (...) {  // out of memory: the call fails, the service goes on
  }
  waiting_.fetch_sub(1);
  calls_.fetch_add(1);
  if (status == 0) {
    tokens_.fetch_add(call.n_tokens);
  } else {
    failures_.fetch_add(1);
  }
  return status;
}

int32_t CallGate::run_slot(const Arena& arena, uint32_t slot, int32_t layer, uint32_t n_tokens) noexcept {
  if (slot >= arena.dims().n_slots) return kBadSlot;
  const Call call{layer,         n_tokens,          arena.x(slot), arena.ids(slot), arena.weights(slot),
                  arena.y(slot), arena.dims().dtype};
  return run(call, arena.dims().max_tokens);
}

int32_t CallGate::run_locked(const Call& call, uint32_t max_tokens) {
  if (!engine_.has_layer(call.layer)) return code(Status::bad_layer);
  if (call.n_tokens > max_tokens) return code(Status::bad_token_count);
  const auto& dims = engine_.dims();
  const size_t routes = size_t{call.n_tokens} * dims.top_k;
  ids_.assign(call.ids, call.ids + routes);
  weights_.assign(call.weights, call.weights + routes);
  const auto valid = [&dims](int32_t id) { return id >= 0 && id < dims.n_experts; };
  if (!std::all_of(ids_.begin(), ids_.end(), valid)) return code(Status::bad_expert_id);
  if (!finite_vectors(weights_.data(), routes, DType::f32) ||
      !finite_vectors(call.x, size_t{call.n_tokens} * dims.hidden, call.dtype)) {
    return kNotFinite;
  }
  const auto start = Clock::now();
  const int32_t status = compute(call);
  const auto end = Clock::now();
  count_time(nanoseconds(end - start));
  log_.add({call.layer, call.n_tokens, nanoseconds(start.time_since_epoch()),
            nanoseconds(end.time_since_epoch())});
  if (status == 0) count_routes(call.layer);
  return status;
}

// The engine's own bound on tokens is about its scratch memory, so longer calls go in pieces.
int32_t CallGate::compute(const Call& call) {
  const auto& dims = engine_.dims();
  const size_t row_bytes = size_t(dims.hidden) * dtype_bytes(call.dtype);
  const uint32_t step = static_cast<uint32_t>(dims.max_tokens);
  for (uint32_t first = 0; first < call.n_tokens; first += step) {
    const uint32_t n = std::min(step, call.n_tokens - first);
    const auto* x = static_cast<const uint8_t*>(call.x) + first * row_bytes;
    auto* y = static_cast<uint8_t*>(call.y) + first * row_bytes;
    const size_t route = size_t{first} * dims.top_k;
    const Status status = engine_.forward(call.layer, static_cast<int>(n), x, ids_.data() + route,
                                          weights_.data() + route, y, call.dtype);
    if (status != Status::ok) return code(status);
  }
  return code(Status::ok);
}

void CallGate::count_time(uint64_t nanoseconds) {
  const auto bound = std::lower_bound(kBusyBounds.begin(), kBusyBounds.end(), nanoseconds);
  busy_counts_[bound - kBusyBounds.begin()].fetch_add(1);
  busy_ns_.fetch_add(nanoseconds);
}

void CallGate::count_routes(int32_t layer) {
  const std::lock_guard<std::mutex> lock(routes_mutex_);
  std::vector<uint64_t>& counts = routes_[layer];
  counts.resize(engine_.dims().n_experts);
  for (const int32_t id : ids_) ++counts[id];
}

std::map<int32_t, std::vector<uint64_t>> CallGate::expert_tokens() const {
  const std::lock_guard<std::mutex> lock(routes_mutex_);
  return routes_;
}

GateCounters CallGate::counters() const {
  GateCounters counters{calls_.load(),        failures_.load(), tokens_.load(), busy_ns_.load(), {},
                        engine_.bytes_read(), waiting_.load()};
  std::copy(busy_counts_.begin(), busy_counts_.end(), counters.busy_counts.begin());
  return counters;
}

}  // namespace trimaran::hop
