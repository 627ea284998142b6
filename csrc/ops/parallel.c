/* parallel.c -- the one place that knows OpenMP. */
#define _GNU_SOURCE
#include "ops.h"
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#if defined(__linux__)
#include <sched.h>
#endif
#if defined(_OPENMP)
#include <omp.h>
#endif

#define SERIAL_BELOW 2e6    /* work of about 10 us on one core; waking a team costs as much */

#if defined(_OPENMP)
static atomic_int threads;         /* 0: not decided yet */
static atomic_int ran_parallel;
static atomic_int
    forked;          /* a forked child of a process that ran OpenMP stays on one thread (gcc bug 60035) */

static void in_child(void) { atomic_store(&forked, 1); }

/* CPUs granted by the cgroup's quota, rounded up; a large number when there is none. */
static int cgroup_cpus(void)
{
    double quota = -1, period = 100000;
    FILE *f = fopen("/sys/fs/cgroup/cpu.max", "r");
    if (f) {
        if (fscanf(f, "%lf %lf", &quota, &period) < 1) quota = -1;    /* "max 100000" */
        fclose(f);
    } else if ((f = fopen("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "r"))) {
        if (fscanf(f, "%lf", &quota) < 1) quota = -1;
        fclose(f);
        if ((f = fopen("/sys/fs/cgroup/cpu/cpu.cfs_period_us", "r"))) {
            if (fscanf(f, "%lf", &period) < 1) period = 100000;
            fclose(f);
        }
    }
    return quota > 0 && period > 0 ? (int)ceil(quota / period) : 1 << 20;
}

static int default_threads(void)
{
    int n = omp_get_max_threads();
    if (getenv("OMP_NUM_THREADS")) return n;    /* said by the user: it wins */
#if defined(__linux__)
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0 && CPU_COUNT(&set) < n) n = CPU_COUNT(&set);
#endif
    const int quota = cgroup_cpus();
    return quota < n ? quota : n;
}

int pm_get_num_threads(void)
{
    if (atomic_load(&forked)) return 1;
    int n = atomic_load(&threads);
    if (n == 0) {
        n = default_threads();
        if (n < 1) n = 1;
        atomic_store(&threads, n);
    }
    return n;
}

void pm_set_num_threads(int n) { atomic_store(&threads, n); }
#else
int pm_get_num_threads(void) { return 1; }
void pm_set_num_threads(int n) { (void)n; }
#endif

const char *pm_openmp(void)
{
#if !defined(_OPENMP)
    return "none";
#elif defined(__clang__)
    return "libomp";
#else
    return "libgomp";
#endif
}

void pm_parallel(ptrdiff_t n_items, double work, pm_item fn, void *ctx)
{
#if defined(_OPENMP)
    int n = pm_get_num_threads();
    if (n > n_items) n = (int)n_items;
    if (n > 1 && work >= SERIAL_BELOW) {
        if (!atomic_exchange(&ran_parallel, 1)) pthread_atfork(NULL, NULL, in_child);
#pragma omp parallel for schedule(dynamic, 1) num_threads(n)
        for (ptrdiff_t i = 0; i < n_items; i++) fn(ctx, i);
        return;
    }
#else
    (void)work;
#endif
    for (ptrdiff_t i = 0; i < n_items; i++) fn(ctx, i);
}
