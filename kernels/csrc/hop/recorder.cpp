#include "hop/recorder.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace trimaran::hop {
namespace {

constexpr uint32_t kVersion = 1;
constexpr uint32_t kMark = 0x4C4C4143;  // "CALL"
constexpr int32_t kOk = static_cast<int32_t>(Status::ok);

struct FileHeader {
  char magic[8];
  uint32_t version;
  uint32_t hidden;
  uint32_t top_k;
  uint32_t n_experts;
  char fingerprint[104];
};
static_assert(sizeof(FileHeader) == 128);

struct CallHeader {
  uint32_t mark;
  int32_t layer;
  uint32_t n_tokens;
  uint32_t dtype;
  int32_t status;
  uint32_t zero;
  uint64_t ns;
};
static_assert(sizeof(CallHeader) == 32);

}  // namespace

Recorder::Recorder(const std::string& path, uint64_t max_bytes, const EngineDims& dims,
                   const std::string& fingerprint)
    : dims_(dims), max_bytes_(max_bytes) {
  FileHeader header{{'T', 'R', 'I', 'R', 'E', 'C', 'R', 'D'}, kVersion,
                    static_cast<uint32_t>(dims.hidden),       static_cast<uint32_t>(dims.top_k),
                    static_cast<uint32_t>(dims.n_experts),    {}};
  fingerprint.copy(header.fingerprint, sizeof header.fingerprint);
  fd_ = open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
  if (fd_ < 0) throw KernelError("record " + path + ": " + std::strerror(errno));
  if (!put(&header, sizeof header)) {
    close(fd_);
    throw KernelError("record " + path + ": cannot be written");
  }
}

Recorder::~Recorder() { close(fd_); }

void Recorder::write(const Call& call, const std::vector<int32_t>& ids, const std::vector<float>& weights,
                     int32_t status) noexcept {
  const size_t vectors = vector_bytes(call, dims_.hidden);
  const size_t answer = status == kOk ? vectors : 0;
  const size_t routes = ids.size() * 4;
  const auto now = std::chrono::steady_clock::now() - start_;
  const CallHeader header{kMark,
                          call.layer,
                          call.n_tokens,
                          static_cast<uint32_t>(call.dtype),
                          status,
                          0,
                          static_cast<uint64_t>(std::chrono::nanoseconds(now).count())};
  const std::lock_guard<std::mutex> lock(mutex_);
  const uint64_t before = bytes_;
  if (full_ || before + sizeof header + vectors + 2 * routes + answer > max_bytes_) {
    full_ = true;
  } else if (put(&header, sizeof header) && put(call.x, vectors) && put(ids.data(), routes) &&
             put(weights.data(), routes) && put(call.y, answer)) {
    ++calls_;
  } else {  // a full disk: cut the half-written call off
    full_ = true;
    bytes_ = before;
    if (ftruncate(fd_, static_cast<off_t>(before)) != 0) return;
  }
}

bool Recorder::put(const void* data, size_t size) noexcept {
  const auto* bytes = static_cast<const uint8_t*>(data);
  while (size > 0) {
    const ssize_t written = ::write(fd_, bytes, size);
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) return false;
    bytes += written;
    size -= static_cast<size_t>(written);
    bytes_ += static_cast<uint64_t>(written);
  }
  return true;
}

uint64_t Recorder::calls() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return calls_;
}

uint64_t Recorder::bytes() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return bytes_;
}

bool Recorder::full() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return full_;
}

}  // namespace trimaran::hop
