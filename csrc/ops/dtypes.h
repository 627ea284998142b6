/* dtypes.h -- include the file named PM_SELF once per dtype. */
#include "ops.h"
#define real float
#define DT f32
#include PM_SELF
#undef real
#undef DT
#define real double
#define DT f64
#include PM_SELF
#undef real
#undef DT
#undef PM_SELF
