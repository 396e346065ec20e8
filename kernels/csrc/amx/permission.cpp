#include "amx/permission.h"

#include <cerrno>
#include <system_error>

#if defined(__linux__) && defined(__x86_64__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace trimaran::amx {

std::string request_tiles() {
#if defined(__linux__) && defined(__x86_64__)
  // Linux, Documentation/arch/x86/xstate.rst: 8 KiB of registers are saved only for processes that ask.
  constexpr int kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM
  constexpr int kTileData = 18;               // XFEATURE_XTILEDATA
  if (syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0) return "";
  return "arch_prctl: " + std::generic_category().message(errno);
#else
  return "only Linux's way is known";
#endif
}

}  // namespace trimaran::amx
