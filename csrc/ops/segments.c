/* segments.c -- see segments.h. Adjacent examples of one group share segments. */
#include "segments.h"

void pm_token_groups(ptrdiff_t N, ptrdiff_t B, const int64_t *cu_seqlens, const int64_t *adapter_ids,
                     int64_t *ids)
{
    for (ptrdiff_t b = 0; b < B; b++)
        for (ptrdiff_t n = cu_seqlens ? cu_seqlens[b] : 0; n < (cu_seqlens ? cu_seqlens[b + 1] : N); n++)
            ids[n] = adapter_ids ? adapter_ids[b] : 0;
}

/* How often the group changes from token to token. */
static ptrdiff_t turns(ptrdiff_t B, const int64_t *cu_seqlens, const int64_t *adapter_ids)
{
    ptrdiff_t n = 0, last = -1;
    for (ptrdiff_t b = 0; cu_seqlens && adapter_ids && b < B; b++)
        if (cu_seqlens[b + 1] > cu_seqlens[b] && adapter_ids[b] != last) {
            last = adapter_ids[b];
            n++;
        }
    return n;
}

int pm_segments_make(struct pm_segments *s, ptrdiff_t N, ptrdiff_t B, ptrdiff_t G, const int64_t *cu_seqlens,
                     const int64_t *adapter_ids, ptrdiff_t few)
{
    const ptrdiff_t n_turns = few ? turns(B, cu_seqlens, adapter_ids) : 0;
    if (n_turns && N < few * n_turns && n_turns >= 2 * G * ((N + PM_CHUNK - 1) / PM_CHUNK)) {
        int64_t *ids = pm_block_get(sizeof *ids * N);
        if (!ids) return -1;
        pm_token_groups(N, B, cu_seqlens, adapter_ids, ids);
        const int failed = pm_segments_choose(s, N, G, 1, ids);
        pm_block_put(ids);
        return failed;
    }
    const ptrdiff_t n_chunks = (N + PM_CHUNK - 1) / PM_CHUNK, most = B + n_chunks;    /* segments */
    struct {
        ptrdiff_t slot, chunk;
    } *last;                                         /* [G] where a group was seen last */
    const size_t bytes =
        most * sizeof *s->at + G * sizeof *last + (n_chunks + 1 + G + most) * sizeof *s->next;
    s->at = pm_block_get(bytes);
    if (!s->at) return -1;
    last = (void *)(s->at + most);
    s->first = (ptrdiff_t *)(last + G);
    s->next = s->first + n_chunks + 1;
    s->order = s->rows = NULL;
    s->n_chunks = n_chunks;
    s->n_slots = G;
    for (ptrdiff_t g = 0; g < G; g++) {
        last[g].slot = -1;
        s->next[g] = PM_UNUSED;
    }
    ptrdiff_t n = 0;
    for (ptrdiff_t b = 0, t = 0; b < B; b++) {
        const ptrdiff_t end = cu_seqlens ? cu_seqlens[b + 1] : N, group = adapter_ids ? adapter_ids[b] : 0;
        while (t < end) {
            const ptrdiff_t chunk = t / PM_CHUNK, border = (chunk + 1) * PM_CHUNK,
                            stop = end < border ? end : border;
            if (t % PM_CHUNK && s->at[n - 1].group == group) {
                s->at[n - 1].end = stop;
            } else {
                if (t % PM_CHUNK == 0) s->first[chunk] = n;
                const ptrdiff_t seen = last[group].slot;
                const int opens = seen < 0 || last[group].chunk != chunk;
                if (opens) {
                    last[group].slot = seen < 0 ? group : s->n_slots++;
                    last[group].chunk = chunk;
                    if (seen >= 0) s->next[seen] = last[group].slot;
                    s->next[last[group].slot] = -1;
                }
                s->at[n++] = (struct pm_segment){ t, stop, group, last[group].slot, opens };
            }
            t = stop;
        }
    }
    s->first[n_chunks] = n;
    return 0;
}

int pm_segments_choose(struct pm_segments *s, ptrdiff_t N, ptrdiff_t G, ptrdiff_t k, const int64_t *ids)
{
    const ptrdiff_t n_chunks = (N + PM_CHUNK - 1) / PM_CHUNK, most = N * k; /* segments */
    s->at =
        pm_block_get(most * sizeof *s->at + (n_chunks + 1 + G + most + 2 * N * k + 2 * G) * sizeof *s->next);
    if (!s->at) return -1;
    s->first = (ptrdiff_t *)(s->at + most);
    s->next = s->first + n_chunks + 1;
    s->order = s->next + G + most;
    s->rows = s->order + N * k;
    ptrdiff_t *last = s->order + 2 * N * k, *place = last + G,
              n = 0; /* [G] its last slot   [G] where its next choice goes */
    s->n_chunks = n_chunks;
    s->n_slots = G;
    for (ptrdiff_t g = 0; g < G; g++) last[g] = s->next[g] = PM_UNUSED;
    for (ptrdiff_t chunk = 0; chunk < n_chunks; chunk++) {
        const ptrdiff_t start = chunk * PM_CHUNK * k,
                        end = n_chunks - chunk > 1 ? start + PM_CHUNK * k : N * k;
        memset(place, 0, sizeof *place * G);
        for (ptrdiff_t i = start; i < end; i++) place[ids[i]]++;
        for (ptrdiff_t g = 0, at = start; g < G; g++) {
            const ptrdiff_t many = place[g];
            place[g] = at;
            at += many;
        }
        for (ptrdiff_t i = start; i < end; i++) {
            s->rows[place[ids[i]]] = (i - start) / k;
            s->order[place[ids[i]]++] = i;
        }
        s->first[chunk] = n;
        for (ptrdiff_t g = 0, at = start; g < G; g++) {
            if (at == place[g]) continue;
            const ptrdiff_t slot = last[g] < 0 ? g : s->n_slots++;
            if (last[g] >= 0) s->next[last[g]] = slot;
            s->next[slot] = -1;
            last[g] = slot;
            int opens = 1;
            for (ptrdiff_t end = at + 1; end <= place[g]; end++) /* cut, too, where a token chose g twice */
                if (end == place[g] || end - at == PM_CHUNK || s->rows[end] == s->rows[end - 1]) {
                    s->at[n++] = (struct pm_segment){ at, end, g, slot, opens };
                    at = end;
                    opens = 0;
                }
        }
    }
    s->first[n_chunks] = n;
    return 0;
}

void pm_segments_free(struct pm_segments *s) { pm_block_put(s->at); }
