/* linear.c -- the frozen product with a grouped low-rank term, forward and backward. Threads share out chunks of tokens.
 *
 *   y = x W^T + bias + h B_g,  h = scale * x A_g^T          a pass from x to y: projects with A, its epilogue is B
 *   dx = dy W + g A_g,         g = scale * dy B_g^T         the same pass from dy to dx: projects with B, its epilogue is A
 *   dA_g = sum_n g x,          dB_g = sum_n h dy            by chunk and group, then folded in the order of tokens
 *
 * A_g, B_g are mixed once per group (kernels/mix.h); without weights pair g is lora_A[g], lora_B[g]; in the concat form there is one
 * pair, all skills side by side, and the weights act on h (kernels/lowrank.h, combine). */
#ifndef DT
#define PM_SELF "../ops/linear.c"
#include "segments.h"
#include <stdatomic.h>
#include "dtypes.h"
#else

struct FN(linear_pass) {
    ptrdiff_t N, I, O;                     /* tokens, extents of `in` and `out` */
    const real *in, *panels, *bias;        /* [N,I]   packed [O,I]   [O] or NULL */
    real *out;                             /* [N,O] or NULL */
    ptrdiff_t R, G, Q, S, rank;            /* columns of h, pairs; heads, skills, rank of one skill */
    const real *weights, *down, *up; /* [G,Q,S] or NULL   [.,rank,I] projects   [.,rank,O] is the epilogue */
    real scale;
    int concat, mixes; /* mixes: weights act on the factors */
    real *mixed_down, *mixed_up; /* mixes: [R,I] and [R,O] of every pair */
    real *panels_down; /* the packed [R,I] of every pair */
    struct pm_segments groups; /* the groups as they lie in the tokens */
    struct pm_segments pairs; /* what one pair serves: the same, or in the concat form whole chunks */
    real *saved_h; /* [N,R] forward: to be written, or NULL */
    int backward, learns; /* learns: backward, and gradients of the pairs are wanted */
    const real *h, *x; /* learns: saved by forward, [N,R] and (its input) [N,O] */
    real *sums; /* [n_slots] pairs of [R,O] dup, [R,I] ddown, a line further apart than they are long */
    ptrdiff_t pair; /* that distance: a multiple of the cache's would put all of them into few sets */
    real *
        dweights_parts; /* mixes: [2R,G,Q,S], of every row of both factors; concat: [segments of groups, S] */
    atomic_int failed;
};

struct FN(linear_grads) {
    const struct FN(linear_pass) * pass;
    real *dup, *ddown, *dweights;
};

static ptrdiff_t FN(padded)(ptrdiff_t R)
{
    const ptrdiff_t panel = PM_ALIGN / sizeof(real);
    return (R + panel - 1) / panel * panel;
}

/* Row r of both factors of every pair. */
static void FN(linear_mix_item)(void *ctx, ptrdiff_t item)
{
    const struct FN(linear_pass) *c = ctx;
    const ptrdiff_t R = c->R, r = item % R;
    if (item < R) K->mix_fwd(c->G, c->Q, c->S, R, c->I, r, c->weights, c->down, 1, c->mixed_down, R * c->I);
    else if (c->out) K->mix_fwd(c->G, c->Q, c->S, R, c->O, r, c->weights, c->up, 1, c->mixed_up, R * c->O);
}

/* The factor of pair g that projects, packed. The scale goes into it, once; in the concat form backward it is left to combine_bwd,
 * since dweights needs the plain product. */
static void FN(linear_pack_item)(void *ctx, ptrdiff_t g)
{
    const struct FN(linear_pass) *c = ctx;
    const real *down = c->mixes ? c->mixed_down : c->down;
    K->proj_pack(c->R, c->I, down + g * c->R * c->I, c->concat && c->backward ? 1 : c->scale,
                 c->panels_down + g * FN(padded)(c->R) * c->I);
}

/* h or g of a whole chunk, complete: what the form does to it before it meets the other factor. */
static void FN(linear_combine)(const struct FN(linear_pass) * c, ptrdiff_t chunk, real *low, ptrdiff_t ld)
{
    const ptrdiff_t start = chunk * PM_CHUNK, R = c->R;
    const ptrdiff_t end = c->N - start < PM_CHUNK ? c->N : start + PM_CHUNK;
    if (c->saved_h)
        for (ptrdiff_t n = start; n < end; n++)
            memcpy(c->saved_h + n * R, low + (n - start) * ld, sizeof(real) * R);
    for (ptrdiff_t i = c->groups.first[chunk]; c->concat && i < c->groups.first[chunk + 1]; i++) {
        const struct pm_segment *s = c->groups.at + i;
        const real *weights = c->weights + s->group * c->S;
        real *rows = low + (s->start - start) * ld;
        if (!c->backward) K->combine_fwd(s->end - s->start, c->S, c->rank, weights, rows, ld, rows, ld);
        else
            K->combine_bwd(s->end - s->start, c->S, c->rank, weights, c->h + s->start * R, R, c->scale, rows,
                           ld, c->dweights_parts + i * c->S);
    }
}

/* ddown of one segment, for the staged columns of dy: h (in the concat form u) is what met them. */
static void FN(linear_ddown)(const struct FN(linear_pass) * c, const struct pm_segment *s, const real *u,
                             ptrdiff_t ldu, ptrdiff_t i0, ptrdiff_t columns, const real *staged)
{
    real *ddown = c->sums + s->slot * c->pair + c->R * c->O;
    K->outer(s->end - s->start, c->R, columns, u, ldu, staged, PM_STRIDE, !s->opens, ddown + i0, c->I);
}

/* A zero follows each row (kernels/lowrank.h, proj). */
static void FN(stage)(ptrdiff_t rows, ptrdiff_t columns, const real *x, ptrdiff_t ldx, real *staged)
{
    for (ptrdiff_t n = 0; n < rows; n++) {
        memcpy(staged + n * PM_STRIDE, x + n * ldx, sizeof(real) * columns);
        staged[n * PM_STRIDE + columns] = 0;
    }
}

static void FN(linear_chunk_item)(void *ctx, ptrdiff_t chunk)
{
    struct FN(linear_pass) *c = ctx;
    const ptrdiff_t start = chunk * PM_CHUNK, rows = c->N - start < PM_CHUNK ? c->N - start : PM_CHUNK;
    const ptrdiff_t R = c->R, RP = FN(padded)(R), I = c->I, O = c->O, panel = PM_ALIGN / sizeof(real);
    const struct pm_segment *first = c->pairs.at + c->pairs.first[chunk],
                            *last = c->pairs.at + c->pairs.first[chunk + 1];
    real *staged = pm_block_get(sizeof(real) * PM_CHUNK * (PM_STRIDE + 2 * RP));
    if (!staged) {
        atomic_store(&c->failed, 1);
        return;
    }
    real *low = staged + PM_CHUNK * PM_STRIDE, *combined = low + PM_CHUNK * RP;
    const real *u = c->h ? c->h + start * R : NULL;
    ptrdiff_t ldu = R;
    if (c->learns && c->concat) {
        for (ptrdiff_t i = c->groups.first[chunk]; i < c->groups.first[chunk + 1]; i++) {
            const struct pm_segment *s = c->groups.at + i;
            K->combine_fwd(s->end - s->start, c->S, c->rank, c->weights + s->group * c->S,
                           c->h + s->start * R, R, combined + (s->start - start) * RP, RP);
        }
        u = combined, ldu = RP;
    }
    /* blocks of equal size, a multiple of the panel, so that none is much smaller than the others */
    const ptrdiff_t n_blocks = (I + PM_STAGE - 1) / PM_STAGE,
                    block = ((I + n_blocks - 1) / n_blocks + panel - 1) / panel * panel;
    for (ptrdiff_t i0 = 0; i0 < I; i0 += block) {
        const ptrdiff_t columns = I - i0 < block ? I - i0 : block;
        FN(stage)(rows, columns, c->in + start * I + i0, I, staged);
        for (const struct pm_segment *s = first; R && s < last; s++) {
            const ptrdiff_t n = s->start - start;
            K->proj(s->end - s->start, R, I, i0, columns, staged + n * PM_STRIDE,
                    c->panels_down + s->group * RP * I, i0 > 0, low + n * RP, RP);
            if (c->learns) FN(linear_ddown)(c, s, u + n * ldu, ldu, i0, columns, staged + n * PM_STRIDE);
        }
        const int complete = i0 + columns == I;
        if (R && complete) FN(linear_combine)(c, chunk, low, RP);
        for (const struct pm_segment *s = first; c->out && s < last; s++) {
            const ptrdiff_t n = s->start - start;
            const real *up = c->mixed_up ? c->mixed_up + s->group * R * O
                             : c->up     ? c->up + s->group * R * O
                                         : NULL;
            K->gemm(s->end - s->start, columns, O, staged + n * PM_STRIDE, c->panels + i0 * panel, I * panel,
                    i0 > 0, c->bias, complete ? R : 0, low + n * RP, RP, up, O, c->out + s->start * O, O);
        }
    }
    for (ptrdiff_t o0 = 0; c->learns && o0 < O; o0 += PM_STAGE) {
        const ptrdiff_t columns = O - o0 < PM_STAGE ? O - o0 : PM_STAGE;
        FN(stage)(rows, columns, c->x + start * O + o0, O,
                  staged); /* x is far away: read it once and in order */
        for (const struct pm_segment *s = first; s < last; s++)
            K->outer(s->end - s->start, R, columns, low + (s->start - start) * RP, RP,
                     staged + (s->start - start) * PM_STRIDE, PM_STRIDE, !s->opens,
                     c->sums + s->slot * c->pair + o0, O);
    }
    pm_block_put(staged);
}

/* Pairs, then chunks. Everything that a pass allocates is freed by linear_end. */
static int FN(linear_run)(struct FN(linear_pass) * c, ptrdiff_t B, const int64_t *cu_seqlens,
                          const int64_t *adapter_ids)
{
    if (pm_segments_make(&c->groups, c->N, c->R ? B : 1, c->R ? c->G : 1, c->R ? cu_seqlens : NULL,
                         c->R ? adapter_ids : NULL))
        return -1;
    if (c->concat && pm_segments_make(&c->pairs, c->N, 1, 1, NULL, NULL)) return -1;
    if (!c->concat) c->pairs = c->groups;
    const ptrdiff_t n_pairs = c->concat ? 1 : c->G, pair = c->R * (c->I + c->O);
    c->pair = FN(padded)(pair) + PM_ALIGN / sizeof(real);
    if (c->R) {
        c->panels_down = pm_block_get(sizeof(real) * n_pairs * FN(padded)(c->R) * c->I);
        if (!c->panels_down) return -1;
        if (c->mixes) {
            c->mixed_down = pm_block_get(sizeof(real) * n_pairs * pair);
            if (!c->mixed_down) return -1;
            c->mixed_up = c->mixed_down + n_pairs * c->R * c->I;
            pm_parallel(2 * c->R, 2.0 * c->S * n_pairs * pair, FN(linear_mix_item), c);
        }
        pm_parallel(n_pairs, 4.0 * n_pairs * c->R * c->I, FN(linear_pack_item), c);
    }
    if (c->learns) {
        c->sums = pm_block_get(sizeof(real) * c->pairs.n_slots * c->pair);
        const ptrdiff_t parts = c->concat ? c->groups.first[c->groups.n_chunks] : 2 * c->R * c->G * c->Q;
        c->dweights_parts = pm_block_get(sizeof(real) * parts * c->S);
        if (!c->sums || !c->dweights_parts) return -1;
    }
    pm_parallel(c->pairs.n_chunks, 2.0 * c->N * c->I * c->O + 8.0 * c->N * c->R * (c->I + c->O),
                FN(linear_chunk_item), c);
    return atomic_load(&c->failed) ? -1 : 0;
}

/* One row of one factor, the first R items of `up`, the others of `down`: fold what the chunks summed for each pair, in the order of
 * tokens. That is a gradient by itself, or one of the mixed pair. */
static void FN(linear_fold_item)(void *ctx, ptrdiff_t item)
{
    const struct FN(linear_grads) *grads = ctx;
    const struct FN(linear_pass) *c = grads->pass;
    const ptrdiff_t R = c->R, pair = c->pair, r = item % R, n_pairs = c->concat ? 1 : c->G;
    const int is_up = item < R;
    const ptrdiff_t columns = is_up ? c->O : c->I;
    real *sums = is_up ? c->sums : c->sums + R * c->O, *dfactor = is_up ? grads->dup : grads->ddown;
    for (ptrdiff_t g = 0; g < n_pairs; g++) {
        real *sum = sums + g * pair + r * columns;
        if (c->pairs.next[g] == PM_UNUSED) memset(sum, 0, sizeof(real) * columns);
        else
            for (ptrdiff_t slot = c->pairs.next[g]; slot >= 0; slot = c->pairs.next[slot])
                K->add_rows(1, columns, sums + slot * pair + r * columns, columns, sum);
        if (!c->mixes && dfactor) memcpy(dfactor + (g * R + r) * columns, sum, sizeof(real) * columns);
    }
    if (c->mixes && dfactor)
        K->mix_bwd_bank(n_pairs, c->Q, c->S, R, columns, r, c->weights, sums, pair, 1, dfactor);
    if (c->mixes && grads->dweights)
        K->mix_bwd_weights(n_pairs, c->Q, c->S, R, columns, r, is_up ? c->up : c->down, sums, pair, 1,
                           c->dweights_parts + item * c->G * c->Q * c->S);
}

static void FN(linear_end)(struct FN(linear_pass) * c)
{
    if (c->concat) pm_segments_free(&c->pairs);
    pm_segments_free(&c->groups);
    pm_block_put(c->panels_down);
    pm_block_put(c->mixed_down);
    pm_block_put(c->sums);
    pm_block_put(c->dweights_parts);
}

/* rank 0: no low-rank term. G groups; without weights G is S. */
int FN(pm_linear_fwd)(ptrdiff_t N, ptrdiff_t D, ptrdiff_t O, ptrdiff_t B, ptrdiff_t G, ptrdiff_t Q,
                      ptrdiff_t S, ptrdiff_t rank, const real *x, const real *panels, const real *bias,
                      const real *lora_A, const real *lora_B, const real *weights, const int64_t *adapter_ids,
                      const int64_t *cu_seqlens, double scale, int concat, real *y, real *h)
{
    struct FN(linear_pass) c = { .N = N,
                                 .I = D,
                                 .O = O,
                                 .in = x,
                                 .panels = panels,
                                 .bias = bias,
                                 .out = y,
                                 .R = concat ? S * rank : rank,
                                 .G = G,
                                 .Q = Q,
                                 .S = S,
                                 .rank = rank,
                                 .weights = weights,
                                 .down = lora_A,
                                 .up = lora_B,
                                 .scale = (real)scale,
                                 .concat = concat,
                                 .mixes = weights && !concat,
                                 .saved_h = h };
    const int failed = FN(linear_run)(&c, B, cu_seqlens, adapter_ids);
    FN(linear_end)(&c);
    return failed;
}

/* panels are those of the transposed weight. Every gradient may be NULL. */
int FN(pm_linear_bwd)(ptrdiff_t N, ptrdiff_t D, ptrdiff_t O, ptrdiff_t B, ptrdiff_t G, ptrdiff_t Q,
                      ptrdiff_t S, ptrdiff_t rank, const real *dy, const real *panels, const real *x,
                      const real *h, const real *lora_A, const real *lora_B, const real *weights,
                      const int64_t *adapter_ids, const int64_t *cu_seqlens, double scale, int concat,
                      real *dx, real *dlora_A, real *dlora_B, real *dweights)
{
    struct FN(linear_pass) c = { .N = N,
                                 .I = O,
                                 .O = D,
                                 .in = dy,
                                 .panels = panels,
                                 .out = dx,
                                 .R = concat ? S * rank : rank,
                                 .G = G,
                                 .Q = Q,
                                 .S = S,
                                 .rank = rank,
                                 .weights = weights,
                                 .down = lora_B,
                                 .up = lora_A,
                                 .scale = (real)scale,
                                 .concat = concat,
                                 .mixes = weights && !concat,
                                 .h = h,
                                 .x = x,
                                 .backward = 1,
                                 .learns = dlora_A || dlora_B || dweights };
    const int failed = FN(linear_run)(&c, B, cu_seqlens, adapter_ids);
    if (!failed && c.learns) {
        struct FN(linear_grads)
            grads = { .pass = &c, .dup = dlora_A, .ddown = dlora_B, .dweights = dweights };
        pm_parallel(2 * c.R, (double)c.R * (D + O) * (c.pairs.n_slots + (c.mixes ? 4.0 * G * S : 0)),
                    FN(linear_fold_item), &grads);
        if (dweights) memset(dweights, 0, sizeof(real) * G * Q * S);
        if (dweights && c.mixes) K->add_rows(2 * c.R, G * Q * S, c.dweights_parts, G * Q * S, dweights);
        for (ptrdiff_t i = 0; dweights && concat && i < c.groups.first[c.groups.n_chunks]; i++)
            K->add_rows(1, S, c.dweights_parts + i * S, S, dweights + c.groups.at[i].group * S);
    }
    FN(linear_end)(&c);
    return failed;
}
#endif
