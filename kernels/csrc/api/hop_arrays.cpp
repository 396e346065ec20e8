#include "api/hop_arrays.h"

#include <algorithm>
#include <chrono>

namespace trimaran::api {
namespace {

constexpr double kLongestWait = 3600.0;

}  // namespace

hop::ClientBatch TokenViews::batch(int32_t layer) const {
  return {layer,
          static_cast<uint32_t>(x.shape[0]),
          x.data,
          static_cast<const int32_t*>(ids.data),
          static_cast<const float*>(weights.data),
          x.element == Element::f32 ? DType::f32 : DType::bf16};
}

TokenViews view_tokens(const hop::ArenaDims& dims, nb::handle x, nb::handle ids, nb::handle weights) {
  const bool takes_bf16 = dims.dtype == DType::bf16;
  TokenViews views{takes_bf16 ? view_array(x, "x", {Element::f32, Element::bf16}, 2)
                              : view_array(x, "x", {Element::f32}, 2),
                   view_array(ids, "ids", {Element::i32}, 2),
                   view_array(weights, "weights", {Element::f32}, 2)};
  const int64_t n = views.x.shape[0];
  if (n > dims.max_tokens) {
    throw KernelError("x: a slot holds " + std::to_string(dims.max_tokens) + " tokens, have " +
                      std::to_string(n));
  }
  check_length(views.x, "x", 1, dims.hidden);
  for (const ArrayView* view : {&views.ids, &views.weights}) {
    check_length(*view, "ids and weights", 0, n);
    check_length(*view, "ids and weights", 1, dims.top_k);
  }
  return views;
}

ArrayView view_answer(const hop::ArenaDims& dims, nb::handle y) {
  ArrayView view = view_array(y, "y", {Element::f32}, 2, true);
  check_length(view, "y", 1, dims.hidden);
  if (view.shape[0] > dims.max_tokens) throw KernelError("y: has more rows than a slot has tokens");
  return view;
}

hop::Clock::time_point deadline_after(double seconds) {
  const double bounded = std::clamp(seconds, 0.0, kLongestWait);
  return hop::Clock::now() +
         std::chrono::duration_cast<hop::Clock::duration>(std::chrono::duration<double>(bounded));
}

}  // namespace trimaran::api
