#include "hop/client_call.h"

#include <algorithm>

#include "hop/slot_io.h"

namespace trimaran::hop {

void check_lines(const ClientLines& lines) {
  if (lines.empty()) throw KernelError("lines: need at least one");
  const ArenaDims& first = lines.front()->arena().dims();
  for (const auto& line : lines) {
    const ArenaDims& dims = line->arena().dims();
    if (dims.hidden != first.hidden || dims.top_k != first.top_k || dims.max_tokens != first.max_tokens ||
        dims.dtype != first.dtype) {
      throw KernelError("lines: their arenas are of different dimensions");
    }
  }
}

std::unique_ptr<ClientCall> ClientCall::start(const ClientLines& lines, const ClientBatch& batch) {
  std::vector<ClientPlace> places;
  places.reserve(lines.size());
  for (const auto& line : lines) {
    const auto place = line->take();
    if (!place) break;
    places.push_back(*place);
  }
  if (places.size() < lines.size()) {
    for (size_t i = 0; i < places.size(); ++i) lines[i]->release(places[i]);
    return nullptr;
  }
  std::unique_ptr<ClientCall> call(new ClientCall(lines, std::move(places), batch.n_tokens));
  // Every shard's tokens are there before the first bell: where a shard takes this very core, the others
  // would wait for it.
  for (size_t i = 0; i < lines.size(); ++i) {
    put_tokens(lines[i]->arena(), call->places_[i].slot, batch.n_tokens, batch.x, batch.dtype, batch.ids,
               batch.weights);
  }
  for (size_t i = 0; i < lines.size(); ++i) {
    const ClientPlace place = call->places_[i];
    ring(lines[i]->arena(), place.slot, place.sequence, batch.layer, batch.n_tokens);
  }
  return call;
}

std::optional<int32_t> ClientCall::collect(Clock::time_point deadline, float* y) {
  for (; n_answered_ < lines_.size(); ++n_answered_) {
    if (n_settled_ > n_answered_) return static_cast<int32_t>(Status::internal);  // refused or abandoned
    ClientLine& line = *lines_[n_answered_];
    const ClientPlace place = places_[n_answered_];
    const auto status = wait_done(line.arena(), place.slot, place.sequence, deadline, line.spin());
    if (!status) return std::nullopt;
    if (*status == 0) {
      if (n_answered_ == 0) {
        take_answer(line.arena(), place.slot, n_tokens_, y);
      } else {
        add_answer(line.arena(), place.slot, n_tokens_, y);
      }
    }
    line.release(place);
    ++n_settled_;
    if (*status != 0) return status;
  }
  return 0;
}

void ClientCall::abandon() {
  for (; n_settled_ < lines_.size(); ++n_settled_) lines_[n_settled_]->abandon(places_[n_settled_]);
}

}  // namespace trimaran::hop
