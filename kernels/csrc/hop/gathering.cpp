#include "hop/gathering.h"

#include <algorithm>

namespace trimaran::hop {
namespace {

// A new sample counts for a quarter.
void average(Gathering::Span& mean, Gathering::Span sample) {
  mean = mean.count() == 0 ? sample : mean + (sample - mean) / 4;
}

}  // namespace

void Gathering::arrived(const Ask& ask, Time now) {
  if (ask.client == 0) return;
  Client& client = clients_[ask.client];
  const bool is_first = client.last.client == 0;
  if (!is_first && !client.asking && ask.layer == client.last.layer + 1) {
    average(client.gap, now - client.answered);
  }
  client.last = ask;
  client.asking = true;
}

void Gathering::answered(const Ask& ask, Time now, Span busy) {
  // With more tokens an expert, the time is that of arithmetic, which is not shared.
  if (busy.count() > 0 && ask.n_experts > 0 && ask.n_tokens * top_k_ <= 2 * ask.n_experts) {
    average(expert_time_, busy / ask.n_experts);
  }
  const auto found = clients_.find(ask.client);
  if (found == clients_.end()) return;
  found->second.asking = false;
  found->second.answered = now;
}

Gathering::Time Gathering::start_by(const Ask& ask, Time now) const {
  if (ask.client == 0) return now;
  Time start = now;
  for (const auto& [id, client] : clients_) {
    if (id == ask.client || client.asking || client.gap.count() == 0) continue;
    if (client.last.layer + 1 != ask.layer) continue;
    const Time end = now + window(ask, client.last);
    const Time expected = client.answered + client.gap;
    const Time latest = expected + client.gap / 4;  // it may be a little late
    if (expected <= end && latest > now) start = std::max(start, std::min(latest, end));
  }
  return start;
}

Gathering::Span Gathering::window(const Ask& ask, const Ask& other) const {
  const Span alone = expert_time_ * ask.n_experts;
  const Span common = expert_time_ * ask.n_experts * other.n_experts / n_experts_;
  const Span window = std::min(alone / kShare, common / 2);
  return window < kShortest ? Span{0} : window;
}

}  // namespace trimaran::hop
