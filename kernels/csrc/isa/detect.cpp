#include "isa/isa.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace trimaran {
namespace {

#if defined(__x86_64__)

struct Registers {
  uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0;
};

Registers cpuid(uint32_t leaf, uint32_t subleaf) {
  Registers r;
  __get_cpuid_count(leaf, subleaf, &r.eax, &r.ebx, &r.ecx, &r.edx);
  return r;
}

bool bit(uint32_t word, int position) { return (word >> position & 1u) != 0; }

// Which register files the operating system saves on a context switch (Intel SDM vol. 1, 13.3).
uint64_t enabled_state() {
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return static_cast<uint64_t>(high) << 32 | low;
}

bool has_all(uint64_t state, uint64_t mask) { return (state & mask) == mask; }

#endif

CpuFeatures ask_cpu() {
  CpuFeatures f;
#if defined(__x86_64__)
  const Registers leaf1 = cpuid(1, 0);
  const bool os_uses_xsave = bit(leaf1.ecx, 27);
  if (!os_uses_xsave) return f;
  const uint64_t state = enabled_state();
  const bool ymm = has_all(state, 0x6);       // SSE, AVX
  const bool zmm = has_all(state, 0xe6);      // and opmask, ZMM
  const bool tile = has_all(state, 0x60000);  // TILECFG, TILEDATA
  const Registers leaf7 = cpuid(7, 0);
  const Registers leaf7_1 = cpuid(7, 1);
  f.fma = ymm && bit(leaf1.ecx, 12);
  f.f16c = ymm && bit(leaf1.ecx, 29);
  f.avx2 = ymm && bit(leaf7.ebx, 5);
  f.avx_vnni = ymm && bit(leaf7_1.eax, 4);
  f.avx512f = zmm && bit(leaf7.ebx, 16);
  f.avx512bw = zmm && bit(leaf7.ebx, 30);
  f.avx512vl = zmm && bit(leaf7.ebx, 31);
  f.avx512_vnni = zmm && bit(leaf7.ecx, 11);
  f.avx512_bf16 = zmm && bit(leaf7_1.eax, 5);
  f.amx_bf16 = tile && bit(leaf7.edx, 22);
  f.amx_tile = tile && bit(leaf7.edx, 24);
  f.amx_int8 = tile && bit(leaf7.edx, 25);
#endif
  return f;
}

}  // namespace

const CpuFeatures& detect_cpu() {
  // Asked once: in a virtual machine each CPUID is a trap of tens of microseconds.
  static const CpuFeatures features = ask_cpu();
  return features;
}

std::vector<std::string> feature_names(const CpuFeatures& f) {
  std::vector<std::string> names;
  const auto add = [&names](bool present, const char* name) {
    if (present) names.emplace_back(name);
  };
  add(f.avx2, "avx2");
  add(f.fma, "fma");
  add(f.f16c, "f16c");
  add(f.avx_vnni, "avx_vnni");
  add(f.avx512f, "avx512f");
  add(f.avx512bw, "avx512bw");
  add(f.avx512vl, "avx512vl");
  add(f.avx512_vnni, "avx512_vnni");
  add(f.avx512_bf16, "avx512_bf16");
  add(f.amx_tile, "amx_tile");
  add(f.amx_int8, "amx_int8");
  add(f.amx_bf16, "amx_bf16");
  return names;
}

}  // namespace trimaran
