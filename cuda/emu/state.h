/* What the files of the emulator's runtime share: its one state, its handles, and pieces of
 * work. Everything here is guarded by emu.lock, except where said. Must not know: kernels. */
#ifndef CUDA_EMU_STATE_H
#define CUDA_EMU_STATE_H

#include <pthread.h>
#include <sys/types.h>

#include "runtime.h"

/* ---- handles ---- */

typedef enum emu_kind { EMU_STREAM, EMU_EVENT, EMU_GRAPH, EMU_GRAPH_EXEC } emu_kind;

/* The head of all that the program holds handles of; all are in one list, so that a wrong
 * handle is an error and not a crash. */
typedef struct emu_handle {
    emu_kind kind;
    struct emu_handle *previous, *next;
} emu_handle;

/* A point in the work of a stream, which is done when the work before it is. */
typedef struct emu_mark {
    int n_holders;
    bool done;
    int64_t done_at; /* ns */
} emu_mark;

typedef enum emu_place {
    EMU_PAGEABLE, /* of the host */
    EMU_PINNED,
    EMU_ON_DEVICE,
    EMU_NOWHERE /* NULL, or touches the device's addresses or pinned memory but is not inside */
} emu_place;

typedef enum emu_op_kind { EMU_LAUNCH, EMU_COPY, EMU_FILL, EMU_CALL } emu_op_kind;

/* One piece of work: held by the streams that are to run it, and by graphs. */
typedef struct emu_op {
    emu_op_kind kind;
    int n_holders;
    emu_job job;         /* LAUNCH */
    uint8_t *to;         /* COPY, FILL */
    const uint8_t *from; /* COPY */
    size_t n_bytes;
    emu_place to_place, from_place; /* when it was enqueued: it must still be so when it runs */
    uint8_t *staged;   /* COPY: a copy of pageable memory, which is from; or NULL */
    int value;         /* FILL */
    cudaHostFn_t call; /* CALL */
    void *call_arg;
} emu_op;

/* What a stream has to do: wait, then run, then mark; each may be NULL. */
typedef struct emu_item {
    struct emu_item *next;
    emu_mark *wait;
    emu_op *op;
    emu_mark *mark;
} emu_item;

struct CUstream_st {
    emu_handle handle;
    pthread_t worker;
    bool blocking; /* is ordered with the legacy stream */
    bool quit;
    emu_item *first, *last;     /* the first stays in the list while it runs */
    struct CUgraph_st *capture; /* NULL: not capturing */
    enum cudaStreamCaptureMode capture_mode;
    pthread_t capture_thread;
    bool capture_invalid;
};

struct CUevent_st {
    emu_handle handle;
    unsigned flags;
    emu_mark *mark;                   /* where it was recorded; NULL: nowhere */
    const struct CUgraph_st *capture; /* recorded in this capture; NULL: not in one */
};

struct CUgraph_st {
    emu_handle handle; /* listed once the capture has ended */
    emu_op **ops;      /* [n_ops] in the order of the capture */
    size_t n_ops, room;
    bool is_listed;
};

struct CUgraphExec_st {
    emu_handle handle;
    emu_op **ops; /* [n_ops] */
    size_t n_ops;
    emu_mark *last; /* the end of its last launch; the next one waits for it */
};

typedef struct emu_state {
    pthread_mutex_t lock;
    pthread_cond_t changed;  /* a stream got work, or finished some */
    pid_t pid;               /* of the process that made the state */
    cudaError_t start_error; /* what every call returns; cudaSuccess: there is a device */
    cudaError_t sticky;      /* the device is broken */
    emu_handle *handles;
    struct CUstream_st *legacy; /* the default stream; NULL until it is used */
    uint32_t random;
    /* the environment */
    int arch, n_sms;
    bool late;
} emu_state;

extern emu_state emu;
extern _Thread_local bool emu_on_worker; /* this thread belongs to a stream */

/* ---- runtime.c: the frame of every function of the API ---- */

enum {
    EMU_UNSAFE = 1, /* is not allowed while a stream captures */
    EMU_CLEANS = 2  /* works on a broken device too */
};

/* Starts the device at the first call, without the lock. The error: there is none. */
cudaError_t emu_start(void);
/* Opens a call: on success the lock is held. */
cudaError_t emu_enter(const char *call, int flags);
/* Closes a call: lets go of the lock; returns what the caller must return. */
cudaError_t emu_leave(cudaError_t error);
/* Counts a call, and returns the error of a fault on demand. */
cudaError_t emu_fault(const char *call);
void emu_break(cudaError_t error, const char *what); /* emu_raise, with the lock held */
void emu_forget_functions(void);

void emu_add_handle(emu_handle *handle, emu_kind kind);
void emu_remove_handle(emu_handle *handle);
bool emu_is_live(const void *handle, emu_kind kind);

/* ---- streams.c ---- */

/* Gives the stream of a handle, the legacy one for 0; NULL and an error for a wrong one. */
struct CUstream_st *emu_find_stream(cudaStream_t stream, cudaError_t *error);
emu_op *emu_new_op(emu_op_kind kind);
void emu_release_op(emu_op *op);
/* Enqueues a piece of work, or captures it; takes the caller's hold of it. */
cudaError_t emu_submit(struct CUstream_st *stream, emu_op *op);
void emu_append(struct CUstream_st *stream, emu_mark *wait, emu_op *op, emu_mark *mark);
emu_mark *emu_new_mark(void);
void emu_release_mark(emu_mark *mark);
void emu_wait_for_mark(const emu_mark *mark);
/* Lets what is enqueued from now on wait for the legacy stream, or, in the legacy stream, for
 * all that are not cudaStreamNonBlocking. */
cudaError_t emu_order_with_legacy(struct CUstream_st *stream);
/* Waits until all that is enqueued now is done. */
void emu_drain(struct CUstream_st *stream);
/* Finds the work enqueued that uses memory of [begin, end); NULL: none does. */
const char *emu_find_user(uintptr_t begin, uintptr_t end);
void emu_destroy_stream(struct CUstream_st *stream); /* lets go of the lock for a while */
void emu_destroy_event(struct CUevent_st *event);

/* ---- graphs.c ---- */

/* Makes the captures that an unsafe call meets invalid, and returns its error. */
cudaError_t emu_unsafe_in_capture(void);
cudaError_t emu_capture(struct CUstream_st *stream, emu_op *op);
cudaError_t emu_spoil_capture(struct CUstream_st *stream, cudaError_t error);
void emu_destroy_graph(struct CUgraph_st *graph);
void emu_destroy_graph_exec(struct CUgraphExec_st *exec);

/* ---- device_memory.c: has a lock of its own, taken after emu.lock ---- */

bool emu_reserve_memory(size_t n_bytes);
void emu_memory_info(size_t *n_free, size_t *n_total);
void *emu_allocate(size_t n_bytes); /* NULL: there is not so much */
/* Frees what begins there; false: nothing does. Says whether bytes beside it were written. */
bool emu_release(void *device, bool *was_overrun);
void *emu_pin(size_t n_bytes);
bool emu_unpin(void *host);
void emu_release_all(void);
emu_place emu_place_of(const void *address, size_t n_bytes);
/* The address at which the host may touch memory. */
uint8_t *emu_host_view(const void *address);

#endif
