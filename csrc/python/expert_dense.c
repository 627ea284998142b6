/* expert_dense.c -- bindings of ops/expert_dense.c. */
#include "python.h"
#include "../ops/expert_dense.h"
#define DECLARE(real, DT)                                                                                   \
    int pm_expert_dense_fwd_##DT(const struct pm_experts *experts, const real *x, real *y);                 \
    int pm_expert_dense_bwd_##DT(const struct pm_experts *experts, const real *dy, const real *x, real *dx, \
                                 real *dweight, real *dbias, real *dweights);
DECLARE(float, f32)
DECLARE(double, f64)

/* A row of ids names no expert twice. */
static void check_distinct(const struct pm_experts *x)
{
    if (PyErr_Occurred()) return;
    for (ptrdiff_t at = 0; at < x->G * x->k; at++)
        for (ptrdiff_t before = at / x->k * x->k; before < at; before++)
            if (x->ids[at] == x->ids[before]) {
                PyErr_Format(PyExc_ValueError,
                             "ids: expected different experts in a row, got %lld twice in row %zd",
                             (long long)x->ids[at], (Py_ssize_t)(at / x->k));
                return;
            }
}

/* args: x, weight, bias, ids, weights, adapter_ids, cu_seqlens. Python's error is set when something is wrong. */
static struct pm_experts read_experts(PyObject *const *args, int type, const void **x)
{
    struct pm_experts t = { .N = -1, .D = -1, .O = -1, .B = -1, .G = -1, .S = -1, .k = -1 };
    ptrdiff_t offsets = -1;
    t.weight = pm_in(args[1], "weight", type, 3, &t.S, &t.O, &t.D);
    t.bias = pm_in_or_none(args[2], "bias", type, 2, &t.S, &t.O);
    t.ids = pm_in(args[3], "ids", NPY_INT64, 2, &t.G, &t.k);
    t.apart = PyArray_Check(args[0]) && PyArray_NDIM((PyArrayObject *)args[0]) == 3;
    *x = t.apart ? pm_in(args[0], "x", type, 3, &t.N, &t.k, &t.D) : pm_in(args[0], "x", type, 2, &t.N, &t.D);
    t.weights = pm_in_or_none(args[4], "weights", type, 2, &t.G, &t.k);
    t.adapter_ids = pm_in_or_none(args[5], "adapter_ids", NPY_INT64, 1, &t.B);
    t.cu_seqlens = pm_in_or_none(args[6], "cu_seqlens", NPY_INT64, 1, &offsets);
    if (PyErr_Occurred()) return t;
    if (t.S < 1 || t.O < 1 || t.D < 1)
        PyErr_Format(PyExc_ValueError, "weight: expected extents of at least 1, got (%zd, %zd, %zd)",
                     (Py_ssize_t)t.S, (Py_ssize_t)t.O, (Py_ssize_t)t.D);
    else if (t.k < 1 || (t.N > 0 && t.G < 1))
        PyErr_Format(PyExc_ValueError, "ids: expected at least one %s, got none",
                     t.k < 1 ? "expert in a row" : "group");
    pm_check_groups(t.adapter_ids, &t.B, t.cu_seqlens, offsets, t.N, t.G);
    pm_check_index(t.ids, t.G * t.k, t.S, "ids");
    check_distinct(&t);
    return t;
}

static PyObject *py_expert_dense_fwd(PyObject *Py_UNUSED(m), PyObject *const *args, Py_ssize_t nargs)
{
    if (pm_nargs(nargs, 8, "expert_dense_fwd")) return NULL;
    const void *x;
    const int type = pm_real(args[0], "x");
    struct pm_experts t = read_experts(args, type, &x);
    void *y = t.weights ? pm_out(args[7], "y", type, 2, &t.N, &t.O)
                        : pm_out(args[7], "y", type, 3, &t.N, &t.k, &t.O);
    if (PyErr_Occurred()) return NULL;
    int failed;
    PM_TRY(failed, type, pm_expert_dense_fwd, &t, x, y);
    if (failed) return PyErr_NoMemory();
    Py_RETURN_NONE;
}

static PyObject *py_expert_dense_bwd(PyObject *Py_UNUSED(m), PyObject *const *args, Py_ssize_t nargs)
{
    if (pm_nargs(nargs, 12, "expert_dense_bwd")) return NULL;
    const void *x;
    const int type = pm_real(args[1], "x");
    struct pm_experts t = read_experts(args + 1, type, &x);
    const void *dy = t.weights ? pm_in(args[0], "dy", type, 2, &t.N, &t.O)
                               : pm_in(args[0], "dy", type, 3, &t.N, &t.k, &t.O);
    void *dx = t.apart ? pm_out_or_none(args[8], "dx", type, 3, &t.N, &t.k, &t.D)
                       : pm_out_or_none(args[8], "dx", type, 2, &t.N, &t.D),
         *dweight = pm_out_or_none(args[9], "dweight", type, 3, &t.S, &t.O, &t.D),
         *dbias = pm_out_or_none(args[10], "dbias", type, 2, &t.S, &t.O),
         *dweights = pm_out_or_none(args[11], "dweights", type, 2, &t.G, &t.k);
    if (PyErr_Occurred()) return NULL;
    if (dweights && !t.weights)
        return PyErr_Format(PyExc_TypeError, "weights: expected a numpy array, got NoneType");
    int failed;
    PM_TRY(failed, type, pm_expert_dense_bwd, &t, dy, x, dx, dweight, dbias, dweights);
    if (failed) return PyErr_NoMemory();
    Py_RETURN_NONE;
}

PyMethodDef pm_methods_expert_dense[] = {
    PM_METHOD(expert_dense_fwd,
              "expert_dense_fwd(x, weight, bias, ids, weights, adapter_ids, cu_seqlens, y, /)\n--\n\n"
              "y[n,i] = x[n(,i)] W_e^T + b_e, e = ids[g,i] of the group of n; with weights [G,K] their sum."),
    PM_METHOD(expert_dense_bwd,
              "expert_dense_bwd(dy, x, weight, bias, ids, weights, adapter_ids, cu_seqlens, dx, dweight, "
              "dbias, dweights, /)\n--\n\nGradients of expert_dense_fwd."),
    { NULL, NULL, 0, NULL },
};
