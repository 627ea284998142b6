/* adam.c -- AdamW and the norm of the gradient over segments of the flat buffers (kernels/adam.h). Segments are in ascending
 * order and do not overlap. Threads split the buffer into blocks; what lies outside the segments is neither read nor written. */
#ifndef DT
#define PM_SELF "../ops/adam.c"
#include "dtypes.h"
#else
#define BLOCK ((ptrdiff_t)16384) /* values of one item; the norm's sum is split here */

struct FN(adam) {
    ptrdiff_t n;    /* segments */
    const int64_t *offsets, *lengths;
    const real *grad;
    real *data, *m, *v;
    const double *lr, *weight_decay;
    double beta1, beta2, eps, correction1, root, grad_scale;
    double *partial;
};

/* The first segment that ends after `at`. */
static ptrdiff_t FN(first_segment)(const struct FN(adam) * c, ptrdiff_t at)
{
    ptrdiff_t low = 0, high = c->n;
    while (low < high) {
        const ptrdiff_t mid = low + (high - low) / 2;
        if (c->offsets[mid] + c->lengths[mid] > at) high = mid;
        else low = mid + 1;
    }
    return low;
}

static void FN(adam_item)(void *ctx, ptrdiff_t item)
{
    const struct FN(adam) *c = ctx;
    const ptrdiff_t begin = item * BLOCK, end = begin + BLOCK;
    for (ptrdiff_t i = FN(first_segment)(c, begin); i < c->n && c->offsets[i] < end; i++) {
        const ptrdiff_t from = c->offsets[i] > begin ? c->offsets[i] : begin,
                        stop = c->offsets[i] + c->lengths[i];
        K->adamw((stop < end ? stop : end) - from, 1 - c->lr[i] * c->weight_decay[i],
                 c->lr[i] / c->correction1, c->root, c->beta1, c->beta2, c->eps, c->grad_scale,
                 c->grad + from, c->data + from, c->m + from, c->v + from);
    }
}

static void FN(square_item)(void *ctx, ptrdiff_t item)
{
    const struct FN(adam) *c = ctx;
    const ptrdiff_t begin = item * BLOCK, end = begin + BLOCK;
    double sum = 0;
    for (ptrdiff_t i = FN(first_segment)(c, begin); i < c->n && c->offsets[i] < end; i++) {
        const ptrdiff_t from = c->offsets[i] > begin ? c->offsets[i] : begin,
                        stop = c->offsets[i] + c->lengths[i];
        double part;
        K->dot((stop < end ? stop : end) - from, c->grad + from, c->grad + from, &part);
        sum += part;
    }
    c->partial[item] = sum;
}

void FN(pm_adamw_step)(ptrdiff_t N, ptrdiff_t n, const int64_t *offsets, const int64_t *lengths,
                       const double *lr, const double *weight_decay, double beta1, double beta2, double eps,
                       ptrdiff_t step, double grad_scale, const real *grad, real *data, real *m, real *v)
{
    struct FN(adam) c = { .n = n,
                          .offsets = offsets,
                          .lengths = lengths,
                          .grad = grad,
                          .data = data,
                          .m = m,
                          .v = v,
                          .lr = lr,
                          .weight_decay = weight_decay,
                          .beta1 = beta1,
                          .beta2 = beta2,
                          .eps = eps,
                          .correction1 = 1 - pow(beta1, (double)step),
                          .root = sqrt(1 - pow(beta2, (double)step)),
                          .grad_scale = grad_scale };
    pm_parallel((N + BLOCK - 1) / BLOCK, 30.0 * N, FN(adam_item), &c);
}

/* -1 when memory is out. */
int FN(pm_global_norm)(ptrdiff_t N, ptrdiff_t n, const int64_t *offsets, const int64_t *lengths,
                       const real *grad, double *norm)
{
    const ptrdiff_t blocks = (N + BLOCK - 1) / BLOCK;
    double sum = 0, *partial = pm_block_get((size_t)blocks * sizeof *partial);
    if (!partial) return -1;
    struct FN(adam) c = { .n = n, .offsets = offsets, .lengths = lengths, .grad = grad, .partial = partial };
    pm_parallel(blocks, 4.0 * N, FN(square_item), &c);
    for (ptrdiff_t i = 0; i < blocks; i++) sum += partial[i];
    *norm = sqrt(sum);
    pm_block_put(partial);
    return 0;
}
#undef BLOCK
#endif
