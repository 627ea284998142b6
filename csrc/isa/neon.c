#include "../pm.h"
#if defined(__aarch64__)
#define VBYTES 16    /* register width, 32 registers */
#include "isa.h"
static int supported(void) { return 1; }    /* Advanced SIMD is part of every AArch64 */
const struct pm_isa pm_isa_neon = { "neon", supported, &kernels_f32, NULL };
#endif
