#include "hop/call_gate.h"

#include <algorithm>
#include <cstring>

#include "hop/doorbell.h"
#include "runtime/buffers.h"
#include "runtime/route.h"

namespace trimaran::hop {
namespace {

constexpr size_t kSpareTickets = 64;

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

void CallGate::leave(uint64_t client) {
  const std::lock_guard<std::mutex> lock(mutex_);
  gathering_.forget(client);
}

int32_t CallGate::run(const Call& call, uint32_t max_tokens, uint64_t client) noexcept {
  waiting_.fetch_add(1);
  int32_t status = code(Status::internal);
  try {
    std::unique_ptr<Ticket> ticket = take_ticket();
    status = check(call, max_tokens, *ticket);
    if (status == 0) {
      ticket->ask = {client, call.layer, call.n_tokens, client == 0 ? 0 : count_experts(ticket->ids),
                     call.dtype};
      wait_and_serve(*ticket);
      status = ticket->status;
    }
    const std::lock_guard<std::mutex> lock(mutex_);
    if (spare_.size() < kSpareTickets) spare_.push_back(std::move(ticket));
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

int32_t CallGate::run_slot(const Arena& arena, uint32_t slot, int32_t layer, uint32_t n_tokens,
                           uint64_t client) noexcept {
  if (slot >= arena.dims().n_slots) return kBadSlot;
  const Call call{layer,         n_tokens,          arena.x(slot), arena.ids(slot), arena.weights(slot),
                  arena.y(slot), arena.dims().dtype};
  return run(call, arena.dims().max_tokens, client);
}

void CallGate::record(std::shared_ptr<Recorder> recorder) {
  const std::lock_guard<std::mutex> lock(mutex_);
  recorder_ = std::move(recorder);
}

std::unique_ptr<CallGate::Ticket> CallGate::take_ticket() {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (spare_.empty()) return std::make_unique<Ticket>();
  std::unique_ptr<Ticket> ticket = std::move(spare_.back());
  spare_.pop_back();
  return ticket;
}

int32_t CallGate::check(const Call& call, uint32_t max_tokens, Ticket& ticket) const {
  if (!engine_.has_layer(call.layer)) return code(Status::bad_layer);
  if (call.n_tokens > max_tokens) return code(Status::bad_token_count);
  const auto& dims = engine_.dims();
  const size_t routes = size_t{call.n_tokens} * static_cast<size_t>(dims.top_k);
  ticket.call = call;
  ticket.ids.assign(call.ids, call.ids + routes);
  ticket.weights.assign(call.weights, call.weights + routes);
  ticket.status = code(Status::internal);
  ticket.done = ticket.leads = false;
  ticket.alone = std::chrono::nanoseconds(0);
  ticket.next = nullptr;
  const auto valid = [&dims](int32_t id) { return id >= kSkipped && id < dims.n_experts; };
  if (!std::all_of(ticket.ids.begin(), ticket.ids.end(), valid)) return code(Status::bad_expert_id);
  for (size_t i = 0; i < routes; ++i) {
    if (ticket.ids[i] == kSkipped) ticket.weights[i] = 0.0f;
  }
  if (!finite_vectors(ticket.weights.data(), routes, DType::f32) ||
      !finite_vectors(call.x, size_t{call.n_tokens} * static_cast<size_t>(dims.hidden), call.dtype)) {
    return kNotFinite;
  }
  return code(Status::ok);
}

// How many different experts of the whole model are among `ids`.
uint32_t CallGate::count_experts(const std::vector<int32_t>& ids) const {
  std::vector<bool> seen(static_cast<size_t>(dims().n_experts));
  for (const int32_t id : ids) {
    if (id != kSkipped) seen[static_cast<size_t>(id)] = true;
  }
  return static_cast<uint32_t>(std::count(seen.begin(), seen.end(), true));
}

// Returns when the ticket is served, by another's engine call or by one that this thread leads. Who leads is
// always first in the queue, so that nobody is overtaken for long: others only ride along.
void CallGate::wait_and_serve(Ticket& ticket) {
  std::unique_lock<std::mutex> lock(mutex_);
  gathering_.arrived(ticket.ask, Clock::now());
  queue_.push_back(&ticket);
  if (is_led_) {
    company_.notify_one();
    ticket.turn.wait(lock, [&ticket] { return ticket.done || ticket.leads; });
  }
  if (!ticket.done) {
    is_led_ = true;
    gather(lock, ticket);
    take_batch(ticket);
    lock.unlock();
    compute_batch(ticket);
    lock.lock();
    if (rests_ && queue_.empty()) engine_.rest();
    hand_out(ticket);
  }
  const std::shared_ptr<Recorder> recorder = recorder_;
  lock.unlock();
  if (recorder) recorder->write(ticket.call, ticket.ids, ticket.weights, ticket.status);
}

// Waits for company if it is due and worth it. Whoever comes ends that: those for another layer have waited
// long enough.
void CallGate::gather(std::unique_lock<std::mutex>& lock, const Ticket& first) {
  if (!gathers_ || queue_.size() > 1) return;
  const auto start = Clock::now();
  const auto start_by = gathering_.start_by(first.ask, start);
  if (start_by <= start) return;
  company_.wait_until(lock, start_by, [this] { return queue_.size() > 1; });
  gather_waits_.fetch_add(1);
  gather_ns_.fetch_add(nanoseconds(Clock::now() - start));
}

// Tells everybody of the batch, and who leads the next one.
void CallGate::hand_out(Ticket& first) {
  const auto now = Clock::now();
  for (Ticket* served = &first; served != nullptr; served = served->next) {
    gathering_.answered(served->ask, now, served->alone);
    served->done = true;
    served->turn.notify_one();
  }
  is_led_ = !queue_.empty();
  if (is_led_) {
    queue_.front()->leads = true;
    queue_.front()->turn.notify_one();
  }
}

// Takes `first`, the queue's head, and whoever may ride along from the queue, and chains them.
void CallGate::take_batch(Ticket& first) {
  uint64_t tokens = first.call.n_tokens;
  const uint64_t most = gathering_.most_tokens(first.ask);
  Ticket* last = &first;
  queue_.pop_front();
  const auto rides = [&](Ticket* ticket) {
    const Call& call = ticket->call;
    if (call.layer != first.call.layer || call.dtype != first.call.dtype) return false;
    if (tokens + call.n_tokens > most) return false;
    tokens += call.n_tokens;
    last = last->next = ticket;
    return true;
  };
  queue_.erase(std::remove_if(queue_.begin(), queue_.end(), rides), queue_.end());
}

void CallGate::compute_batch(Ticket& first) noexcept {
  if (first.next != nullptr && compute_merged(first)) return;
  for (Ticket* ticket = &first; ticket != nullptr; ticket = ticket->next) {
    const auto start = Clock::now();
    ticket->status = compute_alone(*ticket);
    ticket->alone = Clock::now() - start;
  }
}

// One engine call for all; false, and nobody is answered, if it fails.
bool CallGate::compute_merged(Ticket& first) noexcept try {
  Call call = first.call;
  merge(first, call);
  if (forward(call, merged_.ids.data(), merged_.weights.data()) != code(Status::ok)) return false;
  split(first, call);
  return true;
} catch (const std::bad_alloc&) {
  return false;
}

// Copies the tokens of all one after another, and makes `call` the call for them.
void CallGate::merge(const Ticket& first, Call& call) {
  merged_.ids.clear();
  merged_.weights.clear();
  call.n_tokens = 0;
  for (const Ticket* ticket = &first; ticket != nullptr; ticket = ticket->next) {
    call.n_tokens += ticket->call.n_tokens;
    merged_.ids.insert(merged_.ids.end(), ticket->ids.begin(), ticket->ids.end());
    merged_.weights.insert(merged_.weights.end(), ticket->weights.begin(), ticket->weights.end());
  }
  ensure_size(merged_.x, vector_bytes(call, dims().hidden));
  ensure_size(merged_.y, vector_bytes(call, dims().hidden));
  uint8_t* x = merged_.x.data();
  for (const Ticket* ticket = &first; ticket != nullptr; ticket = ticket->next) {
    const size_t size = vector_bytes(ticket->call, dims().hidden);
    if (size > 0) std::memcpy(x, ticket->call.x, size);
    x += size;
  }
  call.x = merged_.x.data();
  call.y = merged_.y.data();
}

// Gives everybody's answer to him.
void CallGate::split(Ticket& first, const Call& call) {
  const auto* y = static_cast<const uint8_t*>(call.y);
  for (Ticket* ticket = &first; ticket != nullptr; ticket = ticket->next) {
    const size_t size = vector_bytes(ticket->call, dims().hidden);
    if (size > 0) std::memcpy(ticket->call.y, y, size);
    y += size;
    ticket->status = code(Status::ok);
    stats_.count_routes(ticket->call.layer, ticket->ids, dims().n_experts);
    merged_calls_.fetch_add(1);
  }
}

// The engine's own bound on tokens is about its scratch memory, so longer calls go in pieces.
int32_t CallGate::compute_alone(const Ticket& ticket) noexcept try {
  const Call& whole = ticket.call;
  const auto step = static_cast<uint32_t>(dims().max_tokens);
  for (uint32_t first = 0; first < whole.n_tokens; first += step) {
    Call piece = whole;
    piece.n_tokens = first;
    const size_t offset = vector_bytes(piece, dims().hidden);
    const size_t route = size_t{first} * static_cast<size_t>(dims().top_k);
    piece.n_tokens = std::min(step, whole.n_tokens - first);
    piece.x = static_cast<const uint8_t*>(whole.x) + offset;
    piece.y = static_cast<uint8_t*>(whole.y) + offset;
    const int32_t status = forward(piece, ticket.ids.data() + route, ticket.weights.data() + route);
    if (status != code(Status::ok)) return status;
  }
  stats_.count_routes(whole.layer, ticket.ids, dims().n_experts);
  return code(Status::ok);
} catch (const std::bad_alloc&) {
  return code(Status::internal);
}

int32_t CallGate::forward(const Call& call, const int32_t* ids, const float* weights) {
  const auto start = Clock::now();
  const Status status =
      engine_.forward(call.layer, static_cast<int>(call.n_tokens), call.x, ids, weights, call.y, call.dtype);
  const auto end = Clock::now();
  engine_calls_.fetch_add(1);
  busy_ns_.fetch_add(nanoseconds(end - start));
  stats_.count_latency(call.layer, nanoseconds(end - start));
  log_.add({call.layer, call.n_tokens, nanoseconds(start.time_since_epoch()),
            nanoseconds(end.time_since_epoch())});
  return code(status);
}

GateCounters CallGate::counters() const {
  return {calls_.load(),        failures_.load(),     tokens_.load(),    engine_calls_.load(),
          merged_calls_.load(), gather_waits_.load(), gather_ns_.load(), busy_ns_.load(),
          stats_.total(),       engine_.bytes_read(), waiting_.load()};
}

}  // namespace trimaran::hop
