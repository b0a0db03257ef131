#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "common/error.h"

// numpy arrays at the border: checked on the way in, views without copies on the way out.
namespace qwen2vl {

// C-contiguous float32; other float arrays are converted. Throws InputError for another number of dimensions.
using FloatArray = pybind11::array_t<float, pybind11::array::c_style | pybind11::array::forcecast>;

// `object` as an array. Throws InputError with `complaint` where numpy finds its value or type wrong; what
// says nothing about the value (Ctrl-C, a lack of memory) passes through.
template <typename Array>
Array as_array(const pybind11::handle& object, const std::string& complaint) {
  try {
    return Array(pybind11::reinterpret_borrow<pybind11::object>(object));
  } catch (const pybind11::error_already_set& error) {
    if (error.matches(PyExc_TypeError) || error.matches(PyExc_ValueError)) throw InputError(complaint);
    throw;
  }
}

inline void require_dimensions(const pybind11::array& array, int dimensions, const char* name) {
  if (array.ndim() != dimensions) {
    throw InputError(std::string(name) + " must have " + std::to_string(dimensions) + " dimensions, got " +
                     std::to_string(array.ndim()));
  }
}

inline FloatArray float_array(const pybind11::handle& object, int dimensions, const char* name) {
  auto array = as_array<FloatArray>(object, std::string(name) + " must be a float32 array");
  require_dimensions(array, dimensions, name);
  return array;
}

// The values of an array of `dimensions` dimensions, in C order. Integers of any width; floats and strings
// are refused rather than rounded.
template <typename Integer>
std::vector<Integer> integer_vector(const pybind11::handle& object, const char* name, int dimensions = 1) {
  namespace py = pybind11;
  const std::string complaint = std::string(name) + " must be an array of integers";
  const auto array = as_array<py::array>(object, complaint);
  require_dimensions(array, dimensions, name);
  const char kind = array.dtype().kind();
  if (array.size() != 0 && kind != 'i' && kind != 'u') {
    throw InputError(complaint + ", got dtype " + std::string(py::str(array.dtype())));
  }
  using Wide = std::conditional_t<std::is_unsigned_v<Integer>, uint64_t, int64_t>;
  using WideArray = py::array_t<Wide, py::array::c_style | py::array::forcecast>;
  const auto wide = as_array<WideArray>(array, complaint);
  std::vector<Integer> values(wide.size());
  for (size_t i = 0; i < values.size(); ++i) {
    const Wide value = wide.data()[i];
    if (value < static_cast<Wide>(std::numeric_limits<Integer>::min()) ||
        value > static_cast<Wide>(std::numeric_limits<Integer>::max())) {
      throw InputError(std::string(name) + "[" + std::to_string(i) + "] = " + std::to_string(value) +
                       " is out of range");
    }
    values[i] = static_cast<Integer>(value);
  }
  return values;
}

// grids [n, 3]: t, h, w in patches, flattened. An empty list counts as n = 0.
inline std::vector<int64_t> grid_vector(const pybind11::handle& object) {
  namespace py = pybind11;
  if (object.is_none()) return {};
  const auto array = as_array<py::array>(object, "grids must be an array of integers [n, 3]");
  if (array.size() == 0) return {};
  if (array.ndim() != 2 || array.shape(1) != 3) throw InputError("grids must have the shape [n, 3]");
  return integer_vector<int64_t>(array, "grids", 2);
}

// The bytes of a C-contiguous array that lies at byte `offset` of a block of `bytes`, or is copied there.
// Throws InputError unless it fits.
inline size_t checked_bytes(const pybind11::array& array, size_t offset, size_t bytes) {
  if (!(array.flags() & pybind11::array::c_style)) throw InputError("the array must be C-contiguous");
  const auto size = static_cast<size_t>(array.nbytes());
  if (offset > bytes || size > bytes - offset) {
    throw InputError("an array of " + std::to_string(size) + " bytes at byte " + std::to_string(offset) +
                     " does not fit a block of " + std::to_string(bytes));
  }
  return size;
}

// A view of memory that `owner` keeps alive.
template <typename T>
pybind11::array_t<T> view_of(const T* data, std::vector<pybind11::ssize_t> shape,
                             const pybind11::handle& owner) {
  return pybind11::array_t<T>(std::move(shape), data, owner);
}

}  // namespace qwen2vl
