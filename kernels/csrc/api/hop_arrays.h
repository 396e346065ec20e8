// The tensors of a call, checked against the arena that they go to or come from.
#pragma once

#include "api/arrays.h"
#include "hop/arena.h"
#include "hop/client_call.h"

namespace trimaran::api {

// x [n, hidden], ids and weights [n, top_k]. Good as long as it lives.
struct TokenViews {
  ArrayView x;
  ArrayView ids;
  ArrayView weights;

  hop::ClientBatch batch(int32_t layer) const;
};

// Throws KernelError on an array of another type, shape or layout, or with more tokens than a slot has.
TokenViews view_tokens(const hop::ArenaDims& dims, nb::handle x, nb::handle ids, nb::handle weights);

// y [n, hidden] f32, writable, with at most a slot's tokens; the same errors.
ArrayView view_answer(const hop::ArenaDims& dims, nb::handle y);

// That many seconds from now, an hour at most.
hop::Clock::time_point deadline_after(double seconds);

}  // namespace trimaran::api
