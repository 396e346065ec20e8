#include <cstdlib>

#include "amx/amx.h"
#include "amx/permission.h"
#include "avx2/avx2.h"
#include "avx512/avx512.h"
#include "generic/generic.h"
#include "isa/isa.h"
#include "runtime/status.h"

namespace trimaran {
namespace {

// Best first; a cap allows itself and everything after it.
constexpr const char* kOrder[] = {"amx", "avx512_vnni", "avx512", "avx_vnni", "avx2", "generic"};
constexpr int kOrderSize = sizeof kOrder / sizeof kOrder[0];

struct Implementation {
  const char* name;
  const Primitives& (*primitives)();
  std::string (*missing)(const CpuFeatures&);  // features that the CPU lacks; empty if it can run
  std::string (*request)();                    // asks the operating system; empty if it agrees, else why not
};

std::string granted() { return ""; }

std::string nothing(const CpuFeatures&) { return ""; }

#if defined(__x86_64__)
std::string missing_for_avx2(const CpuFeatures& f) {
  std::string missing;
  if (!f.avx2) missing += " avx2";
  if (!f.fma) missing += " fma";
  if (!f.f16c) missing += " f16c";
  return missing;
}

std::string missing_for_avx_vnni(const CpuFeatures& f) {
  return missing_for_avx2(f) + (f.avx_vnni ? "" : " avx_vnni");
}

std::string missing_for_avx512(const CpuFeatures& f) {
  std::string missing = missing_for_avx2(f);
  if (!f.avx512f) missing += " avx512f";
  if (!f.avx512bw) missing += " avx512bw";
  if (!f.avx512vl) missing += " avx512vl";
  return missing;
}

std::string missing_for_vnni(const CpuFeatures& f) {
  return missing_for_avx512(f) + (f.avx512_vnni ? "" : " avx512_vnni");
}

std::string missing_for_amx(const CpuFeatures& f) {
  std::string missing = missing_for_vnni(f);
  if (!f.amx_tile) missing += " amx_tile";
  if (!f.amx_bf16) missing += " amx_bf16";
  if (!f.avx512_bf16) missing += " avx512_bf16";  // activations are rounded by it
  return missing;
}
#endif

// In the order of kOrder.
constexpr Implementation kImplementations[] = {
#if defined(__x86_64__)
    {"amx", amx::primitives, missing_for_amx, amx::request_tiles},
    {"avx512_vnni", avx512::vnni_primitives, missing_for_vnni, granted},
    {"avx512", avx512::primitives, missing_for_avx512, granted},
    {"avx_vnni", avx2::vnni_primitives, missing_for_avx_vnni, granted},
    {"avx2", avx2::primitives, missing_for_avx2, granted},
#endif
    {"generic", generic::primitives, nothing, granted},
};

int rank(const std::string& name, const char* source) {
  if (name == "auto") return 0;
  for (int i = 0; i < kOrderSize; ++i) {
    if (name == kOrder[i]) return i;
  }
  throw KernelError(
      std::string(source) + " \"" + name +
      "\" is no instruction set: use auto, amx, avx512_vnni, avx512, avx_vnni, avx2 or generic");
}

std::string environment_cap() {
  const char* value = std::getenv("TRIMARAN_ISA");
  return value == nullptr || *value == '\0' ? "auto" : value;
}

}  // namespace

Selection select_isa(const std::string& cap) { return select_isa(cap, detect_cpu()); }

Selection select_isa(const std::string& cap, const CpuFeatures& features) {
  const int from_caller = rank(cap, "isa");
  const int from_environment = rank(environment_cap(), "TRIMARAN_ISA");
  std::string explanation;
  for (const Implementation& implementation : kImplementations) {
    const int own = rank(implementation.name, "isa");
    const std::string missing = implementation.missing(features);
    explanation += (explanation.empty() ? "" : "; ") + std::string(implementation.name);
    if (!missing.empty()) {
      explanation += ": refused, this CPU lacks" + missing;
    } else if (own < from_caller) {
      explanation += ": refused, capped at " + cap;
    } else if (own < from_environment) {
      explanation += ": refused, TRIMARAN_ISA=" + environment_cap();
    } else if (const std::string refusal = implementation.request(); !refusal.empty()) {
      explanation += ": refused by the operating system, " + refusal;
    } else {
      return {&implementation.primitives(), explanation + ": chosen"};
    }
  }
  throw KernelError("isa: no implementation runs on this CPU");  // generic runs everywhere
}

std::vector<std::string> built_isas() {
  std::vector<std::string> names;
  for (const Implementation& implementation : kImplementations) names.emplace_back(implementation.name);
  return names;
}

}  // namespace trimaran
