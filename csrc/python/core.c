/* core.c -- the extension module polymoe._core: which instruction set, how many threads, aligned arrays, all methods. */
#define PM_IMPORT_ARRAY
#include "python.h"

const struct pm_kernels_f32 *pm_f32;
const struct pm_kernels_f64 *pm_f64;

/* Best first. */
static const struct pm_isa *const isas[] = {
#if defined(__x86_64__)
    &pm_isa_avx512bf16,
    &pm_isa_avx512,
    &pm_isa_avx2,
#elif defined(__aarch64__)
    &pm_isa_neon,
#endif
    &pm_isa_base,
};
#define N_ISAS ((int)(sizeof isas / sizeof isas[0]))
static const struct pm_isa *current;

static PyObject *py_isas(PyObject *Py_UNUSED(m), PyObject *const *Py_UNUSED(args), Py_ssize_t nargs)
{
    if (pm_nargs(nargs, 0, "isas")) return NULL;
    PyObject *names = PyList_New(0);
    for (int i = 0; i < N_ISAS && names; i++)
        if (isas[i]->supported()) {
            PyObject *name = PyUnicode_FromString(isas[i]->name);
            if (!name || PyList_Append(names, name)) Py_CLEAR(names);
            Py_XDECREF(name);
        }
    return names;
}

/* Choose by name; NULL means the best. -1 with `error` set when there is no such one here. */
static int choose_isa(const char *name, const char *what, PyObject *error)
{
    for (int i = 0; i < N_ISAS; i++)
        if (isas[i]->supported() && (!name || strcmp(name, isas[i]->name) == 0)) {
            current = isas[i];
            pm_f32 = current->f32;
            pm_f64 = pm_isa_base.f64;
            return 0;
        }
    PyObject *names = py_isas(NULL, NULL, 0);
    if (names) PyErr_Format(error, "%s: expected one of %S, got '%s'", what, names, name);
    Py_XDECREF(names);
    return -1;
}

static PyObject *py_get_isa(PyObject *Py_UNUSED(m), PyObject *const *Py_UNUSED(args), Py_ssize_t nargs)
{
    if (pm_nargs(nargs, 0, "get_isa")) return NULL;
    return PyUnicode_FromString(current->name);
}

static PyObject *py_set_isa(PyObject *Py_UNUSED(m), PyObject *const *args, Py_ssize_t nargs)
{
    if (pm_nargs(nargs, 1, "set_isa")) return NULL;
    const char *name = PyUnicode_AsUTF8(args[0]);
    if (!name || choose_isa(name, "isa", PyExc_ValueError)) return NULL;
    Py_RETURN_NONE;
}

static PyObject *py_get_num_threads(PyObject *Py_UNUSED(m), PyObject *const *Py_UNUSED(args),
                                    Py_ssize_t nargs)
{
    if (pm_nargs(nargs, 0, "get_num_threads")) return NULL;
    return PyLong_FromLong(pm_get_num_threads());
}

static PyObject *py_set_num_threads(PyObject *Py_UNUSED(m), PyObject *const *args, Py_ssize_t nargs)
{
    if (pm_nargs(nargs, 1, "set_num_threads")) return NULL;
    const ptrdiff_t n = pm_int(args[0], "n");
    if (PyErr_Occurred()) return NULL;
    if (n < 0 || n > 4096)
        return PyErr_Format(PyExc_ValueError, "n: expected 0 (the default) to 4096, got %zd", (Py_ssize_t)n);
    pm_set_num_threads((int)n);
    Py_RETURN_NONE;
}

static PyObject *py_set_num_threads_here(PyObject *Py_UNUSED(m), PyObject *const *args, Py_ssize_t nargs)
{
    if (pm_nargs(nargs, 1, "set_num_threads_here")) return NULL;
    const ptrdiff_t n = pm_int(args[0], "n");
    if (PyErr_Occurred()) return NULL;
    if (n < 0 || n > 4096)
        return PyErr_Format(PyExc_ValueError, "n: expected 0 (as elsewhere) to 4096, got %zd", (Py_ssize_t)n);
    return PyLong_FromLong(pm_set_num_threads_here((int)n));
}

static PyObject *py_openmp(PyObject *Py_UNUSED(m), PyObject *const *Py_UNUSED(args), Py_ssize_t nargs)
{
    if (pm_nargs(nargs, 0, "openmp")) return NULL;
    return PyUnicode_FromString(pm_openmp());
}

static void put_block(PyObject *capsule) { pm_block_put(PyCapsule_GetPointer(capsule, "polymoe.block")); }

static PyObject *py_empty(PyObject *Py_UNUSED(m), PyObject *const *args, Py_ssize_t nargs)
{
    if (pm_nargs(nargs, 2, "empty")) return NULL;
    PyArray_Descr *descr = NULL;
    PyArray_Dims shape = { NULL, 0 };
    if (!PyArray_DescrConverter(args[1], &descr)) return NULL;
    if (!PyArray_IntpConverter(args[0], &shape)) {
        Py_DECREF(descr);
        return NULL;
    }
    size_t bytes = (size_t)PyDataType_ELSIZE(descr);
    int bad = PyDataType_REFCHK(descr);
    for (int i = 0; i < shape.len; i++)
        bad |= shape.ptr[i] < 0 || __builtin_mul_overflow(bytes, (size_t)shape.ptr[i], &bytes);
    PyObject *array = NULL;
    if (bad) {
        PyErr_SetString(PyExc_ValueError,
                        "shape: expected non-negative extents that fit in memory, and a plain dtype");
        Py_DECREF(descr);
    } else {
        void *block = pm_block_get(bytes);
        PyObject *owner = block ? PyCapsule_New(block, "polymoe.block", put_block) : PyErr_NoMemory();
        if (!owner) {
            pm_block_put(block);
            Py_DECREF(descr);
        } else {
            array = PyArray_NewFromDescr(&PyArray_Type, descr, shape.len, shape.ptr, NULL, block,
                                         NPY_ARRAY_CARRAY, NULL);
            if (!array) Py_DECREF(owner);
            else if (PyArray_SetBaseObject((PyArrayObject *)array, owner)) Py_CLEAR(array);
        }
    }
    PyDimMem_FREE(shape.ptr);
    return array;
}

static PyObject *py_memory_used(PyObject *Py_UNUSED(m), PyObject *const *args, Py_ssize_t nargs)
{
    if (pm_nargs(nargs, 1, "memory_used")) return NULL;
    const int restart = PyObject_IsTrue(args[0]);
    if (restart < 0) return NULL;
    size_t used, most;
    pm_block_usage(restart, &used, &most);
    return Py_BuildValue("nn", (Py_ssize_t)used, (Py_ssize_t)most);
}

static PyObject *py_release_memory(PyObject *Py_UNUSED(m), PyObject *const *Py_UNUSED(args), Py_ssize_t nargs)
{
    if (pm_nargs(nargs, 0, "release_memory")) return NULL;
    return PyLong_FromSize_t(pm_block_release());
}

PyMethodDef pm_methods_runtime[] = {
    PM_METHOD(isas, "isas()\n--\n\nInstruction sets this machine can run, best first."),
    PM_METHOD(get_isa, "get_isa()\n--\n\nThe instruction set in use."),
    PM_METHOD(set_isa, "set_isa(name, /)\n--\n\nUse this instruction set from now on."),
    PM_METHOD(get_num_threads, "get_num_threads()\n--\n\nThreads that an operation may use."),
    PM_METHOD(set_num_threads_here,
              "set_num_threads_here(n, /)\n--\n\nLimit the threads of calls from this thread; 0: "
              "as elsewhere. Returns what it was."),
    PM_METHOD(set_num_threads, "set_num_threads(n, /)\n--\n\nLimit the threads; 0 means the default."),
    PM_METHOD(openmp, "openmp()\n--\n\nThe OpenMP runtime: 'libgomp', 'libomp' or 'none'."),
    PM_METHOD(empty, "empty(shape, dtype, /)\n--\n\nAn uninitialised, 64-byte aligned array whose memory is "
                     "reused once it is freed."),
    PM_METHOD(memory_used, "memory_used(restart, /)\n--\n\nBytes in use, and the most since a restart."),
    PM_METHOD(release_memory, "release_memory()\n--\n\nFree the memory kept for reuse; returns its bytes."),
    { NULL, NULL, 0, NULL },
};

static int core_exec(PyObject *module)
{
    PyMethodDef *const tables[] = { pm_methods_runtime,     pm_methods_dense,  pm_methods_linear,
                                    pm_methods_elementwise, pm_methods_norm,   pm_methods_attention,
                                    pm_methods_gather,      pm_methods_loss,   pm_methods_route,
                                    pm_methods_adam,        pm_methods_random, pm_methods_mix,
                                    pm_methods_tensor,      pm_methods_prior,  pm_methods_pool,
                                    pm_methods_moe,         pm_methods_rope,   pm_methods_expert_dense };
    for (size_t i = 0; i < sizeof tables / sizeof tables[0]; i++)
        if (PyModule_AddFunctions(module, tables[i])) return -1;
    const char *name = getenv("POLYMOE_ISA");
    return choose_isa(name && *name ? name : NULL, "POLYMOE_ISA", PyExc_ImportError);
}

static PyModuleDef_Slot slots[] = { { Py_mod_exec, core_exec }, { 0, NULL } };
static struct PyModuleDef core = {
    PyModuleDef_HEAD_INIT, "polymoe._core", "Kernels of polymoe.", 0, NULL, slots, NULL, NULL, NULL
};

PyMODINIT_FUNC PyInit__core(void)
{
    import_array();
    return PyModuleDef_Init(&core);
}
