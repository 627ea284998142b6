/* pool.c -- bindings of ops/pool.c. */
#include "python.h"
#define DECLARE(real, DT)                                                                               \
    void pm_attention_pool_fwd_##DT(ptrdiff_t B, ptrdiff_t D, const int64_t *cu_seqlens, const real *x, \
                                    const real *query, double scale, real *y, real *weights);           \
    int pm_attention_pool_bwd_##DT(ptrdiff_t B, ptrdiff_t D, const int64_t *cu_seqlens, const real *dy, \
                                   const real *x, const real *query, const real *weights, double scale, \
                                   real *dx, real *dquery);
DECLARE(float, f32)
DECLARE(double, f64)

static PyObject *py_attention_pool_fwd(PyObject *Py_UNUSED(m), PyObject *const *args, Py_ssize_t nargs)
{
    if (pm_nargs(nargs, 6, "attention_pool_fwd")) return NULL;
    ptrdiff_t N = -1, D = -1, offsets = -1;
    const int t = pm_real(args[0], "x");
    const void *x = pm_in(args[0], "x", t, 2, &N, &D), *query = pm_in(args[1], "query", t, 1, &D);
    const int64_t *cu_seqlens = pm_in(args[2], "cu_seqlens", NPY_INT64, 1, &offsets);
    ptrdiff_t B = offsets - 1;
    pm_check_cu_seqlens(cu_seqlens, B, N);
    const double scale = pm_double(args[3], "scale");
    void *y = pm_out(args[4], "y", t, 2, &B, &D), *weights = pm_out(args[5], "weights", t, 1, &N);
    if (PyErr_Occurred()) return NULL;
    PM_CALL(t, pm_attention_pool_fwd, B, D, cu_seqlens, x, query, scale, y, weights);
    Py_RETURN_NONE;
}

static PyObject *py_attention_pool_bwd(PyObject *Py_UNUSED(m), PyObject *const *args, Py_ssize_t nargs)
{
    if (pm_nargs(nargs, 8, "attention_pool_bwd")) return NULL;
    ptrdiff_t N = -1, D = -1, B = -1;
    const int t = pm_real(args[1], "x");
    const void *dy = pm_in(args[0], "dy", t, 2, &B, &D), *x = pm_in(args[1], "x", t, 2, &N, &D),
               *query = pm_in(args[2], "query", t, 1, &D);
    ptrdiff_t offsets = B + 1;
    const int64_t *cu_seqlens = pm_in(args[3], "cu_seqlens", NPY_INT64, 1, &offsets);
    pm_check_cu_seqlens(cu_seqlens, B, N);
    const void *weights = pm_in(args[4], "weights", t, 1, &N);
    const double scale = pm_double(args[5], "scale");
    void *dx = pm_out(args[6], "dx", t, 2, &N, &D), *dquery = pm_out(args[7], "dquery", t, 1, &D);
    if (PyErr_Occurred()) return NULL;
    int failed;
    PM_TRY(failed, t, pm_attention_pool_bwd, B, D, cu_seqlens, dy, x, query, weights, scale, dx, dquery);
    if (failed) return PyErr_NoMemory();
    Py_RETURN_NONE;
}

PyMethodDef pm_methods_pool[] = {
    PM_METHOD(attention_pool_fwd, "attention_pool_fwd(x, query, cu_seqlens, scale, y, weights, /)\n--\n\n"
                                  "Sum of every example's rows by softmax(scale * x query)."),
    PM_METHOD(attention_pool_bwd,
              "attention_pool_bwd(dy, x, query, cu_seqlens, weights, scale, dx, dquery, /)\n--\n\n"
              "Gradients of attention_pool_fwd."),
    { NULL, NULL, 0, NULL },
};
