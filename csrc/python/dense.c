/* dense.c -- bindings of ops/dense.c. */
#include "python.h"
#define DECLARE(real, DT)                                                                                   \
    void pm_pack_##DT(ptrdiff_t O, ptrdiff_t D, const void *weight, int bf16, int transpose, void *panels); \
    void pm_transpose_##DT(ptrdiff_t O, ptrdiff_t D, const void *panels, int bf16, void *out);              \
    void pm_dense_bwd_weight_##DT(ptrdiff_t N, ptrdiff_t D, ptrdiff_t O, const real *dy, const real *x,     \
                                  real *dweight, real *dbias);                                              \
    double pm_peak_##DT(ptrdiff_t n, int bf16);                                                             \
    double pm_read_##DT(ptrdiff_t n, ptrdiff_t times, const real *x);
DECLARE(float, f32)
DECLARE(double, f64)

static PyObject *py_pack(PyObject *Py_UNUSED(m), PyObject *const *args, Py_ssize_t nargs)
{
    if (pm_nargs(nargs, 3, "pack")) return NULL;
    ptrdiff_t O = -1, D = -1;
    const int bf16 = PyArray_Check(args[0]) && PyArray_TYPE((PyArrayObject *)args[0]) == NPY_UINT16,
              type = bf16 ? NPY_UINT16 : pm_real(args[0], "weight"),
              transpose = pm_int(args[1], "transpose") != 0;
    const void *weight =
        transpose ? pm_in(args[0], "weight", type, 2, &D, &O) : pm_in(args[0], "weight", type, 2, &O, &D);
    struct pm_panels p = pm_panels_of(type, O, D);
    void *panels = pm_out(args[2], "panels", type, 3, &p.n, &p.depth, &p.width);
    if (bf16 && transpose && !PyErr_Occurred())
        PyErr_SetString(PyExc_ValueError, "transpose: expected 0 with a weight of bfloat16, got 1");
    if (PyErr_Occurred()) return NULL;
    PM_CALL(bf16 ? NPY_FLOAT32 : type, pm_pack, O, D, weight, bf16, transpose, panels);
    Py_RETURN_NONE;
}

static PyObject *py_transpose(PyObject *Py_UNUSED(m), PyObject *const *args, Py_ssize_t nargs)
{
    if (pm_nargs(nargs, 4, "transpose")) return NULL;
    const ptrdiff_t O = pm_int(args[1], "O"), D = pm_int(args[2], "D");
    const int bf16 = PyArray_Check(args[0]) && PyArray_TYPE((PyArrayObject *)args[0]) == NPY_UINT16,
              type = bf16 ? NPY_UINT16 : pm_real(args[0], "panels");
    struct pm_panels p = pm_panels_of(type, O, D), t = pm_panels_of(type, D, O);
    const void *panels = pm_in(args[0], "panels", type, 3, &p.n, &p.depth, &p.width);
    void *out = pm_out(args[3], "out", type, 3, &t.n, &t.depth, &t.width);
    if (PyErr_Occurred()) return NULL;
    PM_CALL(bf16 ? NPY_FLOAT32 : type, pm_transpose, O, D, panels, bf16, out);
    Py_RETURN_NONE;
}

static PyObject *py_dense_bwd_weight(PyObject *Py_UNUSED(m), PyObject *const *args, Py_ssize_t nargs)
{
    if (pm_nargs(nargs, 4, "dense_bwd_weight")) return NULL;
    ptrdiff_t N = -1, D = -1, O = -1;
    const int type = pm_real(args[1], "x");
    const void *dy = pm_in(args[0], "dy", type, 2, &N, &O), *x = pm_in(args[1], "x", type, 2, &N, &D);
    void *dweight = pm_out_or_none(args[2], "dweight", type, 2, &O, &D),
         *dbias = pm_out_or_none(args[3], "dbias", type, 1, &O);
    if (PyErr_Occurred()) return NULL;
    PM_CALL(type, pm_dense_bwd_weight, N, D, O, dy, x, dweight, dbias);
    Py_RETURN_NONE;
}

static PyObject *py_peak(PyObject *Py_UNUSED(m), PyObject *const *args, Py_ssize_t nargs)
{
    if (pm_nargs(nargs, 2, "peak")) return NULL;
    const ptrdiff_t n = pm_int(args[0], "n");
    const int bf16 = pm_int(args[1], "bf16") != 0;
    double flops;
    if (PyErr_Occurred()) return NULL;
    Py_BEGIN_ALLOW_THREADS flops = pm_peak_f32(n, bf16);
    Py_END_ALLOW_THREADS return PyFloat_FromDouble(flops);
}

static PyObject *py_read(PyObject *Py_UNUSED(m), PyObject *const *args, Py_ssize_t nargs)
{
    if (pm_nargs(nargs, 2, "read")) return NULL;
    ptrdiff_t n = -1;
    const float *x = pm_in(args[0], "x", NPY_FLOAT32, 1, &n);
    const ptrdiff_t times = pm_int(args[1], "times");
    double sum;
    if (PyErr_Occurred()) return NULL;
    Py_BEGIN_ALLOW_THREADS sum = pm_read_f32(n, times, x);
    Py_END_ALLOW_THREADS return PyFloat_FromDouble(sum);
}

PyMethodDef pm_methods_dense[] = {
    PM_METHOD(pack, "pack(weight, transpose, panels, /)\n--\n\nPanels of weight [O,D], or of the transpose "
                    "of weight [D,O]; uint16 is bfloat16, never transposed."),
    PM_METHOD(transpose, "transpose(panels, O, D, out, /)\n--\n\n"
                         "The panels of a weight [O, D] as those of its transpose, out."),
    PM_METHOD(dense_bwd_weight, "dense_bwd_weight(dy, x, dweight, dbias, /)\n--\n\ndweight = dy^T x, dbias = "
                                "the sum of dy over tokens."),
    PM_METHOD(
        peak,
        "peak(n, bf16, /)\n--\n\nDo n rounds of multiply-adds in registers on every thread, bf16: those "
        "of a product with a bfloat16 weight; returns the operations done."),
    PM_METHOD(read,
              "read(x, times, /)\n--\n\nRead x [n], a part on every thread, so many times over; returns "
              "the sum of all that."),
    { NULL, NULL, 0, NULL },
};
