/* tensor.c -- Kronecker products of leaves (kernels/tensor.h); threads share out the components. */
#ifndef DT
#define PM_SELF "../ops/tensor.c"
#include <stdatomic.h>
#include "dtypes.h"
#else

struct FN(tensor) {
    ptrdiff_t order, r, m, d;
    const real *leaves, *dout;
    double eps;
    real *out;    /* or dleaves */
    atomic_int failed;
};

/* Values of the inner products of a component. */
static ptrdiff_t FN(tensor_scratch)(ptrdiff_t order, ptrdiff_t r, ptrdiff_t m)
{
    ptrdiff_t values = 0;
    for (; order > 2; order /= 2) {
        m *= m;
        values += order / 2 * r * m;
    }
    return values;
}

static void FN(tensor_item)(void *ctx, ptrdiff_t j)
{
    struct FN(tensor) *c = ctx;
    const ptrdiff_t leaves = c->r * c->order * c->m, product = c->r * c->d,
                    inner = FN(tensor_scratch)(c->order, c->r, c->m);
    real *scratch = pm_block_get((size_t)(2 * inner) * sizeof(real));
    if (!scratch) {
        atomic_store(&c->failed, 1);
        return;
    }
    if (c->dout)
        K->tensor_product_bwd(c->order, c->r, c->m, c->d, c->leaves + j * leaves, c->eps,
                              c->dout + j * product, scratch, c->out + j * leaves);
    else
        K->tensor_product_fwd(c->order, c->r, c->m, c->d, c->leaves + j * leaves, c->eps, scratch,
                              c->out + j * product);
    pm_block_put(scratch);
}

/* leaves [J, r, order m] -> out [J, r, d]; -1 when memory is out. */
int FN(pm_tensor_product_fwd)(ptrdiff_t order, ptrdiff_t J, ptrdiff_t r, ptrdiff_t m, ptrdiff_t d,
                              const real *leaves, double eps, real *out)
{
    struct FN(tensor)
        c = { .order = order, .r = r, .m = m, .d = d, .leaves = leaves, .eps = eps, .out = out };
    pm_parallel(J, 4.0 * J * r * d, FN(tensor_item), &c);
    return c.failed ? -1 : 0;
}

int FN(pm_tensor_product_bwd)(ptrdiff_t order, ptrdiff_t J, ptrdiff_t r, ptrdiff_t m, ptrdiff_t d,
                              const real *dout, const real *leaves, double eps, real *dleaves)
{
    struct FN(tensor) c = {
        .order = order, .r = r, .m = m, .d = d, .leaves = leaves, .dout = dout, .eps = eps, .out = dleaves
    };
    pm_parallel(J, 8.0 * J * r * d, FN(tensor_item), &c);
    return c.failed ? -1 : 0;
}
#endif
