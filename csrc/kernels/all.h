/* all.h -- every kernel at one dtype. Included by isa/isa.h with `real`, `DT` and VBYTES (register width) set. */
#define FN(name) PM_CAT(name, DT)
#define vec FN(vec)
#define LANES ((ptrdiff_t)(VBYTES / sizeof(real)))
typedef real vec __attribute__((vector_size(VBYTES), aligned(sizeof(real)), may_alias));
#include "vmath.h"
#include "peak.h"
#include "pack.h"
#include "transpose.h"
#include "gemm.h"
#include "lowrank.h"
#include "weigh.h"
#include "mix.h"
#include "tensor.h"
#include "activation.h"
#include "elementwise.h"
#include "norm.h"
#include "tile.h"
#include "attention.h"
#include "rope.h"
#include "gather.h"
#include "loss.h"
#include "route.h"
#include "prior.h"
#include "pool.h"
#include "adam.h"
#include "random.h"
#define PM_ENTRY(name, args) .name = FN(name),
static const struct PM_CAT(pm_kernels, DT) FN(kernels) = { PM_KERNELS(PM_ENTRY, real) };
#undef PM_ENTRY
#undef FN
#undef vec
#undef LANES
#undef mask
#undef PM_SINGLE
#undef PANEL
#undef PANEL_BF16
#undef IN_PAIRS
#undef FEW_ROWS
#undef FETCH_AHEAD
#undef LARGE
#undef STAGE_AHEAD
#undef AHEAD
#undef TILE_HEIGHT
#undef TILE_WIDTH
#undef ROUND_UP
#undef FEW_RANKS
#undef PROJ_ROWS
#undef STEP
#undef PEAK_CHAINS
#undef real
#undef DT
