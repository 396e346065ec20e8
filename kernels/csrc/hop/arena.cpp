#include "hop/arena.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

namespace trimaran::hop {
namespace {

// Far above any model, and small enough that no product of them overflows 64 bits.
constexpr uint32_t kMaxHidden = 1u << 20;
constexpr uint32_t kMaxTopK = 1u << 12;
constexpr uint32_t kMaxTokens = 1u << 17;
constexpr uint32_t kMaxSlots = 1u << 10;

size_t round_up(size_t value, size_t step) { return (value + step - 1) / step * step; }

void check_range(const char* name, uint32_t value, uint32_t most) {
  if (value < 1 || value > most) {
    throw KernelError("arena: " + std::string(name) + " is " + std::to_string(value) + ", must be 1 to " +
                      std::to_string(most));
  }
}

[[noreturn]] void refuse(const std::string& path, const std::string& why) {
  throw KernelError("arena " + path + ": " + why);
}

// Closes on every way out.
class File {
 public:
  explicit File(const std::string& path)
      : fd_(open(path.c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK)) {
    if (fd_ < 0) refuse(path, std::strerror(errno));
  }
  ~File() { close(fd_); }
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  int fd() const { return fd_; }

 private:
  int fd_;
};

size_t checked_size(const File& file, const std::string& path) {
  struct stat info{};
  if (fstat(file.fd(), &info) != 0) refuse(path, std::strerror(errno));
  if (!S_ISREG(info.st_mode)) refuse(path, "not a regular file");
  if (info.st_uid != geteuid()) refuse(path, "belongs to another user");
  if ((info.st_mode & 0077) != 0) refuse(path, "others may open it; its mode must be 0600");
  if (static_cast<size_t>(info.st_size) < kPage) refuse(path, "too short to be an arena");
  return static_cast<size_t>(info.st_size);
}

}  // namespace

ArenaLayout arena_layout(const ArenaDims& dims) {
  check_range("hidden size", dims.hidden, kMaxHidden);
  check_range("top_k", dims.top_k, kMaxTopK);
  check_range("token count", dims.max_tokens, kMaxTokens);
  check_range("slot count", dims.n_slots, kMaxSlots);
  if (dims.dtype != DType::f32 && dims.dtype != DType::bf16) throw KernelError("arena: unknown element type");
  const size_t vectors = size_t{dims.max_tokens} * dims.hidden * dtype_bytes(dims.dtype);
  const size_t routes = size_t{dims.max_tokens} * dims.top_k * 4;
  ArenaLayout layout{};
  layout.x = sizeof(SlotControl);
  layout.ids = round_up(layout.x + vectors, kLine);
  layout.weights = round_up(layout.ids + routes, kLine);
  layout.y = round_up(layout.weights + routes, kLine);
  layout.slot_stride = round_up(layout.y + vectors, kPage);
  layout.file_bytes = kPage + layout.slot_stride * dims.n_slots;
  return layout;
}

Arena::Arena(const std::string& path) {
  const File file(path);
  const size_t size = checked_size(file, path);
  ArenaHeader header{};
  if (pread(file.fd(), static_cast<void*>(&header), sizeof(header), 0) !=
      static_cast<ssize_t>(sizeof(header))) {
    refuse(path, "cannot be read");
  }
  if (std::memcmp(header.magic, kMagic, sizeof(kMagic)) != 0) refuse(path, "not an arena");
  if (header.version != kVersion) {
    refuse(path, "version " + std::to_string(header.version) + ", need " + std::to_string(kVersion));
  }
  dims_ = {header.hidden, header.top_k, header.max_tokens, header.n_slots, static_cast<DType>(header.dtype)};
  layout_ = arena_layout(dims_);
  if (header.slot_stride != layout_.slot_stride || header.file_bytes != layout_.file_bytes ||
      size != layout_.file_bytes) {
    refuse(path, "its dimensions and its size of " + std::to_string(size) + " bytes contradict each other");
  }
  try {
    mapping_ = std::make_unique<SharedMapping>(file.fd(), layout_.file_bytes);
  } catch (const KernelError& error) {
    refuse(path, error.what());
  }
}

}  // namespace trimaran::hop
