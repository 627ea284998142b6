/* ops.h -- what every parallel operation stands on: one way to run items on threads, one way to get memory. */
#ifndef PM_OPS_H
#define PM_OPS_H
#include "../pm.h"

/* Run fn(ctx, item) for items 0..n_items-1, each exactly once, on the threads that are allowed. `work` is the whole call's
 * cost in flops (or bytes, the scale is coarse): below a threshold it runs on the calling thread. Items must not write the
 * same memory and no result may depend on which thread runs an item. */
typedef void (*pm_item)(void *ctx, ptrdiff_t item);
void pm_parallel(ptrdiff_t n_items, double work, pm_item fn, void *ctx);
int pm_get_num_threads(void);
void pm_set_num_threads(int n); /* 0: back to the default (OpenMP's limit, affinity, cgroup quota) */
int pm_set_num_threads_here(
    int n); /* for calls from this thread, whatever the above says; returns what it was */
const char *pm_openmp(void); /* "none" when built without */

/* 64-byte aligned blocks, kept for reuse when put back, so that large temporaries do not fault in fresh pages each step.
 * Thread-safe. NULL when memory is out. */
void *pm_block_get(size_t bytes);
void pm_block_put(void *block);
size_t pm_block_release(void); /* frees the idle blocks, returns their bytes */
/* Bytes in use, and the most since the last restart. */
void pm_block_usage(int restart, size_t *used, size_t *most);

/* An operation's text is written once in `real`/FN(name)/K->kernel and compiled for float32 and float64:
 * its file begins with  #ifndef DT / #define PM_SELF "../ops/name.c" / #include "dtypes.h" / #else  and ends with  #endif. */
#define FN(name) PM_CAT(name, DT)
#define K PM_CAT(pm, DT) /* the table of kernels in use at this dtype */
#endif
