// A mapped file of another process, which may cut it short at any time.
#pragma once

#include <cstddef>
#include <cstdint>

namespace trimaran::hop {

// The whole of a file, readable and writable, shared with its other users. Touching a page that the file does
// not have any more is SIGBUS, in whatever thread and however deep. A handler then puts empty memory of this
// process in the place of the whole mapping, and the thread goes on as if the file were zeros; lost() tells.
// No other SIGBUS is caught. Threads that touch the mapping must not block the signal.
class SharedMapping {
 public:
  // Throws KernelError, without naming the file, if it cannot be mapped, or if 256 mappings are there
  // already.
  SharedMapping(int fd, size_t bytes);
  ~SharedMapping();
  SharedMapping(const SharedMapping&) = delete;
  SharedMapping& operator=(const SharedMapping&) = delete;

  uint8_t* data() const { return data_; }
  // Whether the file was cut short, and this memory is nobody else's now.
  bool lost() const;

 private:
  uint8_t* data_;
  size_t bytes_;
  int place_;  // in the handler's table
};

}  // namespace trimaran::hop
