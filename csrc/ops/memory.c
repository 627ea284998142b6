/* memory.c -- aligned blocks, reused by size class. A block put back is warm: its pages are mapped already. What lies idle
 * is bounded: with what is in use it stays within SLACK times the most that was ever in use at once. */
#include "ops.h"
#include <pthread.h>
#include <stdlib.h>

#define CLASSES 256
#define REUSE \
    3 /* classes: a request takes an idle block of less than twice its size, never one of another kind of array */
#define SLACK 1.25

struct header { /* sits in the 64 bytes before the block */
    struct header *next;
    size_t bytes;
    int class;
};
static struct header *idle[CLASSES];
static size_t idle_bytes, used_bytes, peak_bytes, watched_bytes; /* watched: the most since a restart */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

/* Classes grow by a quarter of a power of two, so that packed batches of slightly different length share blocks. */
static int size_class(size_t bytes, size_t *rounded)
{
    size_t step = 1024;
    int class = 0;
    for (size_t base = 4096;; base *= 2, step *= 2)
        for (int quarter = 0; quarter < 4; quarter++, class ++)
            if (bytes <= base + quarter * step) {
                *rounded = base + quarter * step;
                return class;
            }
}

static struct header *take_idle(int class)
{
    struct header *h = idle[class];
    if (h) {
        idle[class] = h->next;
        idle_bytes -= h->bytes;
    }
    return h;
}

/* Free idle blocks until at most `keep` bytes of them are left, small ones first: they cost least to map again. */
static size_t shrink(size_t keep)
{
    size_t freed = 0;
    for (int c = 0; c < CLASSES && idle_bytes > keep; c++)
        while (idle_bytes > keep && idle[c]) {
            struct header *h = take_idle(c);
            freed += h->bytes;
            free(h);
        }
    return freed;
}

void *pm_block_get(size_t bytes)
{
    size_t rounded;
    if (bytes > PTRDIFF_MAX / 2) return NULL;
    const int class = size_class(bytes, &rounded);
    struct header *h = NULL;
    pthread_mutex_lock(&lock);
    for (int c = class; !h && c <= class + REUSE && c < CLASSES; c++) h = take_idle(c);
    if (!h) {
        const size_t size = rounded + PM_ALIGN, needed = used_bytes + size;
        const size_t allowed = (size_t)(SLACK * (needed > peak_bytes ? needed : peak_bytes));
        shrink(allowed - needed);
        h = aligned_alloc(PM_ALIGN, size);
        if (!h && shrink(0) > 0) h = aligned_alloc(PM_ALIGN, size);
        if (h) {
            h->bytes = size;
            h->class = class;
        }
    }
    if (h) {
        used_bytes += h->bytes;
        if (used_bytes > peak_bytes) peak_bytes = used_bytes;
        if (used_bytes > watched_bytes) watched_bytes = used_bytes;
    }
    pthread_mutex_unlock(&lock);
    return h ? (char *)h + PM_ALIGN : NULL;
}

void pm_block_put(void *block)
{
    if (!block) return;
    struct header *h = (struct header *)((char *)block - PM_ALIGN);
    pthread_mutex_lock(&lock);
    h->next = idle[h->class];
    idle[h->class] = h;
    used_bytes -= h->bytes;
    idle_bytes += h->bytes;
    pthread_mutex_unlock(&lock);
}

size_t pm_block_release(void)
{
    pthread_mutex_lock(&lock);
    const size_t freed = shrink(0);
    pthread_mutex_unlock(&lock);
    return freed;
}

void pm_block_usage(int restart, size_t *used, size_t *most)
{
    pthread_mutex_lock(&lock);
    if (restart) watched_bytes = used_bytes;
    *used = used_bytes;
    *most = watched_bytes;
    pthread_mutex_unlock(&lock);
}
