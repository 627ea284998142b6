/* moe.c -- experts mixed by their outputs, token by token. Densely that is a form of linear.c; here only what a token chose:
 *
 *   y[n] += sum_k weights[n,k] h[n,k] B_e,  h[n,k] = scale * x[n] A_e^T,  e = ids[n,k]
 *
 * An item is a block of BLOCK tokens. Its choices are sorted by expert (stable); the rows of x that chose an expert are gathered, go
 * through its pair and are added to y, expert after expert. A shared A meets x once, before. The frozen product is linear's, before
 * all that. Gradients of the experts are summed by block, then folded in the order of the blocks. */
#ifndef DT
#define PM_SELF "../ops/moe.c"
#include "linear.h"
#include <stdatomic.h>
#include "dtypes.h"
#else
#define BLOCK (4 * PM_CHUNK)

struct FN(moe) {
    ptrdiff_t N, D, O, blocks, ld; /* ld: of rows in the rank space, whole panels */
    const struct pm_term *term;
    int shared;
    const real *x, *dy, *saved_h; /* backward: dy, and h [N,k,R], shared [N,R] */
    real *y, *h, *dx, *dweights;
    ptrdiff_t *order; /* [N*k] choices n*k+i of a block, sorted by expert */
    ptrdiff_t *first; /* [blocks,S+1] where those of an expert start, from the first choice of the block */
    real *panels; /* lora_A (backward lora_B) of every expert that was chosen, packed */
    real *parts_A, *parts_B; /* backward, or NULL: [blocks,S_A,R,D] [blocks,S,R,O] */
    real *dlora_A, *dlora_B;
    atomic_int failed;
};

/* Scratch of one block: staged rows, a product of them, rows in the rank space of one piece of a bucket and of all tokens. */
struct FN(moe_scratch) {
    real *staged, *product, *low, *u, *h, *weights, *dweights, *all;
};

static void FN(moe_sort_item)(void *ctx, ptrdiff_t block)
{
    const struct FN(moe) *c = ctx;
    const ptrdiff_t S = c->term->S, k = c->term->k, start = block * BLOCK * k,
                    n = c->N * k - start < BLOCK * k ? c->N * k - start : BLOCK * k;
    const int64_t *ids = c->term->ids + start;
    ptrdiff_t *first = c->first + block * (S + 1), *order = c->order + start;
    memset(first, 0, sizeof *first * (S + 1));
    for (ptrdiff_t i = 0; i < n; i++) first[ids[i] + 1]++;
    for (ptrdiff_t s = 0; s < S; s++) first[s + 1] += first[s];
    for (ptrdiff_t i = 0; i < n; i++) order[first[ids[i]]++] = start + i;
    for (ptrdiff_t s = S; s > 0; s--)
        first[s] = first[s - 1]; /* each had moved to where the next one starts */
    first[0] = 0;
}

static int FN(moe_chosen)(const struct FN(moe) * c, ptrdiff_t block, ptrdiff_t e)
{
    const ptrdiff_t *first = c->first + block * (c->term->S + 1);
    return first[e + 1] > first[e];
}

static void FN(moe_pack_item)(void *ctx, ptrdiff_t e)
{
    const struct FN(moe) *c = ctx;
    const struct pm_term *t = c->term;
    const ptrdiff_t columns = c->dy ? c->O : c->D;
    const real *factor = c->dy ? t->lora_B : t->lora_A;
    int chosen = c->shared && !c->dy;
    for (ptrdiff_t block = 0; block < c->blocks && !chosen; block++) chosen = FN(moe_chosen)(c, block, e);
    if (chosen) /* the scale goes into A, once; backward it is weigh_bwd's */
        K->proj_pack(t->R, columns, factor + e * t->R * columns, c->dy ? 1 : (real)t->scale,
                     c->panels + e * c->ld * columns);
}

/* Rows of x, one per choice (times k in `choices`; NULL: the rows as they are). A zero follows each (kernels/lowrank.h, proj). */
static void FN(moe_stage)(ptrdiff_t rows, ptrdiff_t columns, const ptrdiff_t *choices, ptrdiff_t k,
                          const real *x, ptrdiff_t ldx, real *staged)
{
    for (ptrdiff_t i = 0; i < rows; i++) {
        memcpy(staged + i * PM_STRIDE, x + (choices ? choices[i] / k : i) * ldx, sizeof(real) * columns);
        staged[i * PM_STRIDE + columns] = 0;
    }
}

/* out[n] += low B, one row per choice */
static void FN(moe_expand)(const struct FN(moe) * c, ptrdiff_t rows, ptrdiff_t columns,
                           const ptrdiff_t *choices, const struct FN(moe_scratch) * s, const real *factor,
                           ptrdiff_t ld, real *out)
{
    K->gemm(rows, 0, columns, s->staged, s->staged, 0, NULL, NULL, c->term->R, s->low, c->ld, factor, ld,
            s->product, PM_STRIDE);
    for (ptrdiff_t i = 0; i < rows; i++)
        K->add_rows(1, columns, s->product + i * PM_STRIDE, PM_STRIDE, out + choices[i] / c->term->k * ld);
}

/* h of all tokens of a block, where A is shared. */
static void FN(moe_project_all)(const struct FN(moe) * c, ptrdiff_t start, ptrdiff_t end,
                                const struct FN(moe_scratch) * s)
{
    const ptrdiff_t R = c->term->R;
    for (ptrdiff_t n = start; n < end; n += PM_CHUNK) {
        const ptrdiff_t rows = end - n < PM_CHUNK ? end - n : PM_CHUNK;
        real *h = s->all + (n - start) * c->ld;
        for (ptrdiff_t d = 0; d < c->D; d += PM_STAGE) {
            const ptrdiff_t columns = c->D - d < PM_STAGE ? c->D - d : PM_STAGE;
            FN(moe_stage)(rows, columns, NULL, 0, c->x + n * c->D + d, c->D, s->staged);
            K->proj(rows, R, c->D, d, columns, s->staged, c->panels, d > 0, h, c->ld);
        }
        for (ptrdiff_t i = 0; i < rows && c->h; i++)
            memcpy(c->h + (n + i) * R, h + i * c->ld, sizeof(real) * R);
    }
}

static void FN(moe_fwd_piece)(const struct FN(moe) * c, ptrdiff_t e, ptrdiff_t start, ptrdiff_t rows,
                              const ptrdiff_t *choices, const struct FN(moe_scratch) * s)
{
    const struct pm_term *t = c->term;
    const ptrdiff_t R = t->R;
    const real *lora_B = (const real *)t->lora_B + e * R * c->O;
    for (ptrdiff_t d = 0; d < c->D && !c->shared; d += PM_STAGE) {
        const ptrdiff_t columns = c->D - d < PM_STAGE ? c->D - d : PM_STAGE;
        FN(moe_stage)(rows, columns, choices, t->k, c->x + d, c->D, s->staged);
        K->proj(rows, R, c->D, d, columns, s->staged, c->panels + e * c->ld * c->D, d > 0, s->low, c->ld);
    }
    for (ptrdiff_t i = 0; i < rows; i++) {
        real *low = s->low + i * c->ld;
        if (c->shared) memcpy(low, s->all + (choices[i] / t->k - start) * c->ld, sizeof(real) * R);
        else if (c->h) memcpy(c->h + choices[i] * R, low, sizeof(real) * R);
    }
    K->weigh_fwd(rows, 1, R, 0, s->weights, 1, s->low, c->ld, s->low, c->ld);
    for (ptrdiff_t o = 0; o < c->O; o += PM_STAGE)
        FN(moe_expand)(c, rows, c->O - o < PM_STAGE ? c->O - o : PM_STAGE, choices, s, lora_B + o, c->O,
                       c->y + o);
}

static void FN(moe_bwd_piece)(const struct FN(moe) * c, ptrdiff_t block, ptrdiff_t e, int opens,
                              ptrdiff_t rows, const ptrdiff_t *choices, const struct FN(moe_scratch) * s)
{
    const struct pm_term *t = c->term;
    const ptrdiff_t R = t->R, ld = c->ld;
    for (ptrdiff_t i = 0; i < rows; i++)
        memcpy(s->h + i * ld, c->saved_h + (c->shared ? choices[i] / t->k : choices[i]) * R,
               sizeof(real) * R);
    K->weigh_fwd(rows, 1, R, 0, s->weights, 1, s->h, ld, s->u, ld);
    for (ptrdiff_t o = 0; o < c->O; o += PM_STAGE) {
        const ptrdiff_t columns = c->O - o < PM_STAGE ? c->O - o : PM_STAGE;
        FN(moe_stage)(rows, columns, choices, t->k, c->dy + o, c->O, s->staged);
        K->proj(rows, R, c->O, o, columns, s->staged, c->panels + e * ld * c->O, o > 0, s->low, ld);
        if (c->parts_B)
            K->outer(rows, R, columns, s->u, ld, s->staged, PM_STRIDE, !opens,
                     c->parts_B + (block * t->S + e) * R * c->O + o, c->O);
    }
    memset(s->dweights, 0, sizeof(real) * rows);
    K->weigh_bwd(rows, 1, R, 0, s->weights, 1, s->h, ld, (real)t->scale, s->low, ld, s->dweights, 1);
    for (ptrdiff_t i = 0; i < rows && c->dweights; i++) c->dweights[choices[i]] = s->dweights[i];
    for (ptrdiff_t i = 0; i < rows && c->shared; i++)
        K->add_rows(1, R, s->low + i * ld, ld, s->all + (choices[i] / t->k - block * BLOCK) * ld);
    for (ptrdiff_t d = 0; d < c->D && !c->shared; d += PM_STAGE) {
        const ptrdiff_t columns = c->D - d < PM_STAGE ? c->D - d : PM_STAGE;
        if (c->parts_A) {
            FN(moe_stage)(rows, columns, choices, t->k, c->x + d, c->D, s->staged);
            K->outer(rows, R, columns, s->low, ld, s->staged, PM_STRIDE, !opens,
                     c->parts_A + (block * t->S + e) * R * c->D + d, c->D);
        }
        if (c->dx)
            FN(moe_expand)(c, rows, columns, choices, s, (const real *)t->lora_A + e * R * c->D + d, c->D,
                           c->dx + d);
    }
}

/* The rest of backward where A is shared: s->all holds the gradient of h. */
static void FN(moe_bwd_all)(const struct FN(moe) * c, ptrdiff_t block, ptrdiff_t start, ptrdiff_t end,
                            const struct FN(moe_scratch) * s)
{
    const ptrdiff_t R = c->term->R, D = c->D;
    for (ptrdiff_t n = start; n < end; n += PM_CHUNK) {
        const ptrdiff_t rows = end - n < PM_CHUNK ? end - n : PM_CHUNK;
        const real *dh = s->all + (n - start) * c->ld;
        if (c->parts_A)
            K->outer(rows, R, D, dh, c->ld, c->x + n * D, D, n > start, c->parts_A + block * R * D, D);
        if (c->dx)
            K->gemm(rows, 0, D, s->staged, s->staged, 0, c->dx + n * D, NULL, R, dh, c->ld, c->term->lora_A,
                    D, c->dx + n * D, D);
    }
}

static void FN(moe_block_item)(void *ctx, ptrdiff_t block)
{
    struct FN(moe) *c = ctx;
    const struct pm_term *t = c->term;
    const ptrdiff_t start = block * BLOCK, end = c->N - start < BLOCK ? c->N : start + BLOCK,
                    all = c->shared ? BLOCK * c->ld : 0;
    real *scratch = pm_block_get(sizeof(real) * (PM_CHUNK * (2 * PM_STRIDE + 3 * c->ld + 2) + all));
    if (!scratch) {
        atomic_store(&c->failed, 1);
        return;
    }
    struct FN(moe_scratch) s = { .staged = scratch, .product = scratch + PM_CHUNK * PM_STRIDE };
    s.low = s.product + PM_CHUNK * PM_STRIDE;
    s.u = s.low + PM_CHUNK * c->ld;
    s.h = s.u + PM_CHUNK * c->ld;
    s.weights = s.h + PM_CHUNK * c->ld;
    s.dweights = s.weights + PM_CHUNK;
    s.all = s.dweights + PM_CHUNK;
    if (c->shared && c->dy) memset(s.all, 0, sizeof(real) * all);
    else if (c->shared) FN(moe_project_all)(c, start, end, &s);
    const ptrdiff_t *first = c->first + block * (t->S + 1), *order = c->order + start * t->k;
    for (ptrdiff_t e = 0; e < t->S; e++)
        for (ptrdiff_t at = first[e]; at < first[e + 1]; at += PM_CHUNK) {
            const ptrdiff_t rows = first[e + 1] - at < PM_CHUNK ? first[e + 1] - at : PM_CHUNK;
            for (ptrdiff_t i = 0; i < rows; i++) s.weights[i] = ((const real *)t->weights)[order[at + i]];
            if (c->dy) FN(moe_bwd_piece)(c, block, e, at == first[e], rows, order + at, &s);
            else FN(moe_fwd_piece)(c, e, start, rows, order + at, &s);
        }
    if (c->shared && c->dy) FN(moe_bwd_all)(c, block, start, end, &s);
    pm_block_put(scratch);
}

/* One factor of one expert, first all lora_A, then all lora_B: the blocks that chose it, in order. */
static void FN(moe_fold_item)(void *ctx, ptrdiff_t item)
{
    const struct FN(moe) *c = ctx;
    const struct pm_term *t = c->term;
    const int is_A = item < t->S_A;
    const ptrdiff_t e = is_A ? item : item - t->S_A, S = is_A ? t->S_A : t->S,
                    n = t->R * (is_A ? c->D : c->O);
    const real *parts = is_A ? c->parts_A : c->parts_B;
    real *dfactor = is_A ? c->dlora_A : c->dlora_B;
    if (!dfactor) return;
    memset(dfactor + e * n, 0, sizeof(real) * n);
    for (ptrdiff_t block = 0; block < c->blocks; block++)
        if ((is_A && c->shared) || FN(moe_chosen)(c, block, e))
            K->add_rows(1, n, parts + (block * S + e) * n, n, dfactor + e * n);
}

/* Everything that it allocates is freed by moe_end. */
static int FN(moe_run)(struct FN(moe) * c)
{
    const struct pm_term *t = c->term;
    const ptrdiff_t panel = PM_ALIGN / sizeof(real), n_packed = c->dy ? t->S : t->S_A;
    c->shared = t->S_A < t->S;
    c->ld = (t->R + panel - 1) / panel * panel;
    c->blocks = (c->N + BLOCK - 1) / BLOCK;
    c->order = pm_block_get(sizeof *c->order * (c->N * t->k + c->blocks * (t->S + 1)));
    c->panels = pm_block_get(sizeof(real) * n_packed * c->ld * (c->dy ? c->O : c->D));
    if (!c->order || !c->panels) return -1;
    c->first = c->order + c->N * t->k;
    if (c->dlora_A && !(c->parts_A = pm_block_get(sizeof(real) * c->blocks * t->S_A * t->R * c->D)))
        return -1;
    if (c->dlora_B && !(c->parts_B = pm_block_get(sizeof(real) * c->blocks * t->S * t->R * c->O))) return -1;
    pm_parallel(c->blocks, 16.0 * c->N * t->k, FN(moe_sort_item), c);
    pm_parallel(n_packed, 4.0 * n_packed * t->R * c->D, FN(moe_pack_item), c);
    pm_parallel(c->blocks, (c->dy ? 8.0 : 4.0) * c->N * t->k * t->R * (c->D + c->O), FN(moe_block_item), c);
    return -atomic_load(&c->failed);
}

static void FN(moe_end)(struct FN(moe) * c)
{
    pm_block_put(c->order);
    pm_block_put(c->panels);
    pm_block_put(c->parts_A);
    pm_block_put(c->parts_B);
}

/* term: PM_TOKENS or PM_BUCKETS. -1 when memory is out. */
int FN(pm_moe_fwd)(ptrdiff_t N, ptrdiff_t D, ptrdiff_t O, const real *x, struct pm_weight weight,
                   const real *bias, const struct pm_term *term, real *y, real *h)
{
    const struct pm_reading plain = { .activation = PM_IDENTITY };
    struct pm_layer layer = { .O = O, .weight = weight, .bias = bias, .term = { .B = 1 }, .y = y };
    if (term->form == PM_TOKENS) layer.term = *term, layer.h = h;
    if (FN(pm_linear_fwd)(N, D, x, plain, 1, &layer)) return -1;
    if (term->form == PM_TOKENS) return 0;
    struct FN(moe) c = { .N = N, .D = D, .O = O, .term = term, .x = x, .y = y, .h = h };
    const int failed = FN(moe_run)(&c);
    FN(moe_end)(&c);
    return failed;
}

/* weight is the transposed one; onto [N,D] or NULL is added to dx. Every gradient may be NULL. */
int FN(pm_moe_bwd)(ptrdiff_t N, ptrdiff_t D, ptrdiff_t O, const real *dy, struct pm_weight weight,
                   const real *x, const real *h, const struct pm_term *term, const real *onto, real *dx,
                   real *dlora_A, real *dlora_B, real *dweights)
{
    const struct pm_reading plain = { .activation = PM_IDENTITY };
    struct pm_layer layer = { .O = O, .weight = weight, .term = { .B = 1 }, .dy = dy };
    if (term->form == PM_TOKENS) {
        layer.term = *term, layer.h = (void *)h;
        layer.dlora_A = dlora_A, layer.dlora_B = dlora_B, layer.dweights = dweights;
        return FN(pm_linear_bwd)(N, D, x, plain, 1, &layer, onto, dx, NULL);
    }
    struct FN(moe) c = { .N = N,
                         .D = D,
                         .O = O,
                         .term = term,
                         .x = x,
                         .dy = dy,
                         .saved_h = h,
                         .dx = dx,
                         .dweights = dweights,
                         .dlora_A = dlora_A,
                         .dlora_B = dlora_B };
    const int failed =
        (dx && FN(pm_linear_bwd)(N, D, NULL, plain, 1, &layer, onto, dx, NULL)) || FN(moe_run)(&c);
    if (!failed && (dlora_A || dlora_B))
        pm_parallel(term->S_A + term->S, (double)c.blocks * term->R * (term->S_A * D + term->S * O),
                    FN(moe_fold_item), &c);
    FN(moe_end)(&c);
    return -failed;
}
#undef BLOCK
#endif
