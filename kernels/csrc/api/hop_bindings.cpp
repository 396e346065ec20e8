// Python binding of the hop: arena, doorbell and worker loop.
#include "api/module.h"

void bind_hop(nanobind::module_&) {}
