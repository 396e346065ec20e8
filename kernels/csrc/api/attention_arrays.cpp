#include "api/attention_arrays.h"

#include <string>

#include "runtime/status.h"

namespace trimaran::api {
namespace {

// A row of `segments` as the kernels want it.
Segment segment_at(const int32_t* row, const ArrayView& table, const CacheLayer& layer, int64_t n_rows) {
  const int64_t first_row = row[0], length = row[1], position = row[2], first_page = row[3];
  const auto refuse = [](const std::string& reason) { throw KernelError("segments: " + reason); };
  if (first_row < 0 || length < 0 || first_row + length > n_rows) {
    refuse("rows " + std::to_string(first_row) + " to " + std::to_string(first_row + length) + " of " +
           std::to_string(n_rows));
  }
  const int64_t n_pages = (position + length + layer.page_tokens - 1) / layer.page_tokens;
  if (position < 0 || first_page < 0 || first_page + n_pages > table.shape[0]) {
    refuse("the page table is too short for position " + std::to_string(position));
  }
  const int32_t* pages = ints(table) + first_page;
  for (int64_t i = 0; i < n_pages; ++i) {
    if (pages[i] < 0 || pages[i] >= layer.n_pages) refuse("there is no page " + std::to_string(pages[i]));
  }
  return {first_row, length, position, pages, row[4] != 0};
}

}  // namespace

void check_angles(const ArrayView& cos, const ArrayView& sin, int64_t rows, int rope) {
  check_length(cos, "cos", 0, rows);
  check_length(cos, "cos", 1, rope / 2);
  check_length(sin, "sin", 0, rows);
  check_length(sin, "sin", 1, rope / 2);
}

void check_slots(const ArrayView& slots, const CacheLayer& layer) {
  for (int64_t i = 0; i < slots.shape[0]; ++i) {
    const int32_t slot = ints(slots)[i];
    if (slot < 0 || slot >= layer.n_pages * layer.page_tokens) {
      throw KernelError("slots: there is no slot " + std::to_string(slot));
    }
  }
}

void check_dims(const Mla& mla, const LatentMaps& maps, const CacheLayer& layer) {
  const MlaDims& d = mla.dims();
  const bool fits = maps.heads() == d.heads && maps.absorb().depth() == d.nope &&
                    maps.absorb().columns() == d.latent && maps.unabsorb().columns() == d.value;
  if (!fits) throw KernelError("maps: made for other dimensions");
  if (layer.shape.latent != d.latent || layer.shape.rope != d.rope) {
    throw KernelError("pages: made for other dimensions");
  }
}

std::vector<Segment> segments_of(const ArrayView& rows, const ArrayView& table, const CacheLayer& layer,
                                 int64_t n_rows) {
  check_length(rows, "segments", 1, 5);
  std::vector<Segment> segments;
  for (int64_t i = 0; i < rows.shape[0]; ++i) {
    segments.push_back(segment_at(ints(rows) + 5 * i, table, layer, n_rows));
  }
  return segments;
}

StepArrays::StepArrays(nb::handle cos_object, nb::handle sin_object, nb::handle slots_object,
                       nb::handle segments_object, nb::handle table_object, const CacheLayer& layer,
                       int64_t n)
    : cos(view_array(cos_object, "cos", {Element::f32}, 2)),
      sin(view_array(sin_object, "sin", {Element::f32}, 2)),
      slots(view_array(slots_object, "slots", {Element::i32}, 1)),
      table(view_array(table_object, "page_table", {Element::i32}, 1)) {
  check_length(slots, "slots", 0, n);
  check_angles(cos, sin, n, layer.shape.rope);
  check_slots(slots, layer);
  segments = segments_of(view_array(segments_object, "segments", {Element::i32}, 2), table, layer, n);
}

}  // namespace trimaran::api
