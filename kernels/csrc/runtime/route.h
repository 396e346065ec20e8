// The tokens of a call, grouped by the expert that computes them.
#pragma once

#include <cstdint>
#include <vector>

#include "runtime/status.h"

namespace trimaran {

// In place of an expert id: this choice of the token is computed elsewhere, and its weight means nothing.
constexpr int32_t kSkipped = -1;

// A slot is one (token, choice) pair: slot = token × top_k + choice. Owned slots are laid out by expert,
// ascending, and within an expert by slot; `position` is a slot's place in that order.
class Route {
 public:
  struct Group {
    int expert;  // counted from the shard's first
    int begin;   // positions [begin, end)
    int end;
  };

  // Status::bad_expert_id, and an unusable route, if an id is neither kSkipped nor in
  // [0, n_model_experts).
  Status set(const int32_t* ids, int n_tokens, int top_k, int n_model_experts, int first_owned, int n_owned);

  const std::vector<Group>& groups() const { return groups_; }
  int n_positions() const { return static_cast<int>(tokens_.size()); }
  int token_at(int position) const { return tokens_[static_cast<size_t>(position)]; }
  // -1 for a slot that is skipped or another shard's.
  int position_of(int slot) const { return positions_[static_cast<size_t>(slot)]; }

 private:
  // A copy: the caller's ids may lie in memory that another process can write, and must not change once
  // checked.
  std::vector<int32_t> ids_;
  std::vector<Group> groups_;
  std::vector<int> tokens_;
  std::vector<int> positions_;
  std::vector<int> next_;  // per owned expert: the position of its next slot
};

}  // namespace trimaran
