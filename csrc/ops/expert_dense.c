/* expert_dense.c -- products with whole experts whose weights are trainable, forward and backward. A token of group g uses the experts
 * e = ids[g,i], i < K; x and y are apart, [N,K,.], a row for each of them, or one row for all, [N,.].
 *
 *   y[n,i] = x[n(,i)] W_e^T + b_e    or their sum    y[n] = sum_i w[g,i] (x[n(,i)] W_e^T + b_e)
 *   u[n,i] = dy[n(,i)] W_e           dx[n,i] = w[g,i] u[n,i], or the sum over i       w = 1 where outputs stay apart
 *   dw[g,i] = sum_n u[n,i] . x[n(,i)] + dy[n] . b_e
 *   dW_e = sum_{n,i} w[g,i] dy[n(,i)]^T x[n(,i)]            db_e = sum_{n,i} w[g,i] dy[n(,i)]
 *
 * The first two are one pass, from x to y or from dy to dx. Its items are pieces of tokens that use the same experts (buckets.h): they
 * are gathered, go through expert after expert, and what comes out is weighted on the way back. Gradients of the weights are shared out
 * by blocks of them, as in dense.c: a block sums all tokens of its expert itself, in order. Only experts in use are packed or read. */
#ifndef DT
#define PM_SELF "../ops/expert_dense.c"
#include "buckets.h"
#include "expert_dense.h"
#include <stdatomic.h>
#include "dtypes.h"
#else
#define BLOCK_O 64
#define BLOCK_D 512

struct FN(expert_pass) {
    const struct pm_experts *experts;
    struct pm_buckets tokens;
    ptrdiff_t I, O; /* columns of `in` and `out` */
    int in_apart, out_apart;
    const real *in, *bias, *weights, *x; /* x: backward */
    real *panels, *out; /* of every expert in use; out may be NULL */
    ptrdiff_t packed; /* values in the panels of one expert */
    double *along; /* [N,K] of the gradient of the weights, or NULL */
    atomic_int failed;
};

/* A row of `a` that belongs to choice i of token n. */
static ptrdiff_t FN(expert_row)(const struct FN(expert_pass) * c, int apart, ptrdiff_t n, ptrdiff_t i)
{
    return apart ? n * c->experts->k + i : n;
}

static real FN(expert_weight)(const struct FN(expert_pass) * c, ptrdiff_t n, ptrdiff_t i)
{
    return c->weights ? c->weights[c->tokens.group[n] * c->experts->k + i] : 1;
}

/* Columns of a block when n of them are cut into blocks of equal size, a multiple of the panel, of PM_STAGE at most. */
static ptrdiff_t FN(expert_block)(ptrdiff_t n)
{
    const ptrdiff_t blocks = (n + PM_STAGE - 1) / PM_STAGE, panel = PM_ALIGN / sizeof(real);
    return ((n + blocks - 1) / blocks + panel - 1) / panel * panel;
}

static void FN(expert_pack_item)(void *ctx, ptrdiff_t item)
{
    const struct FN(expert_pass) *c = ctx;
    const struct pm_experts *x = c->experts;
    const ptrdiff_t panel = PM_ALIGN / sizeof(real), n_panels = (c->O + panel - 1) / panel,
                    e = item / n_panels, p = item % n_panels;
    if (c->tokens.first[e + 1] > c->tokens.first[e])
        K->gemm_pack(c->O, c->I, p, p + 1, (const real *)x->weight + e * x->O * x->D, c->x != NULL, 1,
                     c->panels + c->tokens.slot[e] * c->packed);
}

static void FN(expert_gather)(const struct FN(expert_pass) * c, const struct pm_piece *p, ptrdiff_t i,
                              ptrdiff_t d, ptrdiff_t columns, real *staged)
{
    for (ptrdiff_t r = 0; r < p->rows; r++)
        memcpy(staged + r * PM_STRIDE, c->in + FN(expert_row)(c, c->in_apart, p->tokens[r], i) * c->I + d,
               sizeof(real) * columns);
}

/* Columns o.. of what choice i made of a piece. */
static void FN(expert_scatter)(const struct FN(expert_pass) * c, const struct pm_piece *p, ptrdiff_t i,
                               ptrdiff_t o, ptrdiff_t columns, const real *product)
{
    for (ptrdiff_t r = 0; r < p->rows; r++, product += PM_STRIDE) {
        const ptrdiff_t n = p->tokens[r], at = FN(expert_row)(c, c->out_apart, n, i) * c->O + o;
        const real weight = FN(expert_weight)(c, n, i);
        double *along = c->along ? c->along + n * c->experts->k + i : NULL, dot = 0;
        if (along && o == 0) {
            if (c->bias) K->dot(c->I, c->in + n * c->I, c->bias + p->ids[i] * c->I, &dot);
            *along = dot;
        }
        if (along) {
            K->dot(columns, product, c->x + at, &dot);
            *along += dot;
        }
        if (c->out && (c->out_apart || i == 0)) K->scale(columns, product, weight, c->out + at);
        else if (c->out) K->axpy(columns, weight, product, c->out + at);
    }
}

static void FN(expert_piece_item)(void *ctx, ptrdiff_t item)
{
    struct FN(expert_pass) *c = ctx;
    const struct pm_piece *p = c->tokens.pieces + item;
    const ptrdiff_t I = c->I, O = c->O, block = FN(expert_block)(I), strip = FN(expert_block)(O),
                    panel = PM_ALIGN / sizeof(real);
    real *staged = pm_block_get(sizeof(real) * 2 * PM_CHUNK * PM_STRIDE);
    if (!staged) {
        atomic_store(&c->failed, 1);
        return;
    }
    real *product = staged + PM_CHUNK * PM_STRIDE;
    for (ptrdiff_t i = 0; i < c->experts->k; i++) {
        const real *panels = c->panels + c->tokens.slot[p->ids[i]] * c->packed,
                   *bias = c->bias && !c->x ? c->bias + p->ids[i] * O : NULL;
        for (ptrdiff_t o = 0; o < O; o += strip) {
            const ptrdiff_t columns = O - o < strip ? O - o : strip;
            for (ptrdiff_t d = 0; d < I; d += block) {
                const ptrdiff_t width = I - d < block ? I - d : block;
                const int same = width == I && (o > 0 || (i > 0 && !c->in_apart)); /* staged already */
                if (!same) FN(expert_gather)(c, p, i, d, width, staged);
                K->gemm(p->rows, width, columns, staged, panels + o * I + d * panel, I * panel,
                        d > 0 ? product : NULL, d == 0 && bias ? bias + o : NULL, 0, NULL, 0, NULL, 0,
                        product, PM_STRIDE);
            }
            FN(expert_scatter)(c, p, i, o, columns, product);
        }
    }
    pm_block_put(staged);
}

/* c->tokens are made; everything else that it allocates is freed here. */
static int FN(expert_run)(struct FN(expert_pass) * c)
{
    const ptrdiff_t panel = PM_ALIGN / sizeof(real), n_panels = (c->O + panel - 1) / panel;
    const double size = (double)c->I * c->O;
    c->packed = n_panels * c->I * panel;
    c->panels = pm_block_get(sizeof(real) * c->tokens.n_used * c->packed);
    if (!c->panels) return -1;
    pm_parallel(c->experts->S * n_panels, 4.0 * c->tokens.n_used * size, FN(expert_pack_item), c);
    pm_parallel(c->tokens.n_pieces, 2.0 * c->experts->N * c->experts->k * size, FN(expert_piece_item), c);
    pm_block_put(c->panels);
    return -atomic_load(&c->failed);
}

struct FN(expert_grads) {
    struct FN(expert_pass) * pass;
    real *dweight, *dbias;
};

/* One block of dW_e, and of db_e. */
static void FN(expert_bwd_weight_item)(void *ctx, ptrdiff_t item)
{
    const struct FN(expert_grads) *grads = ctx;
    struct FN(expert_pass) *c = grads->pass;
    const struct pm_experts *x = c->experts;
    const ptrdiff_t D = x->D, O = x->O, D_blocks = (D + BLOCK_D - 1) / BLOCK_D,
                    O_blocks = (O + BLOCK_O - 1) / BLOCK_O, e = item / (D_blocks * O_blocks);
    const ptrdiff_t o = item / D_blocks % O_blocks * BLOCK_O, d = item % D_blocks * BLOCK_D;
    const ptrdiff_t height = O - o < BLOCK_O ? O - o : BLOCK_O, width = D - d < BLOCK_D ? D - d : BLOCK_D;
    real *dweight = grads->dweight ? grads->dweight + (e * O + o) * D + d : NULL,
         *dbias = grads->dbias && d == 0 ? grads->dbias + e * O + o : NULL;
    if (!dweight && !dbias) return;
    real *dy = pm_block_get(sizeof(real) * PM_CHUNK * BLOCK_O); /* of a run, weighted */
    if (!dy) {
        atomic_store(&c->failed, 1);
        return;
    }
    const struct pm_run *first = c->tokens.runs + c->tokens.first[e],
                        *end = c->tokens.runs + c->tokens.first[e + 1];
    for (ptrdiff_t r = 0; r < height && dweight && first == end; r++)
        memset(dweight + r * D, 0, sizeof(real) * width);
    if (dbias) memset(dbias, 0, sizeof(real) * height);
    for (const struct pm_run *run = first; run < end; run++) {
        for (ptrdiff_t n = 0; n < run->rows; n++) {
            const ptrdiff_t at = FN(expert_row)(c, c->in_apart, run->start + n, run->i);
            K->scale(height, c->in + at * O + o, FN(expert_weight)(c, run->start + n, run->i),
                     dy + n * BLOCK_O);
        }
        if (dweight)
            K->outer(run->rows, height, width, NULL, dy, BLOCK_O,
                     c->x + FN(expert_row)(c, x->apart, run->start, run->i) * D + d, x->apart ? x->k * D : D,
                     run > first, dweight, D);
        if (dbias) K->add_rows(run->rows, height, dy, BLOCK_O, dbias);
    }
    pm_block_put(dy);
}

/* dweights [G,K]: the sum of `along` over the tokens of a group, in order. */
static void FN(expert_fold)(const struct FN(expert_pass) * c, double *sums, real *dweights)
{
    const ptrdiff_t k = c->experts->k, n_sums = c->experts->G * k;
    memset(sums, 0, sizeof *sums * n_sums);
    for (ptrdiff_t n = 0; n < c->experts->N; n++)
        for (ptrdiff_t i = 0; i < k; i++) sums[c->tokens.group[n] * k + i] += c->along[n * k + i];
    for (ptrdiff_t j = 0; j < n_sums; j++) dweights[j] = (real)sums[j];
}

static int FN(expert_buckets)(const struct pm_experts *x, struct pm_buckets *b)
{
    return pm_buckets_make(b, x->N, x->B, x->G, x->S, x->k, x->ids, x->adapter_ids, x->cu_seqlens);
}

/* y [N,K,O], or with weights [N,O]. -1 when memory is out. */
int FN(pm_expert_dense_fwd)(const struct pm_experts *experts, const real *x, real *y)
{
    struct FN(expert_pass) c = { .experts = experts,
                                 .I = experts->D,
                                 .O = experts->O,
                                 .in_apart = experts->apart,
                                 .out_apart = !experts->weights,
                                 .in = x,
                                 .bias = experts->bias,
                                 .weights = experts->weights,
                                 .out = y };
    if (FN(expert_buckets)(experts, &c.tokens)) return -1;
    const int failed = FN(expert_run)(&c);
    pm_buckets_free(&c.tokens);
    return failed;
}

/* Every gradient may be NULL; dweights is where there are no weights. -1 when memory is out. */
int FN(pm_expert_dense_bwd)(const struct pm_experts *experts, const real *dy, const real *x, real *dx,
                            real *dweight, real *dbias, real *dweights)
{
    struct FN(expert_pass) c = { .experts = experts,
                                 .I = experts->O,
                                 .O = experts->D,
                                 .in_apart = !experts->weights,
                                 .out_apart = experts->apart,
                                 .in = dy,
                                 .bias = experts->bias,
                                 .weights = experts->weights,
                                 .x = x,
                                 .out = dx };
    struct FN(expert_grads) grads = { .pass = &c, .dweight = dweight, .dbias = dbias };
    const ptrdiff_t D = experts->D, O = experts->O, rows = experts->N * experts->k;
    if (FN(expert_buckets)(experts, &c.tokens)) return -1;
    if (dweights) c.along = pm_block_get(sizeof *c.along * (rows + experts->G * experts->k));
    int failed = dweights && !c.along;
    if (!failed && (dx || dweights)) failed = FN(expert_run)(&c);
    if (!failed && dweights) FN(expert_fold)(&c, c.along + rows, dweights);
    if (!failed && (dweight || dbias)) {
        pm_parallel(experts->S * ((O + BLOCK_O - 1) / BLOCK_O) * ((D + BLOCK_D - 1) / BLOCK_D),
                    2.0 * rows * D * O, FN(expert_bwd_weight_item), &grads);
        failed = atomic_load(&c.failed);
    }
    pm_block_put(c.along);
    pm_buckets_free(&c.tokens);
    return -(failed != 0);
}
#undef BLOCK_O
#undef BLOCK_D
#endif
