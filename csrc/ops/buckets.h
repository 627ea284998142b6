/* buckets.h -- tokens by the experts that they use. Every token of group g uses the experts ids[g,:]; groups with equal rows of ids
 * are one class. A product with a whole expert wants many rows at once: tokens of a class are gathered from all over the batch. */
#ifndef PM_BUCKETS_H
#define PM_BUCKETS_H
#include "segments.h"

struct pm_piece { /* at most PM_CHUNK tokens of one class: tokens[0..rows-1] use the experts ids[0..k-1] */
    const ptrdiff_t *tokens;
    const int64_t *ids;
    ptrdiff_t rows;
};
struct
    pm_run { /* at most PM_CHUNK tokens in a row, start..start+rows-1, with one expert as their i-th choice */
    ptrdiff_t start, rows, i;
};
struct pm_buckets {
    int64_t *group; /* [N] of every token */
    ptrdiff_t n_pieces;
    struct pm_piece *pieces; /* all tokens, each once */
    ptrdiff_t *first; /* [S+1] runs of an expert, in the order of tokens; none where it is not used */
    struct pm_run *runs;
    ptrdiff_t *slot; /* [S] the rank of an expert among those that are used */
    ptrdiff_t n_used;
};

/* cu_seqlens NULL: one example; adapter_ids NULL: group 0 for all. -1 when memory is out. */
int pm_buckets_make(struct pm_buckets *b, ptrdiff_t N, ptrdiff_t B, ptrdiff_t G, ptrdiff_t S, ptrdiff_t k,
                    const int64_t *ids, const int64_t *adapter_ids, const int64_t *cu_seqlens);
void pm_buckets_free(struct pm_buckets *b);
#endif
