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
static atomic_int everywhere; /* 0: the default */
static _Thread_local int here; /* of the calling thread; 0: as everywhere */
static atomic_int granted; /* by affinity and quota; 0: not asked yet */
static atomic_int ran_parallel;
static atomic_int
    forked; /* a forked child of a process that ran OpenMP stays on one thread (gcc bug 60035) */

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

static int granted_cpus(void)
{
    int n = atomic_load(&granted);
    if (n) return n;
    n = cgroup_cpus();
#if defined(__linux__)
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0 && CPU_COUNT(&set) < n) n = CPU_COUNT(&set);
#endif
    if (getenv("OMP_NUM_THREADS")) n = 1 << 20;    /* said by the user: it wins */
    atomic_store(&granted, n);
    return n;
}

/* OpenMP's own limit belongs to the calling thread, and is asked each time: threadpoolctl and others set it. */
int pm_get_num_threads(void)
{
    if (atomic_load(&forked)) return 1;
    if (here) return here;
    const int set = atomic_load(&everywhere);
    if (set) return set;
    const int most = omp_get_max_threads(), n = granted_cpus() < most ? granted_cpus() : most;
    return n < 1 ? 1 : n;
}

void pm_set_num_threads(int n) { atomic_store(&everywhere, n); }

int pm_set_num_threads_here(int n)
{
    const int before = here;
    here = n;
    return before;
}

/* Once: a child after a fork computes on one thread, and may wonder why it is slow. */
static void warn_of_fork(void)
{
    static atomic_int told;
    if (atomic_load(&forked) && !atomic_exchange(&told, 1))
        fputs("polymoe: expected a process of its own, got one forked after OpenMP ran: it computes on one "
              "thread\n"
              "(multiprocessing: use the start method spawn or forkserver)\n",
              stderr);
}
#else
int pm_get_num_threads(void) { return 1; }
void pm_set_num_threads(int n) { (void)n; }
int pm_set_num_threads_here(int n) { return (void)n, 0; }
static void warn_of_fork(void) {}
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
#endif
    if (n_items > 1 && work >= SERIAL_BELOW) warn_of_fork();
    for (ptrdiff_t i = 0; i < n_items; i++) fn(ctx, i);
}
