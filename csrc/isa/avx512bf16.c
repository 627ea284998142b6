#include "../pm.h"
#if defined(__x86_64__)
#include <immintrin.h>
#define VBYTES 64    /* as avx512, whose tiles these are */
#define TILE_ROWS 12
#define TILE_VECS 2
/* sum[l] += a[2l] * b[0] + a[2l+1] * b[1], the pair b the same for all l */
#define PM_BF16_DOT(sum, a, b) \
    ((vec)_mm512_dpbf16_ps((__m512)(sum), (__m512bh)(a), (__m512bh)_mm512_set1_ps(*(b))))
/* 2 * LANES floats, to nearest, ties to even */
#define PM_BF16_ROUND(from, to) \
    _mm512_storeu_si512(        \
        to, (__m512i)_mm512_cvtne2ps_pbh(_mm512_loadu_ps((from) + LANES), _mm512_loadu_ps(from)))
PM_TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")
#include "isa.h"
PM_TARGET_END
static int supported(void)
{
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512bf16");
}
const struct pm_isa pm_isa_avx512bf16 = { "avx512bf16", supported, &kernels_f32, NULL };
#endif
