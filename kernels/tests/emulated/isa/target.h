// Stands in for csrc/isa/target.h where intrinsics are emulated: everything is compiled for the baseline.
#pragma once

#define TRIMARAN_TARGET_BEGIN(features)
#define TRIMARAN_TARGET_END
#define TRIMARAN_UNROLL_8
#define TRIMARAN_UNROLL_16
#define TRIMARAN_KEEP_ORDER(vector)
