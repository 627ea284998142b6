/* rope.c -- binding of ops/rope.c. */
#include "python.h"
#define DECLARE(real, DT)                                                                                   \
    void pm_rope_##DT(ptrdiff_t N, ptrdiff_t H, ptrdiff_t d, const int64_t *positions, const real *cosines, \
                      const real *sines, int back, const real *x, real *y);
DECLARE(float, f32)
DECLARE(double, f64)

static PyObject *py_rope(PyObject *Py_UNUSED(m), PyObject *const *args, Py_ssize_t nargs)
{
    if (pm_nargs(nargs, 6, "rope")) return NULL;
    ptrdiff_t N = -1, D = -1, P = -1, half = -1;
    const int t = pm_real(args[0], "x");
    const void *x = pm_in(args[0], "x", t, 2, &N, &D), *cosines = pm_in(args[1], "cos", t, 2, &P, &half),
               *sines = pm_in(args[2], "sin", t, 2, &P, &half);
    const int64_t *positions = pm_in(args[3], "positions", NPY_INT64, 1, &N);
    pm_check_index(positions, N, P, "positions");
    const int back = pm_int(args[4], "back") != 0;
    void *y = pm_out(args[5], "y", t, 2, &N, &D);
    if (PyErr_Occurred()) return NULL;
    if (half < 1 || D % (2 * half))
        return PyErr_Format(PyExc_ValueError, "x: expected columns for heads of %zd, got %zd",
                            (Py_ssize_t)(2 * half), (Py_ssize_t)D);
    PM_CALL(t, pm_rope, N, D / (2 * half), 2 * half, positions, cosines, sines, back, x, y);
    Py_RETURN_NONE;
}

PyMethodDef pm_methods_rope[] = {
    PM_METHOD(rope, "rope(x, cos, sin, positions, back, y, /)\n--\n\nTurn the halves of every head by the "
                    "angles of the token's position, or back."),
    { NULL, NULL, 0, NULL },
};
