/* gather.c -- bindings of ops/gather.c. */
#include "python.h"
#define DECLARE(real, DT)                                                                                    \
    void pm_embedding_fwd_##DT(ptrdiff_t N, ptrdiff_t D, const int64_t *ids, const real *table, real *y);    \
    void pm_embedding_bwd_##DT(ptrdiff_t N, ptrdiff_t V, ptrdiff_t D, const int64_t *ids, const real *dy,    \
                               real *dtable);                                                                \
    void pm_mean_pool_fwd_##DT(ptrdiff_t B, ptrdiff_t D, const int64_t *cu_seqlens, const real *x, real *y); \
    void pm_mean_pool_bwd_##DT(ptrdiff_t B, ptrdiff_t D, const int64_t *cu_seqlens, const real *dy, real *dx);
DECLARE(float, f32)
DECLARE(double, f64)

static PyObject *py_embedding_fwd(PyObject *Py_UNUSED(m), PyObject *const *args, Py_ssize_t nargs)
{
    if (pm_nargs(nargs, 3, "embedding_fwd")) return NULL;
    ptrdiff_t N = -1, V = -1, D = -1;
    const int t = pm_real(args[1], "table");
    const int64_t *ids = pm_in(args[0], "ids", NPY_INT64, 1, &N);
    const void *table = pm_in(args[1], "table", t, 2, &V, &D);
    void *y = pm_out(args[2], "y", t, 2, &N, &D);
    pm_check_index(ids, N, V, "ids");
    if (PyErr_Occurred()) return NULL;
    PM_CALL(t, pm_embedding_fwd, N, D, ids, table, y);
    Py_RETURN_NONE;
}

static PyObject *py_embedding_bwd(PyObject *Py_UNUSED(m), PyObject *const *args, Py_ssize_t nargs)
{
    if (pm_nargs(nargs, 3, "embedding_bwd")) return NULL;
    ptrdiff_t N = -1, V = -1, D = -1;
    const int t = pm_real(args[1], "dy");
    const int64_t *ids = pm_in(args[0], "ids", NPY_INT64, 1, &N);
    const void *dy = pm_in(args[1], "dy", t, 2, &N, &D);
    void *dtable = pm_out(args[2], "dtable", t, 2, &V, &D);
    pm_check_index(ids, N, V, "ids");
    if (PyErr_Occurred()) return NULL;
    PM_CALL(t, pm_embedding_bwd, N, V, D, ids, dy, dtable);
    Py_RETURN_NONE;
}

static PyObject *py_mean_pool_fwd(PyObject *Py_UNUSED(m), PyObject *const *args, Py_ssize_t nargs)
{
    if (pm_nargs(nargs, 3, "mean_pool_fwd")) return NULL;
    ptrdiff_t N = -1, D = -1, offsets = -1;
    const int t = pm_real(args[0], "x");
    const void *x = pm_in(args[0], "x", t, 2, &N, &D);
    const int64_t *cu_seqlens = pm_in(args[1], "cu_seqlens", NPY_INT64, 1, &offsets);
    ptrdiff_t B = offsets - 1;
    pm_check_cu_seqlens(cu_seqlens, B, N);
    void *y = pm_out(args[2], "y", t, 2, &B, &D);
    if (PyErr_Occurred()) return NULL;
    PM_CALL(t, pm_mean_pool_fwd, B, D, cu_seqlens, x, y);
    Py_RETURN_NONE;
}

static PyObject *py_mean_pool_bwd(PyObject *Py_UNUSED(m), PyObject *const *args, Py_ssize_t nargs)
{
    if (pm_nargs(nargs, 3, "mean_pool_bwd")) return NULL;
    ptrdiff_t N = -1, D = -1, B = -1;
    const int t = pm_real(args[0], "dy");
    const void *dy = pm_in(args[0], "dy", t, 2, &B, &D);
    ptrdiff_t offsets = B + 1;
    const int64_t *cu_seqlens = pm_in(args[1], "cu_seqlens", NPY_INT64, 1, &offsets);
    void *dx = pm_out(args[2], "dx", t, 2, &N, &D);
    pm_check_cu_seqlens(cu_seqlens, B, N);
    if (PyErr_Occurred()) return NULL;
    PM_CALL(t, pm_mean_pool_bwd, B, D, cu_seqlens, dy, dx);
    Py_RETURN_NONE;
}

PyMethodDef pm_methods_gather[] = {
    PM_METHOD(embedding_fwd, "embedding_fwd(ids, table, y, /)\n--\n\ny[n] = table[ids[n]]"),
    PM_METHOD(embedding_bwd, "embedding_bwd(ids, dy, dtable, /)\n--\n\nGradient of embedding_fwd, added in "
                             "the order of the tokens."),
    PM_METHOD(mean_pool_fwd, "mean_pool_fwd(x, cu_seqlens, y, /)\n--\n\nMean of the rows of every example."),
    PM_METHOD(mean_pool_bwd, "mean_pool_bwd(dy, cu_seqlens, dx, /)\n--\n\nGradient of mean_pool_fwd."),
    { NULL, NULL, 0, NULL },
};
