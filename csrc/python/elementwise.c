/* elementwise.c -- bindings of ops/elementwise.c. Arrays are flat: polymoe/functional knows their shape. */
#include "python.h"
#define DECLARE(real, DT)                                                                                  \
    void pm_add_##DT(ptrdiff_t n, const real *a, const real *b, real *y);                                  \
    void pm_multiply_##DT(ptrdiff_t n, const real *a, const real *b, real *y);                             \
    void pm_scale_by_fwd_##DT(ptrdiff_t n, const real *x, const real *log_scale, real *y);                 \
    int pm_scale_by_bwd_##DT(ptrdiff_t n, const real *dy, const real *x, const real *log_scale, real *dx,  \
                             real *dlog_scale);                                                            \
    int pm_multiply_rows_fwd_##DT(ptrdiff_t N, ptrdiff_t D, ptrdiff_t B, ptrdiff_t G, const real *x,       \
                                  const real *rows, const int64_t *adapter_ids, const int64_t *cu_seqlens, \
                                  real *y);                                                                \
    int pm_multiply_rows_bwd_##DT(ptrdiff_t N, ptrdiff_t D, ptrdiff_t B, ptrdiff_t G, const real *dy,      \
                                  const real *x, const int64_t *adapter_ids, const int64_t *cu_seqlens,    \
                                  real *drows);                                                            \
    void pm_relu_fwd_##DT(ptrdiff_t n, const real *x, real *y);                                            \
    void pm_relu_bwd_##DT(ptrdiff_t n, const real *y, const real *dy, real *dx);                           \
    void pm_silu_fwd_##DT(ptrdiff_t n, const real *x, real *y);                                            \
    void pm_silu_bwd_##DT(ptrdiff_t n, const real *x, const real *dy, real *dx);                           \
    void pm_gelu_fwd_##DT(ptrdiff_t n, int tanh_form, const real *x, real *y);                             \
    void pm_gelu_bwd_##DT(ptrdiff_t n, int tanh_form, const real *x, const real *dy, real *dx);
DECLARE(float, f32)
DECLARE(double, f64)

static PyObject *py_add(PyObject *Py_UNUSED(m), PyObject *const *args, Py_ssize_t nargs)
{
    if (pm_nargs(nargs, 3, "add")) return NULL;
    ptrdiff_t n = -1;
    const int t = pm_real(args[0], "a");
    const void *a = pm_in(args[0], "a", t, 1, &n), *b = pm_in(args[1], "b", t, 1, &n);
    void *y = pm_out(args[2], "y", t, 1, &n);
    if (PyErr_Occurred()) return NULL;
    PM_CALL(t, pm_add, n, a, b, y);
    Py_RETURN_NONE;
}

static PyObject *py_multiply(PyObject *Py_UNUSED(m), PyObject *const *args, Py_ssize_t nargs)
{
    if (pm_nargs(nargs, 3, "multiply")) return NULL;
    ptrdiff_t n = -1;
    const int t = pm_real(args[0], "a");
    const void *a = pm_in(args[0], "a", t, 1, &n), *b = pm_in(args[1], "b", t, 1, &n);
    void *y = pm_out(args[2], "y", t, 1, &n);
    if (PyErr_Occurred()) return NULL;
    PM_CALL(t, pm_multiply, n, a, b, y);
    Py_RETURN_NONE;
}

struct grouping {
    ptrdiff_t B;
    const int64_t *adapter_ids, *cu_seqlens;
};

/* args: adapter_ids (None: group 0 for all), cu_seqlens (None: one example). Python's error is set when something is wrong. */
static struct grouping read_grouping(PyObject *const *args, ptrdiff_t N, ptrdiff_t G)
{
    struct grouping g = { .B = -1 };
    ptrdiff_t offsets = -1;
    g.adapter_ids = pm_in_or_none(args[0], "adapter_ids", NPY_INT64, 1, &g.B);
    g.cu_seqlens = pm_in_or_none(args[1], "cu_seqlens", NPY_INT64, 1, &offsets);
    pm_check_groups(g.adapter_ids, &g.B, g.cu_seqlens, offsets, N, G);
    if (!PyErr_Occurred() && !g.adapter_ids && G != 1)
        PyErr_Format(PyExc_ValueError,
                     "adapter_ids: expected a group for every example (b has %zd rows), got None",
                     (Py_ssize_t)G);
    return g;
}

static PyObject *py_multiply_rows_fwd(PyObject *Py_UNUSED(m), PyObject *const *args, Py_ssize_t nargs)
{
    if (pm_nargs(nargs, 5, "multiply_rows_fwd")) return NULL;
    ptrdiff_t N = -1, D = -1, G = -1;
    const int t = pm_real(args[0], "a");
    const void *x = pm_in(args[0], "a", t, 2, &N, &D), *rows = pm_in(args[1], "b", t, 2, &G, &D);
    const struct grouping g = read_grouping(args + 2, N, G);
    void *y = pm_out(args[4], "y", t, 2, &N, &D);
    if (PyErr_Occurred()) return NULL;
    int failed;
    PM_TRY(failed, t, pm_multiply_rows_fwd, N, D, g.B, G, x, rows, g.adapter_ids, g.cu_seqlens, y);
    if (failed) return PyErr_NoMemory();
    Py_RETURN_NONE;
}

static PyObject *py_multiply_rows_bwd(PyObject *Py_UNUSED(m), PyObject *const *args, Py_ssize_t nargs)
{
    if (pm_nargs(nargs, 5, "multiply_rows_bwd")) return NULL;
    ptrdiff_t N = -1, D = -1, G = -1;
    const int t = pm_real(args[1], "a");
    const void *x = pm_in(args[1], "a", t, 2, &N, &D), *dy = pm_in(args[0], "dy", t, 2, &N, &D);
    void *drows = pm_out(args[4], "db", t, 2, &G, &D);
    const struct grouping g = read_grouping(args + 2, N, G);
    if (PyErr_Occurred()) return NULL;
    int failed;
    PM_TRY(failed, t, pm_multiply_rows_bwd, N, D, g.B, G, dy, x, g.adapter_ids, g.cu_seqlens, drows);
    if (failed) return PyErr_NoMemory();
    Py_RETURN_NONE;
}

static PyObject *py_relu_fwd(PyObject *Py_UNUSED(m), PyObject *const *args, Py_ssize_t nargs)
{
    if (pm_nargs(nargs, 2, "relu_fwd")) return NULL;
    ptrdiff_t n = -1;
    const int t = pm_real(args[0], "x");
    const void *x = pm_in(args[0], "x", t, 1, &n);
    void *y = pm_out(args[1], "y", t, 1, &n);
    if (PyErr_Occurred()) return NULL;
    PM_CALL(t, pm_relu_fwd, n, x, y);
    Py_RETURN_NONE;
}

static PyObject *py_relu_bwd(PyObject *Py_UNUSED(m), PyObject *const *args, Py_ssize_t nargs)
{
    if (pm_nargs(nargs, 3, "relu_bwd")) return NULL;
    ptrdiff_t n = -1;
    const int t = pm_real(args[0], "y");
    const void *y = pm_in(args[0], "y", t, 1, &n), *dy = pm_in(args[1], "dy", t, 1, &n);
    void *dx = pm_out(args[2], "dx", t, 1, &n);
    if (PyErr_Occurred()) return NULL;
    PM_CALL(t, pm_relu_bwd, n, y, dy, dx);
    Py_RETURN_NONE;
}

static PyObject *py_silu_fwd(PyObject *Py_UNUSED(m), PyObject *const *args, Py_ssize_t nargs)
{
    if (pm_nargs(nargs, 2, "silu_fwd")) return NULL;
    ptrdiff_t n = -1;
    const int t = pm_real(args[0], "x");
    const void *x = pm_in(args[0], "x", t, 1, &n);
    void *y = pm_out(args[1], "y", t, 1, &n);
    if (PyErr_Occurred()) return NULL;
    PM_CALL(t, pm_silu_fwd, n, x, y);
    Py_RETURN_NONE;
}

static PyObject *py_silu_bwd(PyObject *Py_UNUSED(m), PyObject *const *args, Py_ssize_t nargs)
{
    if (pm_nargs(nargs, 3, "silu_bwd")) return NULL;
    ptrdiff_t n = -1;
    const int t = pm_real(args[0], "x");
    const void *x = pm_in(args[0], "x", t, 1, &n), *dy = pm_in(args[1], "dy", t, 1, &n);
    void *dx = pm_out(args[2], "dx", t, 1, &n);
    if (PyErr_Occurred()) return NULL;
    PM_CALL(t, pm_silu_bwd, n, x, dy, dx);
    Py_RETURN_NONE;
}

static PyObject *py_scale_by_fwd(PyObject *Py_UNUSED(m), PyObject *const *args, Py_ssize_t nargs)
{
    if (pm_nargs(nargs, 3, "scale_by_fwd")) return NULL;
    ptrdiff_t n = -1, one = 1;
    const int t = pm_real(args[0], "x");
    const void *x = pm_in(args[0], "x", t, 1, &n), *log_scale = pm_in(args[1], "log_scale", t, 1, &one);
    void *y = pm_out(args[2], "y", t, 1, &n);
    if (PyErr_Occurred()) return NULL;
    PM_CALL(t, pm_scale_by_fwd, n, x, log_scale, y);
    Py_RETURN_NONE;
}

static PyObject *py_scale_by_bwd(PyObject *Py_UNUSED(m), PyObject *const *args, Py_ssize_t nargs)
{
    if (pm_nargs(nargs, 5, "scale_by_bwd")) return NULL;
    ptrdiff_t n = -1, one = 1;
    const int t = pm_real(args[0], "dy");
    const void *dy = pm_in(args[0], "dy", t, 1, &n), *x = pm_in(args[1], "x", t, 1, &n);
    const void *log_scale = pm_in(args[2], "log_scale", t, 1, &one);
    void *dx = pm_out(args[3], "dx", t, 1, &n), *dlog_scale = pm_out(args[4], "dlog_scale", t, 1, &one);
    if (PyErr_Occurred()) return NULL;
    int failed;
    PM_TRY(failed, t, pm_scale_by_bwd, n, dy, x, log_scale, dx, dlog_scale);
    if (failed) return PyErr_NoMemory();
    Py_RETURN_NONE;
}

static PyObject *py_gelu_fwd(PyObject *Py_UNUSED(m), PyObject *const *args, Py_ssize_t nargs)
{
    if (pm_nargs(nargs, 3, "gelu_fwd")) return NULL;
    ptrdiff_t n = -1;
    const int t = pm_real(args[1], "x"), tanh_form = (int)pm_int(args[0], "tanh_form");
    const void *x = pm_in(args[1], "x", t, 1, &n);
    void *y = pm_out(args[2], "y", t, 1, &n);
    if (PyErr_Occurred()) return NULL;
    PM_CALL(t, pm_gelu_fwd, n, tanh_form, x, y);
    Py_RETURN_NONE;
}

static PyObject *py_gelu_bwd(PyObject *Py_UNUSED(m), PyObject *const *args, Py_ssize_t nargs)
{
    if (pm_nargs(nargs, 4, "gelu_bwd")) return NULL;
    ptrdiff_t n = -1;
    const int t = pm_real(args[1], "x"), tanh_form = (int)pm_int(args[0], "tanh_form");
    const void *x = pm_in(args[1], "x", t, 1, &n), *dy = pm_in(args[2], "dy", t, 1, &n);
    void *dx = pm_out(args[3], "dx", t, 1, &n);
    if (PyErr_Occurred()) return NULL;
    PM_CALL(t, pm_gelu_bwd, n, tanh_form, x, dy, dx);
    Py_RETURN_NONE;
}

PyMethodDef pm_methods_elementwise[] = {
    PM_METHOD(add, "add(a, b, y, /)\n--\n\ny = a + b"),
    PM_METHOD(multiply, "multiply(a, b, y, /)\n--\n\ny = a * b"),
    PM_METHOD(multiply_rows_fwd,
              "multiply_rows_fwd(a, b, adapter_ids, cu_seqlens, y, /)\n--\n\ny[n] = a[n] * b[group of n]"),
    PM_METHOD(multiply_rows_bwd, "multiply_rows_bwd(dy, a, adapter_ids, cu_seqlens, db, /)\n--\n\nGradient "
                                 "of the rows of multiply_rows_fwd."),
    PM_METHOD(relu_fwd, "relu_fwd(x, y, /)\n--\n\ny = max(x, 0)"),
    PM_METHOD(relu_bwd, "relu_bwd(y, dy, dx, /)\n--\n\nGradient of relu_fwd."),
    PM_METHOD(scale_by_fwd, "scale_by_fwd(x, log_scale, y, /)\n--\n\ny = x exp(log_scale)"),
    PM_METHOD(scale_by_bwd,
              "scale_by_bwd(dy, x, log_scale, dx, dlog_scale, /)\n--\n\nGradients of scale_by_fwd."),
    PM_METHOD(gelu_fwd, "gelu_fwd(tanh_form, x, y, /)\n--\n\ny = x Phi(x), or its tanh approximation"),
    PM_METHOD(gelu_bwd, "gelu_bwd(tanh_form, x, dy, dx, /)\n--\n\nGradient of gelu_fwd."),
    PM_METHOD(silu_fwd, "silu_fwd(x, y, /)\n--\n\ny = x sigmoid(x)"),
    PM_METHOD(silu_bwd, "silu_bwd(x, dy, dx, /)\n--\n\nGradient of silu_fwd."),
    { NULL, NULL, 0, NULL },
};
