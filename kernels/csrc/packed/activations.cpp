#include "packed/activations.h"

namespace trimaran {
namespace {

constexpr int64_t kPaddedColumns = 256;  // the widest cell

struct Offsets {
  size_t scales;
  size_t halves;
  size_t sums;
  size_t lanes;
  size_t end;
};

Offsets offsets_of(int64_t groups) {
  const auto n = static_cast<size_t>(groups);
  Offsets o{};
  o.scales = n * kGroupColumns;
  o.halves = o.scales + 2 * n * sizeof(float);
  o.sums = o.halves + 2 * n * sizeof(float);
  o.lanes = o.sums + n * sizeof(float);
  o.end = o.lanes + 4 * n * sizeof(int16_t);
  return o;
}

}  // namespace

ActivationLayout::ActivationLayout(int64_t columns)
    : groups((columns + kPaddedColumns - 1) / kPaddedColumns * (kPaddedColumns / kGroupColumns)),
      bytes((offsets_of(groups).end + 63) / 64 * 64) {}

QuantizedSlot ActivationLayout::slot(uint8_t* base) const {
  const Offsets o = offsets_of(groups);
  return {reinterpret_cast<int8_t*>(base), reinterpret_cast<float*>(base + o.scales),
          reinterpret_cast<float*>(base + o.halves), reinterpret_cast<float*>(base + o.sums),
          reinterpret_cast<int16_t*>(base + o.lanes)};
}

QuantizedVector ActivationLayout::vector(const uint8_t* base) const {
  const QuantizedSlot s = slot(const_cast<uint8_t*>(base));
  return {s.codes, s.scales, s.halves, s.sums, s.lanes};
}

}  // namespace trimaran
