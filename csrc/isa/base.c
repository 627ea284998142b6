#include "../pm.h"
#define VBYTES 16    /* register width; SSE2 on x86-64, whatever the compiler's baseline offers elsewhere */
#define TILE_ROWS 6    /* of a product: 12 accumulators of 16 registers */
#define TILE_VECS 2
#define PM_WITH_F64
#include "isa.h"
static int supported(void) { return 1; }
const struct pm_isa pm_isa_base = { "base", supported, &kernels_f32, &kernels_f64 };
