// The parts of the Python module `trimaran_kernels._native`.
#pragma once

#include <nanobind/nanobind.h>

void bind_core(nanobind::module_& module);
void bind_attention(nanobind::module_& module);
void bind_hop(nanobind::module_& module);
void bind_client(nanobind::module_& module);
void bind_decoder(nanobind::module_& module);
