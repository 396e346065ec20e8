// Checked views of Python arrays: every complaint names the argument.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <initializer_list>
#include <string>
#include <vector>

#include "runtime/matrix.h"
#include "runtime/status.h"

namespace trimaran::api {

namespace nb = nanobind;
using Array = nb::ndarray<nb::ro>;

enum class Element { u8, i32, i64, f32, bf16 };

// An aligned, C-contiguous array in CPU memory. The view is good as long as `owner` lives.
struct ArrayView {
  nb::object owner;
  void* data;
  std::vector<int64_t> shape;
  Element element;

  int64_t size() const;
};

// Throws KernelError unless `object` is an array of one of `elements` and of `n_dims` dimensions; bf16 may
// also come as uint16. `writable` refuses read-only arrays.
ArrayView view_array(nb::handle object, const char* argument, std::initializer_list<Element> elements,
                     int n_dims, bool writable = false);

// Throws KernelError unless the dimension has this length.
void check_length(const ArrayView& view, const char* argument, int dimension, int64_t expected);

// A quantised matrix from (GGUF type id, uint8 array).
Matrix matrix_from(int type, const ArrayView& raw, const char* argument);

}  // namespace trimaran::api
