#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace qwen2vl {

// Cuts a stream of text at the first stop string, wherever the pieces' borders fall. Text that could be the
// start of a stop string is held back until it is clear that it is not. The stop string that is complete
// first wins; of those complete with the same character, the longest.
class StopStrings {
 public:
  // Throws InputError for an empty stop string.
  explicit StopStrings(std::vector<std::string> strings);
  StopStrings(const StopStrings&) = delete;  // found_ points into strings_
  StopStrings& operator=(const StopStrings&) = delete;

  // Appends to `text` what is certain not to belong to a stop string. Nothing comes after one was found.
  void push(std::string_view piece, std::string* text);
  // The text is over: what was held back is text after all.
  void finish(std::string* text);

  // The stop string found, or null.
  const std::string* found() const { return found_; }

 private:
  size_t possible_start_size() const;

  std::vector<std::string> strings_;
  std::string held_;
  const std::string* found_ = nullptr;
};

}  // namespace qwen2vl
