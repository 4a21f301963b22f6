/* From lmd_err to a Python exception: see py_error.h. */
#include "python/py_error.h"

#include <unistd.h>

/* An exception class of this extension. It is found in the module by name, so that lmd_py_raise
 * needs no module's state. */
static PyObject *own_exception(const char *name) {
    PyObject *module = PyImport_ImportModule("lmdeploy_c._C");
    if (!module) return NULL;
    PyObject *type = PyObject_GetAttrString(module, name);
    Py_DECREF(module);
    return type;
}

static PyObject *exception_of(lmd_status code) {
    PyObject *type = PyExc_RuntimeError; /* LMD_BUSY, LMD_CLOSED, LMD_INTERNAL */
    switch (code) {
    case LMD_BAD_FILE: return own_exception("CheckpointError");
    case LMD_UNSUPPORTED: return own_exception("UnsupportedError");
    case LMD_INVALID: type = PyExc_ValueError; break;
    case LMD_NOT_FOUND: type = PyExc_FileNotFoundError; break;
    case LMD_UNKNOWN_ID: type = PyExc_KeyError; break;
    case LMD_NO_MEMORY: type = PyExc_MemoryError; break;
    case LMD_IO: type = PyExc_OSError; break;
    default: break;
    }
    return Py_NewRef(type);
}

PyObject *lmd_py_raise(const lmd_err *err) {
    if (PyErr_Occurred()) return NULL; /* a callback has raised: its exception is the cause */
    PyObject *type = exception_of(err->code);
    if (!type) return NULL;
    /* Messages may quote bytes of a hostile file: they need not be UTF-8. */
    PyObject *message = PyUnicode_DecodeUTF8(err->message, (Py_ssize_t)strlen(err->message),
                                             "backslashreplace");
    if (message) PyErr_SetObject(type, message);
    Py_XDECREF(message);
    Py_DECREF(type);
    return NULL;
}

int lmd_py_check(lmd_status status, const lmd_err *err) {
    if (status == LMD_OK) return 0;
    lmd_py_raise(err);
    return -1;
}

int lmd_py_check_fork(pid_t created_in) {
    if (getpid() == created_in) return 0;
    PyErr_Format(
        PyExc_RuntimeError,
        "this object was created in process %d and cannot be used in its fork %d; create it "
        "after the fork, or start workers with the \"spawn\" method",
        (int)created_in, (int)getpid());
    return -1;
}
