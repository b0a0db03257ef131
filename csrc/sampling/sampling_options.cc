#include "sampling/sampling_options.h"

#include <charconv>
#include <cmath>
#include <string>

#include "common/error.h"

namespace qwen2vl {

namespace {

template <typename T>
void require(bool valid, const char* name, T value, const char* rule) {
  if (valid) return;
  char digits[32];  // all that tell the value from others: 1.0000001 is not 1
  const auto end = std::to_chars(digits, digits + sizeof(digits), value).ptr;
  throw InputError(std::string(name) + " must be " + rule + ", got " + std::string(digits, end));
}

}  // namespace

void SamplingOptions::validate() const {
  require(std::isfinite(temperature) && temperature >= 0, "temperature", temperature,
          "0 (greedy) or positive and finite");
  require(top_k >= 0, "top_k", top_k, "0 (off) or positive");
  require(top_p >= 0 && top_p <= 1, "top_p", top_p, "between 0 and 1");
  require(min_p >= 0 && min_p <= 1, "min_p", min_p, "between 0 and 1");
  require(std::isfinite(repetition_penalty) && repetition_penalty > 0, "repetition_penalty",
          repetition_penalty, "positive and finite (1 is off)");
  require(std::isfinite(presence_penalty), "presence_penalty", presence_penalty, "a finite number");
  require(std::isfinite(frequency_penalty), "frequency_penalty", frequency_penalty, "a finite number");
  require(logprobs >= -1, "logprobs", logprobs, "-1 (off) or the number of alternatives");
}

}  // namespace qwen2vl
