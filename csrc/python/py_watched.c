/* Watched calls: see py_watched.h. Owns: the waiting thread, which lives as long as the call.
 * It needs no GIL, so that it speaks where the call holds it for ever; and it touches no
 * object. */
#include "python/py_watched.h"

#include <pthread.h>
#include <stdbool.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"

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

PyObject *lmd_py_watched(PyObject *module, PyObject *args) {
    PyObject *function;
    double seconds;
    watch self = {.lock = PTHREAD_MUTEX_INITIALIZER};
    (void)module;
    if (!PyArg_ParseTuple(args, "Ods:watched", &function, &seconds, &self.text)) return NULL;
    if (!(seconds >= 0.0 && seconds <= 1e6))
        return PyErr_Format(PyExc_ValueError, "watched takes seconds from 0 to a million");
    self.deadline = lmd_deadline_after((int64_t)(seconds * 1e3));
    lmd_cond_init(&self.ended);
    pthread_t thread;
    /* Without a thread the call goes on: it is watched where that can be. */
    const bool is_watched = pthread_create(&thread, NULL, watch_run, &self) == 0;
    PyObject *result = PyObject_CallNoArgs(function);
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
