#pragma once

#include <cstddef>
#include <cstring>
#include <tuple>
#include <vector>

// Kernels that to_cpp.py has made of PTX, in the place of those that the C++ compiler makes.
namespace ptx {

struct Kernel {
  void (*run)(char* parameters);
  size_t parameter_bytes, shared_bytes;
};

// Makes a kernel known by the name that the C++ compiler gives to the same function.
struct Registered {
  Registered(const char* name, Kernel kernel);
};

// The kernel in the place of one that was compiled, by its address; null if there is none.
const Kernel* in_place_of(const void* compiled);

// A launch's arguments as a kernel finds them: one behind the other, each where its type may lie.
template <typename... Parameters>
std::vector<char> packed(const std::tuple<Parameters...>& parameters) {
  std::vector<char> bytes;
  const auto add = [&](const auto& one) {
    constexpr size_t kAlign = alignof(decltype(one));
    const size_t at = (bytes.size() + kAlign - 1) / kAlign * kAlign;
    bytes.resize(at + sizeof one);
    std::memcpy(bytes.data() + at, &one, sizeof one);
  };
  std::apply([&](const auto&... each) { (add(each), ...); }, parameters);
  return bytes;
}

}  // namespace ptx
