/* linear.c -- the frozen product with a grouped low-rank term, forward and backward. Threads share out chunks of tokens and,
 * where there are fewer of them than threads and nothing is learnt, parts of their columns: that splits no sum.
 *
 *   y = x W^T + bias + h B_g,  h = scale * x A_g^T          a pass from x to y: projects with A, its epilogue is B
 *   dx = dy W + g A_g,         g = scale * dy B_g^T         the same pass from dy to dx: projects with B, its epilogue is A
 *   dA_g = sum_n g x,          dB_g = sum_n h dy            by chunk and group, then folded in the order of tokens
 * where x may be activation(x) times, formed again from both in backward: dx turns into the gradient of x while it is in cache.
 *
 * The pair A_g, B_g is made once per group (linear_pairs.h); where all experts lie side by side there is one pair, and the weights act
 * on h and g (kernels/lowrank.h: combine, weigh). Without a frozen weight the epilogue is all there is. */
#ifndef DT
#define PM_SELF "../ops/linear.c"
#include "linear.h"
#include "segments.h"
#include <stdatomic.h>
#include "dtypes.h"
#else
#include "linear_pairs.h"

#define COLUMNS \
    ((ptrdiff_t)64) /* parts of the columns begin at multiples: whole panels and strips of any instruction set */
#define SHORT 16 /* tokens of a segment: fewer do not fill the tiles of a product */
#define WEIGHT_READ 10 /* reading a weight takes as long as multiplying it with so many tokens */

/* Scratch of one chunk. */
struct FN(linear_scratch) {
    real *staged, *low, *weighted; /* [rows,PM_STRIDE]; h or g before and after the weights, [rows,ld] both */
    real *widened; /* a bfloat16 weight: what gemm_bf16 needs */
    real *spread,
        *dspread; /* [rows,S] PM_TOKENS: weights with zeros for the experts that a token does not use; dweights */
    ptrdiff_t ld;
};

/* The weights of one segment of a group, ldw apart; tokens of a group share them. */
static const real *FN(linear_weights)(const struct FN(linear_pass) * c, const struct pm_segment *s,
                                      const struct FN(linear_scratch) * scratch, ptrdiff_t *ldw)
{
    const ptrdiff_t S = c->term->S;
    const int by_token = c->term->form == PM_TOKENS;
    *ldw = by_token ? S : 0;
    if (!by_token) return c->weights + s->group * S;
    return c->term->ids ? scratch->spread : c->weights + s->start * S;
}

/* What meets B, from h = scale * x A^T of a chunk: rows of h are ldh apart, those of u ld. */
static void FN(linear_weigh)(const struct FN(linear_pass) * c, ptrdiff_t chunk, const real *h, ptrdiff_t ldh,
                             const struct FN(linear_scratch) * scratch, real *u)
{
    const struct pm_term *t = c->term;
    for (ptrdiff_t i = c->groups.first[chunk]; i < c->groups.first[chunk + 1]; i++) {
        const struct pm_segment *s = c->groups.at + i;
        const ptrdiff_t n = s->start - chunk * PM_CHUNK, rows = s->end - s->start;
        ptrdiff_t ldw;
        const real *weights = FN(linear_weights)(c, s, scratch, &ldw);
        if (t->form == PM_CONCAT)
            K->combine_fwd(rows, t->S, t->R, weights, h + n * ldh, ldh, u + n * scratch->ld, scratch->ld);
        else
            K->weigh_fwd(rows, t->S, t->R, t->S_A < t->S, weights, ldw, h + n * ldh, ldh, u + n * scratch->ld,
                         scratch->ld);
    }
}

/* g of a chunk, from dy B^T in its place, and the gradient of the weights. */
static void FN(linear_unweigh)(const struct FN(linear_pass) * c, ptrdiff_t chunk,
                               const struct FN(linear_scratch) * scratch)
{
    const struct pm_term *t = c->term;
    const ptrdiff_t start = chunk * PM_CHUNK, S = t->S, ld = scratch->ld;
    for (ptrdiff_t i = c->groups.first[chunk]; i < c->groups.first[chunk + 1]; i++) {
        const struct pm_segment *s = c->groups.at + i;
        const ptrdiff_t rows = s->end - s->start;
        const real *h = c->h + s->start * c->R_up;
        real *g = scratch->low + (s->start - start) * ld,
             *dweights = t->form == PM_TOKENS ? scratch->dspread : c->dweights_parts + i * S;
        ptrdiff_t ldw;
        const real *weights = FN(linear_weights)(c, s, scratch, &ldw);
        memset(dweights, 0, sizeof(real) * (ldw ? rows * S : S));
        if (t->form == PM_CONCAT)
            K->combine_bwd(rows, S, t->R, weights, h, c->R_up, c->scale, g, ld, dweights);
        else
            K->weigh_bwd(rows, S, t->R, t->S_A < S, weights, ldw, h, c->R_up, c->scale, g, ld, dweights, ldw);
        for (ptrdiff_t n = 0; t->form == PM_TOKENS && c->dweights && n < rows; n++)
            if (!t->ids) memcpy(c->dweights + (s->start + n) * S, dweights + n * S, sizeof(real) * S);
            else
                for (ptrdiff_t k = 0; k < t->k; k++)
                    c->dweights[(s->start + n) * t->k + k] =
                        dweights[n * S + t->ids[(s->start + n) * t->k + k]];
    }
}

/* PM_TOKENS with ids: weights of every expert. */
static void FN(linear_spread)(const struct FN(linear_pass) * c, ptrdiff_t start, ptrdiff_t rows, real *spread)
{
    const struct pm_term *t = c->term;
    memset(spread, 0, sizeof(real) * rows * t->S);
    for (ptrdiff_t n = 0; n < rows; n++)
        for (ptrdiff_t i = (start + n) * t->k; i < (start + n + 1) * t->k; i++)
            spread[n * t->S + t->ids[i]] += c->weights[i];
}

/* One block of columns of a chunk is staged: the projection, and ddown (u is what met it), segment by segment. */
static void FN(linear_project)(const struct FN(linear_pass) * c, ptrdiff_t chunk, ptrdiff_t i0,
                               ptrdiff_t columns, const struct FN(linear_scratch) * scratch, const real *u,
                               ptrdiff_t ldu)
{
    const ptrdiff_t R = c->R_down, ld = scratch->ld;
    for (ptrdiff_t i = c->pairs.first[chunk]; i < c->pairs.first[chunk + 1]; i++) {
        const struct pm_segment *s = c->pairs.at + i;
        const ptrdiff_t n = s->start - chunk * PM_CHUNK, rows = s->end - s->start;
        const real *staged = scratch->staged + n * PM_STRIDE;
        K->proj(rows, R, c->I, i0, columns, staged, c->panels_down + s->group * FN(padded)(R) * c->I, i0 > 0,
                scratch->low + n * ld, ld);
        if (c->learns)
            K->outer(rows, R, columns, u + n * ldu, ldu, staged, PM_STRIDE, !s->opens,
                     c->sums + s->slot * c->pair + c->R_up * c->O + i0, c->I);
    }
}

/* What a call of linear_product computes: rows of `in` from `start` on, the group whose term they get, and a part of the columns. */
struct FN(linear_block) {
    ptrdiff_t start, rows, group, o0, columns;
};

/* out = onto + bias + staged W + low up, for one block of columns of `in`, i0 and up: the first block brings onto and bias, the last
 * one (with R) the term. Without `product` the term alone is added to what is there. */
static void FN(linear_product)(const struct FN(linear_pass) * c, const struct FN(linear_block) * b,
                               ptrdiff_t i0, ptrdiff_t columns, int product, ptrdiff_t R,
                               const struct FN(linear_scratch) * scratch, const real *staged, const real *low)
{
    const ptrdiff_t I = c->I, O = c->O, o0 = b->o0, at = b->start * O + o0;
    const real *up = c->makes ? c->made_up : c->up;
    real *out = c->out + at;
    const int first = product && (!c->weight.panels || i0 == 0);
    const real *base = !first    ? out
                       : c->onto ? c->onto + at
                                 : NULL,
               *bias = first && c->bias ? c->bias + o0 : NULL;
    if (up) up += b->group * c->R_up * O + o0;
    if (product && c->weight.bf16) {
        const ptrdiff_t stride = (I + 1) / 2 * 2 * PM_BF16_COLUMNS;
        K->gemm_bf16(b->rows, columns, b->columns, staged,
                     (const uint16_t *)c->weight.panels + o0 / PM_BF16_COLUMNS * stride +
                         i0 * PM_BF16_COLUMNS,
                     stride, base, bias, R, low, scratch->ld, up, O, out, O, scratch->widened);
    } else {
        const ptrdiff_t panel = product && c->weight.panels ? PM_ALIGN / sizeof(real) : 0;
        const real *panels = panel ? (const real *)c->weight.panels + (o0 * I + i0 * panel) : staged;
        K->gemm(b->rows, panel ? columns : 0, b->columns, staged, panels, I * panel, base, bias, R, low,
                scratch->ld, up, O, out, O);
    }
}

static void FN(linear_chunk_item)(void *ctx, ptrdiff_t item)
{
    struct FN(linear_pass) *c = ctx;
    const ptrdiff_t chunk = item / c->parts, part = item % c->parts;
    const ptrdiff_t start = chunk * PM_CHUNK, rows = c->N - start < PM_CHUNK ? c->N - start : PM_CHUNK;
    const ptrdiff_t R = c->R_up, widest = R < c->R_down ? c->R_down : R, ld = FN(padded)(widest), I = c->I,
                    O = c->O, panel = PM_ALIGN / sizeof(real), S = c->term->S;
    const struct pm_segment *first = c->pairs.at + c->pairs.first[chunk],
                            *last = c->pairs.at + c->pairs.first[chunk + 1];
    const ptrdiff_t spread = c->term->form == PM_TOKENS ? S : 0;
    const ptrdiff_t widened = c->weight.bf16 ? PM_STRIDE / 2 : 0;
    real *staged = pm_block_get(sizeof(real) * PM_CHUNK * (PM_STRIDE + widened + 2 * ld + 2 * spread));
    if (!staged) {
        atomic_store(&c->failed, 1);
        return;
    }
    struct FN(linear_scratch)
        scratch = { .staged = staged, .widened = staged + PM_CHUNK * PM_STRIDE, .ld = ld };
    scratch.low = scratch.widened + PM_CHUNK * widened;
    scratch.weighted = scratch.low + PM_CHUNK * ld;
    scratch.spread = scratch.weighted + PM_CHUNK * ld;
    scratch.dspread = scratch.spread + PM_CHUNK * spread;
    if (spread && c->term->ids) FN(linear_spread)(c, start, rows, scratch.spread);
    const real *u = c->h ? c->h + start * R : NULL; /* of the forward pass: what met lora_B */
    ptrdiff_t ldu = R;
    if (c->learns && c->aside) {
        FN(linear_weigh)(c, chunk, u, ldu, &scratch, scratch.weighted);
        u = scratch.weighted, ldu = ld;
    }
    const real *low = c->aside && !c->backward ? scratch.weighted : scratch.low; /* what meets `up` */
    /* segments of few tokens are multiplied together, and each gets its term afterwards: the same bits (gemm_tile) */
    const int whole = c->weight.panels && R && last - first > 1 && rows < SHORT * (last - first);
    const ptrdiff_t o0 = O * part / c->parts / COLUMNS * COLUMNS,
                    o1 = part + 1 < c->parts ? O * (part + 1) / c->parts / COLUMNS * COLUMNS : O;
    const struct FN(linear_block) all = { start, rows, 0, o0, o1 - o0 };
    /* blocks of equal size, a multiple of the panel, so that none is much smaller than the others */
    const ptrdiff_t n_blocks = (I + PM_STAGE - 1) / PM_STAGE,
                    block = ((I + n_blocks - 1) / n_blocks + panel - 1) / panel * panel;
    for (ptrdiff_t i0 = 0; i0 < I; i0 += block) {
        const ptrdiff_t columns = I - i0 < block ? I - i0 : block;
        const int complete = i0 + columns == I;
        if (c->weight.panels || R) K->stage(rows, columns, c->in + start * I + i0, I, staged);
        if (c->activation && !c->backward)
            K->activate(c->activation, rows, columns, c->times ? c->times + start * I + i0 : NULL, I, staged,
                        NULL, NULL);
        if (R) FN(linear_project)(c, chunk, i0, columns, &scratch, u, ldu);
        for (ptrdiff_t n = 0; complete && part == 0 && c->saved_h && n < rows; n++)
            memcpy(c->saved_h + (start + n) * c->R_down, scratch.low + n * ld, sizeof(real) * c->R_down);
        if (complete && c->aside && c->backward) FN(linear_unweigh)(c, chunk, &scratch);
        else if (complete && c->aside)
            FN(linear_weigh)(c, chunk, scratch.low, ld, &scratch, scratch.weighted);
        if (whole && c->out) FN(linear_product)(c, &all, i0, columns, 1, 0, &scratch, staged, low);
        for (const struct pm_segment *s = first;
             c->out && (complete || (c->weight.panels && !whole)) && s < last; s++) {
            const ptrdiff_t n = s->start - start;
            const struct FN(linear_block) block = { s->start, s->end - s->start, s->group, o0, o1 - o0 };
            FN(linear_product)(c, &block, i0, columns, !whole, complete ? R : 0, &scratch,
                               staged + n * PM_STRIDE, low + n * ld);
        }
    }
    const int activated = c->activation && c->backward;
    for (ptrdiff_t o = o0; (c->learns || (activated && c->out)) && o < o1; o += PM_STAGE) {
        const ptrdiff_t columns = o1 - o < PM_STAGE ? o1 - o : PM_STAGE, at = start * O + o;
        const real *times = c->times ? c->times + at : NULL;
        K->stage(rows, columns, c->x + at, O, staged); /* x is far away: read it once and in order */
        if (activated)
            K->activate(c->activation, rows, columns, times, O, staged, c->out ? c->out + at : NULL,
                        c->dtimes ? c->dtimes + at : NULL);
        for (const struct pm_segment *s = first; c->learns && s < last; s++)
            K->outer(s->end - s->start, R, columns, low + (s->start - start) * ld, ld,
                     staged + (s->start - start) * PM_STRIDE, PM_STRIDE, !s->opens,
                     c->sums + s->slot * c->pair + o, O);
    }
    pm_block_put(staged);
}

/* A pass over a term; scale, shapes of the pairs and what is made of them follow from it. */
static struct FN(linear_pass) FN(linear_pass_of)(const struct pm_term *t, int backward)
{
    const int aside = t->form == PM_CONCAT || t->form == PM_OUTPUTS || t->form == PM_TOKENS;
    const ptrdiff_t R_B = (aside                  ? t->S
                           : t->form == PM_GATHER ? t->k
                                                  : 1) *
                          t->R,
                    R_A = aside ? t->S_A * t->R : R_B;
    return (struct FN(linear_pass)){ .term = t,
                                     .weights = t->weights,
                                     .down = backward ? t->lora_B : t->lora_A,
                                     .up = backward ? t->lora_A : t->lora_B,
                                     .R_down = backward ? R_B : R_A,
                                     .R_up = backward ? R_A : R_B,
                                     .scale = (real)t->scale,
                                     .makes = t->weights && !aside,
                                     .aside = aside,
                                     .backward = backward };
}

/* Pairs, then chunks. Everything that a pass allocates is freed by linear_end. */
static int FN(linear_run)(struct FN(linear_pass) * c)
{
    const struct pm_term *t = c->term;
    const int grouped = t->R && t->form != PM_TOKENS;
    if (pm_segments_make(&c->groups, c->N, grouped ? t->B : 1, grouped ? t->G : 1,
                         grouped ? t->cu_seqlens : NULL, grouped ? t->adapter_ids : NULL))
        return -1;
    const int whole = c->aside && grouped;
    if (whole && pm_segments_make(&c->pairs, c->N, 1, 1, NULL, NULL)) return -1;
    if (!whole) c->pairs = c->groups;
    c->pair = FN(padded)(c->R_up * c->O + c->R_down * c->I) + PM_ALIGN / sizeof(real);
    if (t->R && FN(linear_make_pairs)(c, c->aside ? 1 : t->G)) return -1;
    if (c->learns) {
        c->sums = pm_block_get(sizeof(real) * c->pairs.n_slots * c->pair);
        if (!c->sums) return -1;
    }
    if (c->learns || (c->aside && c->backward)) {
        const ptrdiff_t n = c->aside               ? c->groups.first[c->groups.n_chunks] * t->S
                            : t->form == PM_GATHER ? t->R * t->G * t->k
                                                   : 2 * t->R * t->G * t->Q * t->S;
        c->dweights_parts = pm_block_get(sizeof(real) * n);
        if (!c->dweights_parts) return -1;
    }
    const int separable = c->weight.panels && !c->learns && !(c->aside && c->backward);
    const ptrdiff_t n_chunks = c->pairs.n_chunks, threads = pm_get_num_threads(),
                    most = separable && n_chunks && n_chunks < threads ? c->O / COLUMNS : 1,
                    parts = n_chunks ? (threads + n_chunks - 1) / n_chunks : 1;
    c->parts = most < 1 ? 1 : parts < most ? parts : most;
    pm_parallel(n_chunks * c->parts,
                2.0 * (c->N + WEIGHT_READ) * c->I * c->O + 4.0 * c->N * (c->R_down + c->R_up) * (c->I + c->O),
                FN(linear_chunk_item), c);
    return atomic_load(&c->failed) ? -1 : 0;
}

static void FN(linear_end)(struct FN(linear_pass) * c)
{
    if (c->pairs.at != c->groups.at) pm_segments_free(&c->pairs);
    pm_segments_free(&c->groups);
    pm_block_put(c->panels_down);
    pm_block_put(c->made_down);
    pm_block_put(c->sums);
    pm_block_put(c->dweights_parts);
}

/* h [N, columns] may be NULL. -1 when memory is out. */
int FN(pm_linear_fwd)(ptrdiff_t N, ptrdiff_t D, ptrdiff_t O, const real *x, struct pm_reading reading,
                      struct pm_weight weight, const real *bias, const struct pm_term *term, real *y, real *h)
{
    struct FN(linear_pass) c = FN(linear_pass_of)(term, 0);
    c.N = N, c.I = D, c.O = O, c.in = x, c.weight = weight, c.bias = bias, c.out = y, c.saved_h = h;
    c.activation = reading.activation, c.times = reading.times;
    const int failed = FN(linear_run)(&c);
    FN(linear_end)(&c);
    return failed;
}

/* weight is the transposed one; onto [N,D] or NULL is added to dx (not where x is activated). Every gradient may be NULL; x may be
 * when those of the term are and it is not activated, h too unless experts lie side by side. -1 when memory is out. */
int FN(pm_linear_bwd)(ptrdiff_t N, ptrdiff_t D, ptrdiff_t O, const real *dy, struct pm_weight weight,
                      const real *x, struct pm_reading reading, const real *h, const struct pm_term *term,
                      const real *onto, real *dx, real *dtimes, real *dlora_A, real *dlora_B, real *dweights)
{
    const struct pm_term *t = term;
    struct FN(linear_pass) c = FN(linear_pass_of)(term, 1);
    c.N = N, c.I = O, c.O = D, c.in = dy, c.weight = weight, c.onto = onto, c.out = dx, c.h = h, c.x = x;
    c.learns = dlora_A || dlora_B || dweights;
    c.dweights = dweights;
    c.activation = reading.activation, c.times = reading.times, c.dtimes = dtimes;
    const int failed = FN(linear_run)(&c);
    if (!failed && c.learns) {
        struct FN(linear_grads)
            grads = { .pass = &c, .dup = dlora_A, .ddown = dlora_B, .dweights = dweights };
        const int gathered = t->form == PM_GATHER;
        pm_parallel(gathered ? 2 * t->R : c.R_up + c.R_down,
                    (double)(c.R_up * D + c.R_down * O) *
                        (c.pairs.n_slots + (c.makes && !gathered ? 4.0 * t->G * t->S : 0)),
                    gathered ? FN(linear_scatter_item) : FN(linear_fold_item), &grads);
        const ptrdiff_t n = t->G * (gathered ? t->k : t->Q * t->S);
        if (dweights && t->form != PM_TOKENS) memset(dweights, 0, sizeof(real) * n);
        if (dweights && c.makes) K->add_rows(gathered ? t->R : 2 * t->R, n, c.dweights_parts, n, dweights);
        for (ptrdiff_t i = 0;
             dweights && c.aside && t->form != PM_TOKENS && i < c.groups.first[c.groups.n_chunks]; i++)
            K->add_rows(1, t->S, c.dweights_parts + i * t->S, t->S, dweights + c.groups.at[i].group * t->S);
    }
    FN(linear_end)(&c);
    return failed;
}
#undef COLUMNS
#undef SHORT
#undef WEIGHT_READ
#endif
