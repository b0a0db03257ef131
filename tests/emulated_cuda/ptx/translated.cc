#include "translated.h"

#include <dlfcn.h>

#include <cfenv>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <map>
#include <stdexcept>
#include <string>
#include <unordered_map>

#include "machine.h"

namespace ptx {

namespace {

std::map<std::string, Kernel>& kernels() {
  static auto* const all = new std::map<std::string, Kernel>;
  return *all;
}

// Kernels by the address of the compiled function of the same name. Most of these have no name outside of
// their file, so the symbols are binutils' to list.
std::unordered_map<const void*, const Kernel*> by_address() {
  std::unordered_map<const void*, const Kernel*> found;
  Dl_info module{};
  dladdr(reinterpret_cast<const void*>(&by_address), &module);
  FILE* const symbols = popen(("nm '" + std::string(module.dli_fname) + "'").c_str(), "r");
  char line[4096], name[4096], type;
  uint64_t offset = 0;
  while (symbols != nullptr && std::fgets(line, sizeof line, symbols) != nullptr) {
    if (std::sscanf(line, "%lx %c %4095s", &offset, &type, name) != 3) continue;
    const auto kernel = kernels().find(name);
    if (kernel != kernels().end()) found[static_cast<char*>(module.dli_fbase) + offset] = &kernel->second;
  }
  if (symbols != nullptr) pclose(symbols);
  if (found.size() != kernels().size()) throw std::logic_error("kernels of PTX that no launch can name");
  return found;
}

}  // namespace

Registered::Registered(const char* name, Kernel kernel) { kernels()[name] = kernel; }

const Kernel* in_place_of(const void* compiled) {
  static const auto all = by_address();
  const auto found = all.find(compiled);
  return found == all.end() ? nullptr : found->second;
}

float fused_down(float x, float y, float z) {
  const int usual = std::fegetround();
  volatile float first = x, result;  // volatile: calculated between the two calls
  std::fesetround(FE_DOWNWARD);
  result = std::fma(first, y, z);
  std::fesetround(usual);
  return result;
}

}  // namespace ptx
