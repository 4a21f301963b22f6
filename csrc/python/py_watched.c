/* Watched calls: see py_watched.h. Owns: the waiting thread, which lives as long as the call.
 * It needs no GIL, so that it speaks where the call holds it for ever; and it touches no
 * object. */
#include "python/py_watched.h"

#include <pthread.h>
#include <stdbool.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "python/py_fields.h"

typedef struct watch {
    pthread_mutex_t lock;
    pthread_cond_t ended;
    bool has_ended;
    struct timespec deadline;
    const char *text; /* the caller's, who waits for this thread */
} watch;

static void say(const char *text) {
    size_t n_left = strlen(text);
    while (n_left > 0) {
        const ssize_t n = write(STDERR_FILENO, text, n_left);
        if (n <= 0) return;
        text += n;
        n_left -= (size_t)n;
    }
}

static void *watch_run(void *arg) {
    watch *self = arg;
    bool in_time = true;
    pthread_mutex_lock(&self->lock);
    while (!self->has_ended && in_time)
        in_time = pthread_cond_timedwait(&self->ended, &self->lock, &self->deadline) == 0;
    const bool is_late = !self->has_ended;
    pthread_mutex_unlock(&self->lock);
    if (is_late) say(self->text);
    return NULL;
}

typedef struct watched_args {
    PyObject *function;
    double seconds;
    const char *text;
} watched_args;

static const lmd_py_field watched_fields[] = {
    {"function", lmd_py_object, offsetof(watched_args, function)},
    {"seconds", lmd_py_double, offsetof(watched_args, seconds)},
    {"text", lmd_py_text, offsetof(watched_args, text)},
    {NULL, NULL, 0},
};

static PyObject *call_watched(const watched_args *call) {
    watch self = {.lock = PTHREAD_MUTEX_INITIALIZER, .text = call->text};
    if (!(call->seconds >= 0.0 && call->seconds <= 1e6))
        return PyErr_Format(PyExc_ValueError, "watched takes seconds from 0 to a million");
    self.deadline = lmd_deadline_after((int64_t)(call->seconds * 1e3));
    lmd_cond_init(&self.ended);
    pthread_t thread;
    /* Without a thread the call goes on: it is watched where that can be. */
    const bool is_watched = pthread_create(&thread, NULL, watch_run, &self) == 0;
    PyObject *result = PyObject_CallNoArgs(call->function);
    if (is_watched) {
        pthread_mutex_lock(&self.lock);
        self.has_ended = true;
        pthread_cond_signal(&self.ended);
        pthread_mutex_unlock(&self.lock);
        Py_BEGIN_ALLOW_THREADS
        pthread_join(thread, NULL);
        Py_END_ALLOW_THREADS
    }
    pthread_cond_destroy(&self.ended);
    pthread_mutex_destroy(&self.lock);
    return result;
}

PyObject *lmd_py_watched(PyObject *module, PyObject *args, PyObject *kwargs) {
    static const lmd_py_signature signature = {"watched", 3, 3, watched_fields};
    watched_args call;
    (void)module;
    PyObject *values = lmd_py_read_call(&signature, args, kwargs, &call);
    PyObject *result = values ? call_watched(&call) : NULL;
    Py_XDECREF(values);
    return result;
}
