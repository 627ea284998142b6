/* buckets.c -- see buckets.h. */
#include "buckets.h"

/* class[g]: the first group in use that has the same row of ids; -1 for a group without tokens. */
static void find_classes(ptrdiff_t N, ptrdiff_t G, ptrdiff_t k, const int64_t *ids, const int64_t *group,
                         ptrdiff_t *class)
{
    for (ptrdiff_t g = 0; g < G; g++) class[g] = -1;
    for (ptrdiff_t n = 0; n < N; n++) class[group[n]] = group[n];
    for (ptrdiff_t g = 0; g < G; g++)
        for (ptrdiff_t c = 0; class[g] == g && c < g; c++)
            if (class[c] == c && !memcmp(ids + c * k, ids + g * k, sizeof *ids * k)) class[g] = c;
}

/* Pieces of one class are of equal size, so that none is much smaller than the others. */
static void cut_pieces(struct pm_buckets *b, ptrdiff_t n, const ptrdiff_t *tokens, const int64_t *ids)
{
    const ptrdiff_t n_cuts = (n + PM_CHUNK - 1) / PM_CHUNK;
    for (ptrdiff_t cut = 0; cut < n_cuts; cut++) {
        const ptrdiff_t start = n * cut / n_cuts, end = n * (cut + 1) / n_cuts;
        b->pieces[b->n_pieces++] = (struct pm_piece){ tokens + start, ids, end - start };
    }
}

/* Tokens from n on that are one run: those of n's class, up to PM_CHUNK of them. */
static ptrdiff_t run_length(ptrdiff_t N, ptrdiff_t n, const int64_t *group, const ptrdiff_t *class)
{
    ptrdiff_t rows = 1;
    while (rows < PM_CHUNK && n + rows < N && class[group[n + rows]] == class[group[n]]) rows++;
    return rows;
}

/* The runs of every expert, by counting. */
static void sort_runs(struct pm_buckets *b, ptrdiff_t N, ptrdiff_t S, ptrdiff_t k, const int64_t *ids,
                      const ptrdiff_t *class)
{
    memset(b->first, 0, sizeof *b->first * (S + 1));
    for (ptrdiff_t n = 0; n < N; n += run_length(N, n, b->group, class))
        for (ptrdiff_t i = 0; i < k; i++) b->first[ids[b->group[n] * k + i] + 1]++;
    for (ptrdiff_t e = 0; e < S; e++) {
        b->slot[e] = b->n_used;
        b->n_used += b->first[e + 1] > 0;
        b->first[e + 1] += b->first[e];
    }
    for (ptrdiff_t n = 0, rows; n < N; n += rows) {
        rows = run_length(N, n, b->group, class);
        for (ptrdiff_t i = 0; i < k; i++)
            b->runs[b->first[ids[b->group[n] * k + i]]++] = (struct pm_run){ n, rows, i };
    }
    for (ptrdiff_t e = S; e > 0; e--)
        b->first[e] = b->first[e - 1]; /* each had moved to where the next starts */
    b->first[0] = 0;
}

int pm_buckets_make(struct pm_buckets *b, ptrdiff_t N, ptrdiff_t B, ptrdiff_t G, ptrdiff_t S, ptrdiff_t k,
                    const int64_t *ids, const int64_t *adapter_ids, const int64_t *cu_seqlens)
{
    const ptrdiff_t most = N / PM_CHUNK + B; /* pieces; runs of one choice */
    *b = (struct pm_buckets){ 0 };
    b->pieces = pm_block_get(sizeof *b->pieces * most + sizeof *b->runs * most * k +
                             sizeof *b->group * (2 * N + 2 * G + 1 + 2 * S + 1));
    if (!b->pieces) return -1;
    b->runs = (struct pm_run *)(b->pieces + most);
    b->group = (int64_t *)(b->runs + most * k);
    b->first = (ptrdiff_t *)(b->group + N);
    b->slot = b->first + S + 1;
    ptrdiff_t *tokens = b->slot + S, *class = tokens + N, *start = class + G; /* [N] by class, [G], [G+1] */
    pm_token_groups(N, B, cu_seqlens, adapter_ids, b->group);
    find_classes(N, G, k, ids, b->group, class);
    memset(start, 0, sizeof *start * (G + 1));
    for (ptrdiff_t n = 0; n < N; n++) start[class[b->group[n]] + 1]++;
    for (ptrdiff_t c = 0; c < G; c++) {
        cut_pieces(b, start[c + 1], tokens + start[c], ids + c * k);
        start[c + 1] += start[c];
    }
    for (ptrdiff_t n = 0; n < N; n++) tokens[start[class[b->group[n]]]++] = n;
    sort_runs(b, N, S, k, ids, class);
    return 0;
}

void pm_buckets_free(struct pm_buckets *b) { pm_block_put(b->pieces); }
