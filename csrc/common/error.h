#pragma once

#include <stdexcept>
#include <string>

namespace qwen2vl {

// Base of everything the compiled runtime throws on purpose; reaches Python as qwen2vl_rt.Qwen2VLError.
// A message says what was wrong, with the offending value, and what to do about it.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// The caller's input cannot be used (qwen2vl_rt.InputError). The object called stays usable.
class InputError : public Error {
 public:
  using Error::Error;
};

// Prompt and answer together do not fit the KV cache (qwen2vl_rt.PromptTooLongError).
class PromptTooLongError : public InputError {
 public:
  using InputError::InputError;
};

// A file of the bundle does not hold what its manifest promises (qwen2vl_rt.BundleError).
class BundleError : public Error {
 public:
  using Error::Error;
};

// A GPU is missing, or failed at what it was asked to do (qwen2vl_rt.BackendError).
class DeviceError : public Error {
 public:
  using Error::Error;
};

// Memory that was planned for could not be had (qwen2vl_rt.MemoryLimitError).
class MemoryLimitError : public Error {
 public:
  using Error::Error;
};

}  // namespace qwen2vl
