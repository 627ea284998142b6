/* isa.h -- one instruction set: every kernel at float32 (and, at base, float64), and the tables that hold them. */
#define real float
#define DT f32
#include "../kernels/all.h"
#ifdef PM_WITH_F64
#define real double
#define DT f64
#include "../kernels/all.h"
#endif
