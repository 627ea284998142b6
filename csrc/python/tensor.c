/* tensor.c -- bindings of ops/tensor.c. */
#include "python.h"
#define DECLARE(real, DT)                                                                               \
    int pm_tensor_product_fwd_##DT(ptrdiff_t order, ptrdiff_t J, ptrdiff_t r, ptrdiff_t m, ptrdiff_t d, \
                                   const real *leaves, double eps, real *out);                          \
    int pm_tensor_product_bwd_##DT(ptrdiff_t order, ptrdiff_t J, ptrdiff_t r, ptrdiff_t m, ptrdiff_t d, \
                                   const real *dout, const real *leaves, double eps, real *dleaves);
DECLARE(float, f32)
DECLARE(double, f64)

/* Whether m^order >= d. */
static int spans(ptrdiff_t m, ptrdiff_t order, ptrdiff_t d)
{
    ptrdiff_t power = 1;
    for (ptrdiff_t i = 0; i < order && power < d; i++)
        if (__builtin_mul_overflow(power, m, &power)) return 1;
    return power >= d;
}

/* m, the smallest with m^order >= d; leaves have order * m columns. */
static ptrdiff_t leaf_of(ptrdiff_t order, ptrdiff_t d, ptrdiff_t columns)
{
    if (PyErr_Occurred()) return -1;
    if (order != 2 && order != 4 && order != 8) {
        PyErr_Format(PyExc_ValueError, "order: expected 2, 4 or 8, got %zd", (Py_ssize_t)order);
        return -1;
    }
    if (d < 1) {
        PyErr_Format(PyExc_ValueError, "d: expected at least 1, got %zd", (Py_ssize_t)d);
        return -1;
    }
    ptrdiff_t m = 1;
    while (!spans(m, order, d)) m++;
    if (columns != order * m)
        PyErr_Format(PyExc_ValueError,
                     "leaves: expected %zd leaves of %zd columns for d = %zd, got %zd columns in all",
                     (Py_ssize_t)order, (Py_ssize_t)m, (Py_ssize_t)d, (Py_ssize_t)columns);
    return m;
}

static PyObject *py_tensor_product_fwd(PyObject *Py_UNUSED(m), PyObject *const *args, Py_ssize_t nargs)
{
    if (pm_nargs(nargs, 4, "tensor_product_fwd")) return NULL;
    ptrdiff_t J = -1, r = -1, columns = -1, d = -1;
    const int t = pm_real(args[0], "leaves");
    const void *leaves = pm_in(args[0], "leaves", t, 3, &J, &r, &columns);
    const ptrdiff_t order = pm_int(args[1], "order");
    const double eps = pm_double(args[2], "eps");
    void *out = pm_out(args[3], "out", t, 3, &J, &r, &d);
    const ptrdiff_t leaf = leaf_of(order, d, columns);
    if (PyErr_Occurred()) return NULL;
    int failed;
    PM_TRY(failed, t, pm_tensor_product_fwd, order, J, r, leaf, d, leaves, eps, out);
    if (failed) return PyErr_NoMemory();
    Py_RETURN_NONE;
}

static PyObject *py_tensor_product_bwd(PyObject *Py_UNUSED(m), PyObject *const *args, Py_ssize_t nargs)
{
    if (pm_nargs(nargs, 5, "tensor_product_bwd")) return NULL;
    ptrdiff_t J = -1, r = -1, columns = -1, d = -1;
    const int t = pm_real(args[1], "leaves");
    const void *leaves = pm_in(args[1], "leaves", t, 3, &J, &r, &columns),
               *dout = pm_in(args[0], "dout", t, 3, &J, &r, &d);
    const ptrdiff_t order = pm_int(args[2], "order");
    const double eps = pm_double(args[3], "eps");
    void *dleaves = pm_out(args[4], "dleaves", t, 3, &J, &r, &columns);
    const ptrdiff_t leaf = leaf_of(order, d, columns);
    if (PyErr_Occurred()) return NULL;
    int failed;
    PM_TRY(failed, t, pm_tensor_product_bwd, order, J, r, leaf, d, dout, leaves, eps, dleaves);
    if (failed) return PyErr_NoMemory();
    Py_RETURN_NONE;
}

PyMethodDef pm_methods_tensor[] = {
    PM_METHOD(tensor_product_fwd,
              "tensor_product_fwd(leaves, order, eps, out, /)\n--\n\nKronecker products of the leaves "
              "of every row, normalised but for the last."),
    PM_METHOD(
        tensor_product_bwd,
        "tensor_product_bwd(dout, leaves, order, eps, dleaves, /)\n--\n\nGradient of tensor_product_fwd."),
    { NULL, NULL, 0, NULL },
};
