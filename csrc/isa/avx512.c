#include "../pm.h"
#if defined(__x86_64__)
#define VBYTES 64    /* register width, 32 registers */
#define TILE_ROWS 12    /* of a product: 24 accumulators of 32 registers */
#define TILE_VECS 2
PM_TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")
#include "isa.h"
PM_TARGET_END
static int supported(void)
{
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
const struct pm_isa pm_isa_avx512 = { "avx512", supported, &kernels_f32, NULL };
#endif
