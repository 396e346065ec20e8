// Instruction sets, what this CPU offers, and which implementation runs.
#pragma once

#include <string>
#include <vector>

#include "isa/primitives.h"

namespace trimaran {

// A feature counts only if the operating system also saves its registers (XCR0).
struct CpuFeatures {
  bool avx2 = false;
  bool fma = false;
  bool f16c = false;
  bool avx_vnni = false;
  bool avx512f = false;
  bool avx512bw = false;
  bool avx512vl = false;
  bool avx512_vnni = false;
  bool avx512_bf16 = false;
  bool amx_tile = false;
  bool amx_int8 = false;
  bool amx_bf16 = false;
};

const CpuFeatures& detect_cpu();

// Names of the features that are there, e.g. {"avx2", "fma"}.
std::vector<std::string> feature_names(const CpuFeatures& features);

struct Selection {
  const Primitives* primitives;
  std::string explanation;  // e.g. "avx2: chosen" or "avx2: refused, needs fma; generic: chosen"
};

// The first implementation, best first, that the CPU can run and `cap` allows. `cap` is "auto" or a name from
// best to least: amx, avx512_vnni, avx512, avx_vnni, avx2, generic. TRIMARAN_ISA in the environment caps
// further. Throws KernelError on an unknown name.
Selection select_isa(const std::string& cap);
Selection select_isa(const std::string& cap, const CpuFeatures& features);

// Names of the implementations in this build, best first.
std::vector<std::string> built_isas();

}  // namespace trimaran
