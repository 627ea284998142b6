#include "../pm.h"
#if defined(__x86_64__)
#define VBYTES 32    /* register width, 16 registers */
#define TILE_ROWS 6    /* of a product: 12 accumulators of 16 registers */
#define TILE_VECS 2
PM_TARGET_BEGIN("avx2,fma")
#include "isa.h"
PM_TARGET_END
static int supported(void) { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
const struct pm_isa pm_isa_avx2 = { "avx2", supported, &kernels_f32, NULL };
#endif
