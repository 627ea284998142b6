/* elementwise.c -- bindings of ops/elementwise.c. Arrays are flat: polymoe/functional knows their shape. */
#include "python.h"
#define DECLARE(real, DT)                                                                                 \
    void pm_add_##DT(ptrdiff_t n, const real *a, const real *b, real *y);                                 \
    void pm_multiply_##DT(ptrdiff_t n, const real *a, const real *b, real *y);                            \
    void pm_scale_by_fwd_##DT(ptrdiff_t n, const real *x, const real *log_scale, real *y);                \
    int pm_scale_by_bwd_##DT(ptrdiff_t n, const real *dy, const real *x, const real *log_scale, real *dx, \
                             real *dlog_scale);                                                           \
    void pm_gelu_fwd_##DT(ptrdiff_t n, int tanh_form, const real *x, real *y);                            \
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
    PM_METHOD(scale_by_fwd, "scale_by_fwd(x, log_scale, y, /)\n--\n\ny = x exp(log_scale)"),
    PM_METHOD(scale_by_bwd,
              "scale_by_bwd(dy, x, log_scale, dx, dlog_scale, /)\n--\n\nGradients of scale_by_fwd."),
    PM_METHOD(gelu_fwd, "gelu_fwd(tanh_form, x, y, /)\n--\n\ny = x Phi(x), or its tanh approximation"),
    PM_METHOD(gelu_bwd, "gelu_bwd(tanh_form, x, dy, dx, /)\n--\n\nGradient of gelu_fwd."),
    { NULL, NULL, 0, NULL },
};
