/* route.c -- routers (kernels/route.h). By task: little work, and tasks repeat among groups, so one thread. By token: threads share
 * out chunks of tokens. */
#ifndef DT
#define PM_SELF "../ops/route.c"
#include "dtypes.h"
#else

/* noise and mask may be NULL. */
void FN(pm_task_router_fwd)(ptrdiff_t G, ptrdiff_t Q, ptrdiff_t S, const real *logits,
                            const int64_t *task_ids, const real *noise, const real *mask, double temperature,
                            int gate, int average, real *weights, real *gates, real *slopes)
{
    const ptrdiff_t QS = Q * S;
    for (ptrdiff_t g = 0; g < G; g++)
        K->task_router_fwd(Q, S, logits + task_ids[g] * QS, noise ? noise + g * QS : NULL,
                           mask ? mask + g * QS : NULL, temperature, gate, average, weights + g * QS,
                           gates + g * QS, slopes + g * QS);
}

/* dlogits [T,Q,S]: rows of tasks that no group has are 0; groups of one task are added in order. */
void FN(pm_task_router_bwd)(ptrdiff_t T, ptrdiff_t G, ptrdiff_t Q, ptrdiff_t S, const real *dweights,
                            const int64_t *task_ids, const real *weights, const real *slopes, int gate,
                            int average, real *dlogits)
{
    const ptrdiff_t QS = Q * S;
    memset(dlogits, 0, (size_t)(T * QS) * sizeof(real));
    for (ptrdiff_t g = 0; g < G; g++)
        K->task_router_bwd(Q, S, dweights + g * QS, weights + g * QS, slopes + g * QS, gate, average,
                           dlogits + task_ids[g] * QS);
}

struct FN(tokens) {
    ptrdiff_t N, S, k;
    const real *logits, *dweights, *saved_weights, *slope;
    const int64_t *saved_ids;
    real temperature;
    real *weights, *dlogits, *rows;
    double *P;
    int64_t *ids;
};

static ptrdiff_t FN(chunks)(ptrdiff_t N) { return (N + PM_CHUNK - 1) / PM_CHUNK; }
static ptrdiff_t FN(chunk_rows)(ptrdiff_t N, ptrdiff_t chunk)
{
    return N - chunk * PM_CHUNK < PM_CHUNK ? N - chunk * PM_CHUNK : PM_CHUNK;
}

static void FN(softmax_item)(void *ctx, ptrdiff_t chunk)
{
    const struct FN(tokens) *c = ctx;
    const ptrdiff_t at = chunk * PM_CHUNK * c->S, rows = FN(chunk_rows)(c->N, chunk);
    if (c->weights) K->softmax_fwd(rows, c->S, c->logits + at, c->temperature, c->weights + at);
    else K->softmax_bwd(rows, c->S, c->dweights + at, c->saved_weights + at, c->temperature, c->dlogits + at);
}

void FN(pm_softmax_router_fwd)(ptrdiff_t N, ptrdiff_t S, const real *logits, double temperature,
                               real *weights)
{
    struct FN(tokens)
        c = { .N = N, .S = S, .logits = logits, .temperature = (real)temperature, .weights = weights };
    pm_parallel(FN(chunks)(N), 20.0 * N * S, FN(softmax_item), &c);
}

void FN(pm_softmax_router_bwd)(ptrdiff_t N, ptrdiff_t S, const real *dweights, const real *weights,
                               double temperature, real *dlogits)
{
    struct FN(tokens) c = { .N = N,
                            .S = S,
                            .dweights = dweights,
                            .saved_weights = weights,
                            .temperature = (real)temperature,
                            .dlogits = dlogits };
    pm_parallel(FN(chunks)(N), 4.0 * N * S, FN(softmax_item), &c);
}

static void FN(topk_item)(void *ctx, ptrdiff_t chunk)
{
    const struct FN(tokens) *c = ctx;
    const ptrdiff_t at = chunk * PM_CHUNK, rows = FN(chunk_rows)(c->N, chunk);
    if (c->weights)
        K->topk_fwd(rows, c->S, c->k, c->logits + at * c->S, c->weights + at * c->k, c->ids + at * c->k);
    else
        K->topk_bwd(rows, c->S, c->k, c->dweights + at * c->k, c->saved_weights + at * c->k,
                    c->saved_ids + at * c->k, c->dlogits + at * c->S);
}

void FN(pm_topk_router_fwd)(ptrdiff_t N, ptrdiff_t S, ptrdiff_t k, const real *logits, real *weights,
                            int64_t *ids)
{
    struct FN(tokens) c = { .N = N, .S = S, .k = k, .logits = logits, .weights = weights, .ids = ids };
    pm_parallel(FN(chunks)(N), 8.0 * N * S * k, FN(topk_item), &c);
}

void FN(pm_topk_router_bwd)(ptrdiff_t N, ptrdiff_t S, ptrdiff_t k, const real *dweights, const real *weights,
                            const int64_t *ids, real *dlogits)
{
    struct FN(tokens) c = { .N = N,
                            .S = S,
                            .k = k,
                            .dweights = dweights,
                            .saved_weights = weights,
                            .saved_ids = ids,
                            .dlogits = dlogits };
    pm_parallel(FN(chunks)(N), 4.0 * N * S, FN(topk_item), &c);
}

static void FN(balance_fwd_item)(void *ctx, ptrdiff_t chunk)
{
    const struct FN(tokens) *c = ctx;
    K->balance_fwd(FN(chunk_rows)(c->N, chunk), c->S, c->logits + chunk * PM_CHUNK * c->S,
                   c->rows + chunk * c->S, c->P + chunk * c->S);
}

/* loss = S sum_s f_s P_s: f_s (fractions [S]) the share of the N k choices that fell on s, P_s the mean probability. No tokens: 0.
 * -1 when memory is out. */
int FN(pm_balance_loss_fwd)(ptrdiff_t N, ptrdiff_t S, ptrdiff_t k, const real *logits, const int64_t *ids,
                            real *loss, real *fractions)
{
    const ptrdiff_t chunks = FN(chunks)(N);
    double *P = pm_block_get((sizeof(double) + sizeof(real)) * (chunks + 1) * S), sum = 0;
    if (!P) return -1;
    struct FN(tokens) c = { .N = N, .S = S, .logits = logits, .P = P, .rows = (real *)(P + chunks * S) };
    pm_parallel(chunks, 20.0 * N * S, FN(balance_fwd_item), &c);
    memset(fractions, 0, sizeof(real) * S);
    for (ptrdiff_t i = 0; i < N * k; i++) fractions[ids[i]] += 1;
    for (ptrdiff_t s = 0; s < S && N > 0; s++) {
        double mean = 0;
        for (ptrdiff_t i = 0; i < chunks; i++) mean += P[i * S + s];
        fractions[s] /= (real)(N * k);
        sum += (double)fractions[s] * mean / (double)N;
    }
    *loss = (real)((double)S * sum);
    pm_block_put(P);
    return 0;
}

static void FN(balance_bwd_item)(void *ctx, ptrdiff_t chunk)
{
    const struct FN(tokens) *c = ctx;
    const ptrdiff_t at = chunk * PM_CHUNK * c->S;
    K->balance_bwd(FN(chunk_rows)(c->N, chunk), c->S, c->logits + at, c->slope, c->dlogits + at);
}

int FN(pm_balance_loss_bwd)(ptrdiff_t N, ptrdiff_t S, const real *dloss, const real *logits,
                            const real *fractions, real *dlogits)
{
    real *slope = pm_block_get(sizeof(real) * S);
    if (!slope) return -1;
    for (ptrdiff_t s = 0; s < S; s++) slope[s] = *dloss * (real)S * fractions[s] / (real)N;
    struct FN(tokens) c = { .N = N, .S = S, .logits = logits, .slope = slope, .dlogits = dlogits };
    pm_parallel(FN(chunks)(N), 24.0 * N * S, FN(balance_bwd_item), &c);
    pm_block_put(slope);
    return 0;
}
#endif
