/* linear.c -- the frozen products of one x, each with a grouped low-rank term, forward and backward. Threads share out chunks of tokens
 * and, where there are fewer of them than threads and nothing is learnt, parts of their columns: that splits no sum.
 *
 *   y = x W^T + bias + h B_g,  h = scale * x A_g^T          a pass from x to y: projects with A, its epilogue is B
 *   dx = dy W + g A_g,         g = scale * dy B_g^T         the same pass from dy to dx: projects with B, its epilogue is A
 *   dA_g = sum_n g x,          dB_g = sum_n h dy            by chunk and group, then folded in the order of tokens
 * where x may be activation(x) times, formed again from both in backward: dx turns into the gradient of x while it is in cache.
 * Layers that read the same x (query, key, value) share its staging, and their dx is summed while it is in cache: the last layer first.
 *
 * What is done with one chunk is in linear_chunk.h. The pair A_g, B_g is made once per group (linear_pairs.h); where all experts lie
 * side by side there is one pair, and the weights act on h and g (linear_weigh.h). Where tokens choose experts, a token has a row of h and
 * g for each choice, sorted by expert: those of one expert are a group, whose rows of x and y are found by index. So are those of groups
 * that take turns every few tokens. Without a frozen weight the epilogue is all there is. */
#ifndef DT
#define PM_SELF "../ops/linear.c"
#include "linear.h"
#include "segments.h"
#include <stdatomic.h>
#include "dtypes.h"
#else
#include "linear_pairs.h"
#include "linear_weigh.h"
#include "linear_chunk.h"

#define WEIGHT_READ 10 /* reading a weight takes as long as multiplying it with so many tokens */

/* A pass over a term; scale, shapes of the pairs and what is made of them follow from it. */
static struct FN(linear_pass) FN(linear_pass_of)(const struct pm_term *t, int backward)
{
    const int chosen = t->form == PM_BUCKETS, by_token = chosen || t->form == PM_TOKENS,
              aside = by_token || t->form == PM_CONCAT || t->form == PM_OUTPUTS;
    const ptrdiff_t S = chosen ? 1 : t->S, S_A = chosen ? 1 : t->S_A,
                    n_pairs = chosen  ? t->S
                              : aside ? 1
                                      : t->G,
                    n_A = chosen ? t->S_A : n_pairs;
    const ptrdiff_t R_B = (aside                  ? S
                           : t->form == PM_GATHER ? t->k
                                                  : 1) *
                          t->R,
                    R_A = aside ? S_A * t->R : R_B;
    return (struct FN(linear_pass)){ .term = t,
                                     .weights = t->weights,
                                     .down = backward ? t->lora_B : t->lora_A,
                                     .up = backward ? t->lora_A : t->lora_B,
                                     .panels_down = backward ? NULL : t->panels,
                                     .R_down = backward ? R_B : R_A,
                                     .R_up = backward ? R_A : R_B,
                                     .k = chosen ? t->k : 1,
                                     .S = S,
                                     .S_A = S_A,
                                     .n_pairs = n_pairs,
                                     .n_down = backward ? n_pairs : n_A,
                                     .n_up = backward ? n_A : n_pairs,
                                     .scale = (real)t->scale,
                                     .makes = t->weights && !aside,
                                     .aside = aside,
                                     .by_token = by_token,
                                     .backward = backward };
}

/* panels [G,R to whole panels,D]: factor [G,R,D] as pm_linear_fwd reads it, on the instruction set of now. */
void FN(pm_factor_pack)(ptrdiff_t G, ptrdiff_t R, ptrdiff_t D, const real *factor, real *panels)
{
    for (ptrdiff_t g = 0; g < G; g++)
        K->proj_pack(R, D, factor + g * R * D, 1, panels + g * FN(padded)(R) * D);
}

/* What a pass needs before its chunks. What it allocates is freed by linear_end. -1 when memory is out. */
static int FN(linear_begin)(struct FN(linear_pass) * c)
{
    const struct pm_term *t = c->term;
    const int grouped = t->R && !c->by_token;
    if (t->form == PM_BUCKETS) {
        if (pm_segments_choose(&c->groups, c->N, t->S, t->k, t->ids)) return -1;
    } else if (pm_segments_make(&c->groups, c->N, grouped ? t->B : 1, grouped ? t->G : 1,
                                grouped ? t->cu_seqlens : NULL, grouped ? t->adapter_ids : NULL,
                                c->aside ? 0 : SHORT))
        return -1;
    const int whole = c->aside && grouped;
    if (whole && pm_segments_make(&c->pairs, c->N, 1, 1, NULL, NULL, 0)) return -1;
    if (!whole) c->pairs = c->groups;
    c->pair = FN(padded)(c->R_up * c->O + c->R_down * c->I) + PM_ALIGN / sizeof(real);
    if (t->R && FN(linear_make_pairs)(c)) return -1;
    if (c->learns) {
        c->sums = pm_block_get(sizeof(real) * c->pairs.n_slots * c->pair);
        if (!c->sums) return -1;
    }
    if (!c->by_token && (c->learns || (c->aside && c->backward))) {
        const ptrdiff_t n = c->aside               ? c->groups.first[c->groups.n_chunks] * c->S
                            : t->form == PM_GATHER ? t->R * t->G * t->k
                                                   : 2 * t->R * t->G * t->Q * t->S;
        c->dweights_parts = pm_block_get(sizeof(real) * n);
        if (!c->dweights_parts) return -1;
    }
    return 0;
}

static void FN(linear_end)(struct FN(linear_pass) * c)
{
    if (c->pairs.at != c->groups.at) pm_segments_free(&c->pairs);
    pm_segments_free(&c->groups);
    pm_block_put(c->packed);
    pm_block_put(c->made_down);
    pm_block_put(c->sums);
    pm_block_put(c->dweights_parts);
}

/* Pairs of every pass, then chunks. */
static int FN(linear_run)(struct FN(linear_layers) * l)
{
    const ptrdiff_t n_chunks = (l->N + PM_CHUNK - 1) / PM_CHUNK, threads = pm_get_num_threads(),
                    wanted = n_chunks ? (threads + n_chunks - 1) / n_chunks : 1;
    ptrdiff_t most = 1;
    int separable = 1;
    double work = 0;
    for (ptrdiff_t i = 0; i < l->n; i++) {
        struct FN(linear_pass) *c = l->pass + i;
        if (FN(linear_begin)(c)) return -1;
        separable = separable && c->weight.panels && !c->learns && !(c->aside && c->backward);
        if (c->O / COLUMNS > most) most = c->O / COLUMNS;
        work += 2.0 * (c->N + WEIGHT_READ) * c->I * c->O +
                4.0 * c->N * c->k * (c->R_down + c->R_up) * (c->I + c->O);
    }
    l->parts = !separable ? 1 : wanted < most ? wanted : most;
    pm_parallel(n_chunks * l->parts, work, FN(linear_chunk_item), l);
    return -atomic_load(&l->failed);
}

int FN(pm_linear_fwd)(ptrdiff_t N, ptrdiff_t D, const real *x, struct pm_reading reading, ptrdiff_t n,
                      const struct pm_layer *layers)
{
    struct FN(linear_layers)
        l = { .N = N, .D = D, .n = n, .x = x, .activation = reading.activation, .times = reading.times };
    for (ptrdiff_t i = 0; i < n; i++) {
        const struct pm_layer *layer = layers + i;
        struct FN(linear_pass) c = FN(linear_pass_of)(&layer->term, 0);
        c.N = N, c.I = D, c.O = layer->O, c.weight = layer->weight, c.bias = layer->bias;
        c.out = layer->y, c.saved_h = layer->h;
        l.pass[i] = c;
    }
    const int failed = FN(linear_run)(&l);
    for (ptrdiff_t i = 0; i < n; i++) FN(linear_end)(l.pass + i);
    return failed;
}

/* Gradients of the experts and of the weights, from what the chunks have. */
static void FN(linear_fold_all)(struct FN(linear_pass) * c, const struct pm_layer *layer)
{
    const struct pm_term *t = c->term;
    real *dweights = layer->dweights;
    struct FN(linear_grads)
        grads = { .pass = c, .dup = layer->dlora_A, .ddown = layer->dlora_B, .dweights = dweights };
    const int gathered = t->form == PM_GATHER;
    pm_parallel(gathered ? 2 * t->R : c->R_up + c->R_down,
                (double)(c->R_up * c->O + c->R_down * c->I) *
                    (c->pairs.n_slots + (c->makes && !gathered ? 4.0 * t->G * t->S : 0)),
                gathered ? FN(linear_scatter_item) : FN(linear_fold_item), &grads);
    if (!dweights || c->by_token) return;
    const ptrdiff_t n = t->G * (gathered ? t->k : t->Q * t->S);
    memset(dweights, 0, sizeof(real) * n);
    if (c->makes) K->add_rows(gathered ? t->R : 2 * t->R, n, c->dweights_parts, n, dweights);
    for (ptrdiff_t i = 0; c->aside && i < c->groups.first[c->groups.n_chunks]; i++)
        K->add_rows(1, t->S, c->dweights_parts + i * t->S, t->S, dweights + c->groups.at[i].group * t->S);
}

int FN(pm_linear_bwd)(ptrdiff_t N, ptrdiff_t D, const real *x, struct pm_reading reading, ptrdiff_t n,
                      const struct pm_layer *layers, const real *onto, real *dx, real *dtimes)
{
    struct FN(linear_layers) l = { .N = N,
                                   .D = D,
                                   .n = n,
                                   .x = x,
                                   .activation = reading.activation,
                                   .times = reading.times,
                                   .dx = dx,
                                   .dtimes = dtimes };
    for (ptrdiff_t i = 0; i < n; i++) {
        const struct pm_layer *layer = layers + i;
        struct FN(linear_pass) c = FN(linear_pass_of)(&layer->term, 1);
        c.N = N, c.I = layer->O, c.O = D, c.in = layer->dy, c.weight = layer->weight, c.h = layer->h;
        c.out = dx, c.onto = i + 1 < n ? dx : onto; /* the last one goes first */
        c.learns = layer->dlora_A || layer->dlora_B || layer->dweights;
        c.dweights = layer->dweights;
        l.pass[i] = c;
    }
    const int failed = FN(linear_run)(&l);
    for (ptrdiff_t i = 0; i < n; i++) {
        if (!failed && l.pass[i].learns) FN(linear_fold_all)(l.pass + i, layers + i);
        FN(linear_end)(l.pass + i);
    }
    return failed;
}
#undef WEIGHT_READ
#undef COLUMNS
#undef SHORT
#endif
