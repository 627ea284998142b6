#include "../pm.h"
#define VBYTES 16    /* register width; SSE2 on x86-64, whatever the compiler's baseline offers elsewhere */
#ifdef __clang__
#define TILE_ROWS 2    /* of a product: 8 accumulators of 16 registers; clang 19 spills some of 12 */
#else
#define TILE_ROWS 3    /* of a product: 12 accumulators of 16 registers */
#endif
#define TILE_VECS 4    /* a whole panel: fewer copies of a row's value than with 6 x 2 */
#define PM_WITH_F64
#include "isa.h"
static int supported(void) { return 1; }
const struct pm_isa pm_isa_base = { "base", supported, &kernels_f32, &kernels_f64 };
