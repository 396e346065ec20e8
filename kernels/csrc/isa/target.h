// Per-function instruction sets: code between TRIMARAN_TARGET_BEGIN and TRIMARAN_TARGET_END may use the named
// features, everything else stays at the architecture's baseline. Include standard headers before the region:
// an inline function compiled inside it could replace its baseline twin at link time.
#pragma once

#define TRIMARAN_PRAGMA(text) _Pragma(#text)

// Before a loop of at most so many rounds whose counter must be a constant in each, for instance as a shift
// count.
#if defined(__clang__)
#define TRIMARAN_UNROLL_8 TRIMARAN_PRAGMA(clang loop unroll(full))
#define TRIMARAN_UNROLL_16 TRIMARAN_UNROLL_8
#else
#define TRIMARAN_UNROLL_8 TRIMARAN_PRAGMA(GCC unroll 8)
#define TRIMARAN_UNROLL_16 TRIMARAN_PRAGMA(GCC unroll 16)
#endif

// Keeps the compiler from regrouping a long sum, for which it would first hold all terms, in memory.
#define TRIMARAN_KEEP_ORDER(vector) __asm__("" : "+v"(vector))

#if defined(__clang__)
#define TRIMARAN_TARGET_BEGIN(features) \
  TRIMARAN_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define TRIMARAN_TARGET_END TRIMARAN_PRAGMA(clang attribute pop)
#else
#define TRIMARAN_TARGET_BEGIN(features) \
  TRIMARAN_PRAGMA(GCC push_options) TRIMARAN_PRAGMA(GCC target(features))
#define TRIMARAN_TARGET_END TRIMARAN_PRAGMA(GCC pop_options)
#endif
