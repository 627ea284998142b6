#include "../pm.h"
#if defined(__aarch64__)
#define VBYTES 16    /* register width, 32 registers */
#define TILE_ROWS 6    /* of a product: 24 accumulators of 32 registers */
#define TILE_VECS 4
#include "isa.h"
static int supported(void) { return 1; }    /* Advanced SIMD is part of every AArch64 */
const struct pm_isa pm_isa_neon = { "neon", supported, &kernels_f32, NULL };
#endif
