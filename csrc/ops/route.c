/* route.c -- the task router for every group (kernels/route.h). Little work, and tasks repeat among groups: one thread. */
#ifndef DT
#define PM_SELF "../ops/route.c"
#include "dtypes.h"
#else

/* noise may be NULL. */
void FN(pm_task_router_fwd)(ptrdiff_t G, ptrdiff_t Q, ptrdiff_t S, const real *logits,
                            const int64_t *task_ids, const real *noise, double temperature, real *weights,
                            real *gates)
{
    const ptrdiff_t QS = Q * S;
    for (ptrdiff_t g = 0; g < G; g++)
        K->task_router_fwd(Q, S, logits + task_ids[g] * QS, noise ? noise + g * QS : NULL, temperature,
                           weights + g * QS, gates + g * QS);
}

/* dlogits [T,Q,S]: rows of tasks that no group has are 0; groups of one task are added in order. */
void FN(pm_task_router_bwd)(ptrdiff_t T, ptrdiff_t G, ptrdiff_t Q, ptrdiff_t S, const real *dweights,
                            const int64_t *task_ids, const real *weights, const real *gates,
                            double temperature, real *dlogits)
{
    const ptrdiff_t QS = Q * S;
    memset(dlogits, 0, (size_t)(T * QS) * sizeof(real));
    for (ptrdiff_t g = 0; g < G; g++)
        K->task_router_bwd(Q, S, dweights + g * QS, weights + g * QS, gates + g * QS, temperature,
                           dlogits + task_ids[g] * QS);
}
#endif
