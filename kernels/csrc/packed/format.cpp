#include "packed/format.h"

namespace trimaran {
namespace {

struct Formats {
  const Format* of[kTypeSlots] = {};

  Formats() {
    for_each_format([this](auto tag) {
      using Tag = decltype(tag);
      of[static_cast<int>(Tag::format.type)] = &Tag::format;
    });
  }
};

}  // namespace

const Format* find_format(GgmlType type) {
  static const Formats formats;
  const int id = static_cast<int>(type);
  return id < 0 || id >= kTypeSlots ? nullptr : formats.of[id];
}

}  // namespace trimaran
