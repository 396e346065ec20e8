// Prefetching packed weights: hardware stops at the end of a page, and a stripe ends long before that helps.
#pragma once

#include <cstdint>

#include "packed/format.h"

namespace trimaran {

constexpr int kAheadBytes = 3 << 10;  // at least so far: measured, 2 to 8 KiB differ little
constexpr int kCacheLineBytes = 64;

// The cells to prefetch while those of a stripe are computed.
class Ahead {
 public:
  // next: where reading goes on after the stripe's n_cells; nullptr: right behind it.
  Ahead(const Format& f, const uint8_t* stripe, int64_t n_cells, const uint8_t* next)
      : stripe_(stripe),
        n_cells_(n_cells),
        next_(next != nullptr ? next : stripe + n_cells * f.cell_bytes()),
        cell_bytes_(f.cell_bytes()),
        cells_((kAheadBytes + f.cell_bytes() - 1) / f.cell_bytes()) {}

  // The cell to ask for during cell i.
  const uint8_t* at(int64_t i) const { return cell(i + cells_); }
  const uint8_t* cell(int64_t cell) const {
    return cell < n_cells_ ? stripe_ + cell * cell_bytes_ : next_ + (cell - n_cells_) * cell_bytes_;
  }

 private:
  const uint8_t* stripe_;
  int64_t n_cells_;
  const uint8_t* next_;
  int64_t cell_bytes_;
  int64_t cells_;
};

// Asks for the part of a cell that is as large as that of the groups which share bytes with group g.
template <class Tag>
inline void prefetch_part(const uint8_t* cell, int g) {
  constexpr const Format& f = Tag::format;
  constexpr int step = f.cell_bytes() / f.groups() * f.groups_per_byte();
  const uint8_t* first = cell + g / f.groups_per_byte() * step;
  for (int i = 0; i < step; i += kCacheLineBytes) __builtin_prefetch(first + i, 0, 3);
}

}  // namespace trimaran
