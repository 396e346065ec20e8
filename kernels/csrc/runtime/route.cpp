#include "runtime/route.h"

#include <utility>

namespace trimaran {

Status Route::set(const int32_t* ids, int n_tokens, int top_k, int n_model_experts, int first_owned,
                  int n_owned) {
  const int n_slots = n_tokens * top_k;
  ids_.assign(ids, ids + n_slots);
  next_.assign(static_cast<size_t>(n_owned), 0);
  const auto owned = [=](int32_t id) { return id >= first_owned && id < first_owned + n_owned; };
  for (int slot = 0; slot < n_slots; ++slot) {
    const int32_t id = ids_[static_cast<size_t>(slot)];
    if (id < kSkipped || id >= n_model_experts) return Status::bad_expert_id;
    if (owned(id)) ++next_[static_cast<size_t>(id - first_owned)];
  }
  groups_.clear();
  int position = 0;
  for (int expert = 0; expert < n_owned; ++expert) {
    int& next = next_[static_cast<size_t>(expert)];
    if (next > 0) groups_.push_back({expert, position, position + next});
    position += std::exchange(next, position);
  }
  tokens_.resize(static_cast<size_t>(position));
  positions_.resize(static_cast<size_t>(n_slots));
  for (int slot = 0; slot < n_slots; ++slot) {
    const int32_t id = ids_[static_cast<size_t>(slot)];
    const int at = owned(id) ? next_[static_cast<size_t>(id - first_owned)]++ : -1;
    positions_[static_cast<size_t>(slot)] = at;
    if (at >= 0) tokens_[static_cast<size_t>(at)] = slot / top_k;
  }
  return Status::ok;
}

}  // namespace trimaran
