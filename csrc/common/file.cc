#include "common/file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "common/error.h"

namespace qwen2vl {

File::File(const std::string& path) : path_(path), descriptor_(open(path.c_str(), O_RDONLY | O_CLOEXEC)) {
  if (descriptor_ < 0) throw BundleError("cannot open " + path + ": " + std::strerror(errno));
  struct stat status;
  std::string failure;
  if (fstat(descriptor_, &status) != 0) {
    failure = std::strerror(errno);
  } else if (!S_ISREG(status.st_mode)) {
    failure = "not a regular file";
  } else if (status.st_size == 0) {
    failure = "it is empty";
  }
  if (!failure.empty()) {
    close(descriptor_);
    throw BundleError("cannot read " + path + ": " + failure);
  }
  size_ = status.st_size;
}

File::~File() { close(descriptor_); }

void File::read(int64_t offset, int64_t bytes, void* to) const {
  auto* next = static_cast<char*>(to);
  while (bytes > 0) {
    const ssize_t got = pread(descriptor_, next, bytes, offset);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) {
      throw BundleError("cannot read " + path_ + " at byte " + std::to_string(offset) + ": " +
                        (got < 0 ? std::strerror(errno) : "the file has become shorter"));
    }
    next += got;
    offset += got;
    bytes -= got;
  }
}

}  // namespace qwen2vl
